"The files around the code say the same as the code: change log, citation, version, the systems it runs on."
import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import wsss_nb

ROOT = Path(__file__).parent.parent
CHANGES = (ROOT/"CHANGELOG.md").read_text(encoding="utf-8")
MOVED = re.findall(r"(?m)^\| `(wsss_nb\.[\w.]+)` \| `(wsss_nb\.[\w.]+)`"
                   r"(; `\1` keeps working)?(?: \([^|]+\))? \|$", CHANGES)
NAMES = re.findall(r"(?m)^\| `(\w+)` \| `wsss_nb\.[\w.]+` \| `(wsss_nb\.[\w.]+)`", CHANGES)


# %% Change log
def test_the_newest_version_is_this_one():
    assert re.findall(r"(?m)^## \[([\d.]+)\]", CHANGES)[0] == wsss_nb.__version__
    heads = re.findall(r"(?m)^## (.+)$", CHANGES)
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|unreleased)", h) for h in heads), heads

def test_modules_went_where_it_says():
    assert (len(MOVED), len(NAMES)) == (30, 14)
    for old,new,kept in MOVED:
        assert find_spec(new), f"{new}: no such module"
        assert bool(kept) == (ROOT/f"{old.replace('.', '/')}.py").exists(), f"{old}: is it there or not?"

def names_of(module):
    "Return what a module defines or imports, read and not run"
    tree = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    return ({n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            | {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)})

@pytest.mark.parametrize("name,module", NAMES)
def test_names_went_where_it_says(name, module): assert name in names_of(module)

def test_every_old_module_is_in_it():
    unchanged = re.search(r"(?s)\nUnchanged paths:\n(.*?)\n(?:Notebooks|##)", CHANGES)[1]
    listed = {f"wsss_nb.{room}.{name}" for room,names in re.findall(r"`wsss_nb\.(\w+)`: (.*)", unchanged)
              for name in re.findall(r"`(\w+)`", names)}
    assert len(listed) > 30 and all(map(find_spec, listed)), [m for m in listed if not find_spec(m)]

# %% Citation
CITATION = yaml.safe_load((ROOT/"CITATION.cff").read_text(encoding="utf-8"))

def test_citation_has_what_its_form_asks_for():
    assert CITATION["cff-version"] == "1.2.0" and CITATION["version"] == wsss_nb.__version__
    assert CITATION["title"] and CITATION["message"] and CITATION["type"] == "software" and CITATION["license"] == "MIT"
    for work in [CITATION, *CITATION["references"]]:
        assert work["authors"], work["title"]
        for author in work["authors"]: assert author.keys() in ({"name"}, {"given-names", "family-names"}), author

@pytest.mark.parametrize("paper", CITATION["references"], ids=lambda p: p["notes"])
def test_papers(paper):
    venue = {"article": "journal", "conference-paper": "collection-title"}[paper["type"]]
    assert paper["title"] and paper[venue] and 2000 < paper["year"] < 2100
    if "doi" in paper: assert re.fullmatch(r"10\.\d{4,}/\S+", paper["doi"])

def test_papers_of_all_methods():
    notes = " ".join(p["notes"] for p in CITATION["references"])
    for name in ("AFA", "ToCo", "TSD-CAM", "TSCD", "SeCo", "I2CRC", "KTSE", "IRN", "BECO", "dense CRF",
                 "permutohedral lattice"):
        assert name in notes, name

# %% Systems
def test_windows_is_told_so_at_once():
    script = "import platform,runpy\nplatform.system = lambda: 'Windows'\nrunpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "wsss_nb runs on Linux and macOS, not on Windows (WSL is Linux)\n"

# %% Forms
@pytest.mark.parametrize("form", sorted((ROOT/".github"/"ISSUE_TEMPLATE").glob("*.md")), ids=lambda p: p.stem)
def test_forms_have_a_head(form):
    _,head,body = form.read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head).keys() == {"name", "about", "labels"} and body.strip()
