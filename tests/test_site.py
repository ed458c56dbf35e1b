"""The built site: a page and an anchor for every exported symbol, and nothing fetched from elsewhere. `make docs`
builds it, `make test` does so first.

Without a build these tests are skipped, but fail where CI or SITE is set: there somebody relies on them."""
import ast,json,os,re,sys
from html import unescape
from pathlib import Path

import pytest
from accessible import no_barriers

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

def test_every_picture_is_told_in_words():
    "Also to somebody who does not see it: no picture has the name of its file for a text"
    pictures = [(page.name, tag) for page in SITE.rglob("*.html")
                for tag in re.findall(r"<img\b[^>]*>", page.read_text(encoding="utf-8"))]
    texts = [(page, re.search(r'alt="([^"]*)"', tag)) for page,tag in pictures]
    mute = [page for page,alt in texts if not alt or len(alt[1]) < 12 or re.search(r"\.(png|jpe?g|svg)$", alt[1])]
    assert len(pictures) > 100 and not mute, mute

def test_source_links_lead_into_the_site():
    "A definition is one click away, without a network"
    pages,links = 0,0
    for page in SITE.glob("*_*/*.html"):
        found = re.findall(r'class="nb-source[^"]*" href="([^"#]+)#:~:text=([^"]+)"', page.read_text(encoding="utf-8"))
        for to,text in found:
            source = (page.parent/to).read_text(encoding="utf-8")
            begins = text.replace("%20", " ").replace("(", "[(]")
            assert re.search(rf"^ *(async )?{begins}", source, flags=re.M), f"{page}: {text}"
        pages,links = pages+bool(found),links+len(found)
    assert pages > 80 and links > 400
    assert not [p for p in SITE.rglob("*.html") if "github.com/example/wsss_nb/blob" in p.read_text(encoding="utf-8")]

def test_types_have_no_module_of_their_own_notebook():
    for page in SITE.glob("*/*.html"):
        assert "__main__" not in re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")), page

def test_the_first_page_is_alive():
    "It holds an explorer, near its top, and leads to the course"
    text = (SITE/"index.html").read_text(encoding="utf-8")
    assert 0 < text.index('class="wsss-live"') < text.index("<img ") and 'href="00_start/index.html"' in text

def test_numbers_come_from_files(tmp_path, monkeypatch):
    "What the pages of results and speeds show is what JSON holds"
    monkeypatch.syspath_prepend(ROOT/"docs")
    import numbers_pages
    monkeypatch.setattr(numbers_pages, "RESULTS", tmp_path/"results")
    (tmp_path/"results").mkdir()
    monkeypatch.setattr(numbers_pages, "SPEED", tmp_path/"speed.json")
    assert numbers_pages.pages() == {}
    row = {"method":"baseline", "networks":["vit_toy"], "data":"mine", "split":"val", "preset":"photos",
           "commit":"c0ffee", "command":"wsss-run baseline", "runs":["runs/a"], "elsewhere":{},
           "settings":{}, "masks":False, "seeds":[0],
           "machine":{"cpu":"Z80"}, "scores":{"prediction":[.3]}, "minutes":[2.]}
    full = row | {"masks":True, "scores":{"prediction":[.6]}, "settings":{"supervision":"masks"}, "runs":["runs/b"]}
    (tmp_path/"results"/"mine.json").write_text(json.dumps({"rows":[row,full]}))
    page = numbers_pages.pages()["results"]
    assert "## mine" in page and "| 30.0 | 0.50 |" in page and "`wsss-run baseline`" in page and "Z80" in page
    (tmp_path/"results"/"mine.json").unlink()
    where = {"machine":{"cpu":"Z80"}, "commit":"c0ffee"}
    told = {"parts":{"crf":where | {"rows":[{"case":"crf-1", "threads":1, "ours_ms":2., "peer_ms":9., "limit_ms":.5,
                                             "ratio":4.5, "goal":{"ratio":5}, "reached":False}]},
                     "par":where | {"rows":[{"case":"par-1", "threads":1, "ours_ms":2., "peer_ms":9.}]},
                     "walk":where | {"rows":[], "cannot":"no such thing"}}}
    (tmp_path/"speed.json").write_text(json.dumps(told))
    page = numbers_pages.pages()["speed"]
    assert "| crf-1 | 1 | 2 | 9 | 0.5 | 4.50 | 5 | no |" in page and "cpu Z80; commit c0ffee" in page
    assert "| par-1 | 1 | 2 | 9 |  |  |  |" in page and page.count("limit, ms") == 1  # where it is known
    assert "no such thing" in page
    sys.modules.pop("numbers_pages")

@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_the_screen(browser, width):
    "No page scrolls sideways, no request leaves the machine, the panel of the first page answers"
    page,elsewhere = browser.new_page(viewport={"width":width, "height":900}),[]
    page.on("request", lambda r: r.url.split(":")[0] in ("file","data","blob") or elsewhere.append(r.url))
    for name in ("80_methods/baseline.html", "20_data/index.html", "index.html"):
        page.goto((SITE/name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    slider = page.get_by_label("threshold", exact=True)
    assert slider.bounding_box()["y"] < 900, "the panel is above the fold"
    before = page.locator(".wsss").inner_text()
    slider.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('.wsss').innerText !== before", arg=before)
    assert not elsewhere

@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_barriers(browser, scheme):
    "Who reads by ear or sees little gets everywhere: first page, lesson, API, recipe, explorer, both pages of numbers"
    page = browser.new_page(color_scheme=scheme)
    for name in ("index", "00_start/affinity_and_walk", "40_cam/multiscale", "95_explore/cam", "results", "speed",
                 "search"):
        page.goto((SITE/f"{name}.html").as_uri())
        no_barriers(page, name)

@pytest.mark.parametrize("words,first", [("random walk", "00_start/affinity_and_walk.html"),
                                         ("pseudo label", "55_labels/pseudo.html"),
                                         ("own photos", "00_start/own_photos.html"),
                                         ("multi_scale_cam", "40_cam/multiscale.html#multi-scale-cam")])
def test_search_finds(browser, words, first):
    "What somebody asks for stands on top"
    page = browser.new_page()
    page.goto(f"{(SITE/'search.html').as_uri()}?q={words.replace(' ', '+')}")
    found = page.locator("#search-results li > a").first
    found.wait_for()
    page.wait_for_function("() => document.querySelector('#search-results p')?.innerText.match(/[0-9]/)")
    assert re.split("[?#]", found.get_attribute("href"))[0].endswith(first.split("#")[0])

def test_formulas_are_set(browser):
    "With what is left of MathJax, and without asking for more"
    page,complaints = browser.new_page(),[]
    page.on("requestfailed", lambda r: complaints.append(r.url))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    name = next(p for p in sorted((SITE/"recipes").glob("*.html")) + sorted(SITE.glob("*_*/*.html"))
                if 'class="math' in p.read_text(encoding="utf-8"))
    page.goto(name.as_uri())
    page.locator("mjx-container").first.wait_for()
    assert not complaints

def test_the_site_is_small():
    "It is copied, mailed and opened from a stick"
    assert sum(p.stat().st_size for p in SITE.rglob("*") if p.is_file()) < 40e6
