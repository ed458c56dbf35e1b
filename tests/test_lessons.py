"""The course in nbs/00_start: every lesson has what a lesson has, its links lead somewhere, its panel is not outdated.

That its code runs and holds what its text claims is what `test_notebooks.py` looks at."""
import json
import re
from pathlib import Path

import pytest

from wsss_nb.explore.frame import FrameWidget

START = Path(__file__).parent.parent/"nbs"/"00_start"
ALL = sorted(START.glob("[0-9]*.ipynb"))
LESSONS = [p for p in ALL if "**Lesson " in p.read_text(encoding="utf-8")]
METHODS = sorted((START.parent/"80_methods").glob("*.ipynb"))
each = pytest.mark.parametrize("nb", LESSONS, ids=lambda p: p.stem)

def cells(nb): return json.loads(nb.read_text(encoding="utf-8"))["cells"]
def texts(nb): return ["".join(c["source"]) for c in cells(nb) if c["cell_type"] == "markdown"]

def test_the_path_is_the_order_of_the_files():
    numbers = [re.search(r"\*\*Lesson (\d+) of (\d+)\*\*", texts(nb)[0]).groups() for nb in LESSONS]
    assert numbers == [(str(i+1), str(len(LESSONS))) for i in range(len(LESSONS))]
    tour = "\n".join(texts(ALL[0]))
    assert re.findall(r"\]\((\w+\.ipynb)\)", tour) == [nb.name for nb in ALL[1:]]  # the tour lists all that follows

@each
def test_it_has_what_a_lesson_has(nb):
    first,*_,last = texts(nb)
    whole = "\n".join(texts(nb))
    assert re.search(r"\*\*Lesson \d+ of \d+\*\* · 1[0-5] minutes · You need ", first)
    assert "**The idea of this lesson:**" in first
    assert whole.count("**Predict first.**") == 1 and whole.count("<details><summary>Answer</summary>") == 1
    assert whole.index("**Predict first.**") < whole.index("<summary>Answer</summary>")
    assert last.count("<details><summary>Solution</summary>") == 2
    assert last.index("## Exercises") < last.index("## What to read next")
    assert whole.count("<details>") == whole.count("</details>") == 3
    assert not re.search(r"<details><summary>\w+</summary>\n[^\n]", whole), "an empty line, or it is no markdown"

@each
def test_its_panel_is_alive(nb):
    "One panel, small enough, with the script that the package has now, behind the question about it"
    kinds = [(c["cell_type"], "".join(c["source"]), ["".join(o.get("data", {}).get("text/html", ""))
                                                     for o in c.get("outputs", ())]) for c in cells(nb)]
    pages = [(i, h) for i,(_,_,html) in enumerate(kinds) for h in html if 'class="wsss-live"' in h]
    assert len(pages) == 1, f"{len(pages)} panels"
    (at,page),script = pages[0],FrameWidget._esm.replace("export default { render };", "")
    assert len(page) < 400_000 and nb.stat().st_size < 800_000
    assert script in page, f"{nb.name}: its panel has an older explorer.js; nbdev-test --save it"
    assert next(i for i,(_,source,_) in enumerate(kinds) if "**Predict first.**" in source) < at

@pytest.mark.parametrize("nb", [*ALL, *METHODS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_links_lead_somewhere(nb):
    for text in texts(nb):
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", re.sub(r"`[^`]*`", "", text)):  # code is no link
            assert (nb.parent/target).exists(), f"{nb.name} points to {target}"

@pytest.mark.parametrize("nb", METHODS, ids=lambda p: p.stem)
def test_a_method_names_its_lesson(nb):
    lesson = re.search(r"\[lesson (\d+), [^]]+\]\(\.\./00_start/(\w+)\.ipynb\)", texts(nb)[0])
    assert lesson and f"**Lesson {lesson[1]} of" in texts(START/f"{lesson[2]}.ipynb")[0]
