"""The built site: a page and an anchor for every exported symbol, and nothing fetched from elsewhere. `make docs`
builds it, `make test` does so first.

Without a build these tests are skipped, but fail where CI or SITE is set: there somebody relies on them."""
import ast,os,re
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT/"_build"/"html"

@pytest.fixture(autouse=True)
def built():
    if (SITE/"index.html").exists(): return
    if os.environ.get("CI") or os.environ.get("SITE"):
        pytest.fail(f"{SITE.relative_to(ROOT)} holds no site, and here it has to be tested: run `make docs` first")
    pytest.skip("the site is not built: run `make docs`, then this again")

def symbols():
    "Return (page, anchor) of every public symbol that nbdev documents"
    tree = ast.parse((ROOT/"wsss_nb"/"_modidx.py").read_text(encoding="utf-8"))
    index = ast.literal_eval(next(n.value for n in tree.body if isinstance(n, ast.Assign)))
    addresses = {name: address for module in index["syms"].values() for name,(address,_) in module.items()}
    own = {name: address for name,address in addresses.items()
           if not any(part.startswith("_") for part in name.split(".")[1:])}
    return {name: address.split("#") for name,address in own.items()}

def test_every_symbol_has_its_page():
    missing,known = [],symbols()
    assert known
    for name,(page,anchor) in known.items():
        file = SITE/page
        if not file.exists(): missing.append(f"{name}: no page {page}")
        elif not re.search(rf'id="{re.escape(anchor)}"', file.read_text(encoding="utf-8")):
            missing.append(f"{name}: {page} has no #{anchor}")
    assert not missing, "\n".join(missing)

def test_every_exported_name_is_on_its_page():
    "Constants have no anchor: their source is shown"
    missing,pages = [],0
    for nb in sorted((ROOT/"nbs").glob("*/[0-9]*.ipynb")):
        room,name = nb.parent.name,nb.stem[3:]
        module = ROOT/"wsss_nb"/room[3:]/f"{name}.py"
        if not module.exists(): continue  # a lesson
        pages += 1
        tree = ast.parse(module.read_text(encoding="utf-8"))
        names = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)
                      and ast.unparse(n.targets[0]) == "__all__"), [])
        text = unescape(re.sub(r"<[^>]+>", "", (SITE/room/f"{name}.html").read_text(encoding="utf-8")))
        missing += [f"{nb.name}: {name}" for name in names if not re.search(rf"\b{name}\b", text)]
    assert pages and not missing, "\n".join(missing)

def test_nothing_from_elsewhere():
    for page in SITE.rglob("*.html"):
        found = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"',
                           page.read_text(encoding="utf-8"))
        assert not found, f"{page.name}: {found}"

def test_troubles_are_those_of_the_tests():
    "The table of what can go wrong with data has a row for every marked test"
    text = (ROOT/"tests"/"test_users_files.py").read_text(encoding="utf-8")
    text += (ROOT/"tests"/"test_users_lists.py").read_text(encoding="utf-8")
    rows = re.findall("<tr.*?</tr>", (SITE/"troubles.html").read_text(encoding="utf-8"), re.DOTALL)
    marked = text.count("@pytest.mark.trouble(")
    assert marked > 15 and len(rows)-1 >= marked
    assert any("EXIF" in row and "upright" in row for row in rows)
