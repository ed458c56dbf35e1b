"""Every explorer has its four forms: a widget, a plain picture, a live page in its notebook, and a test in a browser.

They are found, not named: a new file in wsss_nb/explore is looked at like the others."""
import inspect
import json
from pathlib import Path

import pytest
from panels import told

from wsss_nb.explore.overview import FORMS, explorers, forms_of, overview, browser_tested
from wsss_nb.use.experiment import run_method

ROOT = Path(__file__).parent.parent
EXPLORERS = {c.__name__: c for classes in explorers().values() for c in classes}
BRIEF = ["iters=3", "batch_size=2", "warmup_iter=1", "seg_start=1", "save_every=3", "log_every=1", "val_images=0",
         "crop_size=64"]


@pytest.fixture(scope="module")
def tested():
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    return browser_tested(ROOT)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder of a method that learns affinity, for the explorers that cannot do without a run"
    path = tmp_path_factory.mktemp("overview")/"run"
    run_method("tscd", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    return path


def test_every_explorer_has_all_four(tested):
    rows = overview(ROOT, tested)
    assert {r.explorer for r in rows if r.explorer} == {*EXPLORERS}
    lacking = {f"{r.notebook} ({r.explorer})": r.lacks() for r in rows if r.lacks()}
    assert not lacking, f"a notebook of an explorer holds {', '.join(FORMS)}; these lack: {lacking}"


@pytest.mark.parametrize("name", EXPLORERS)
def test_it_opens(name, request):
    "By itself, or on a run; the widget and the plain picture show the same state"
    made, asks = EXPLORERS[name], inspect.signature(EXPLORERS[name]).parameters
    needs = [p for p in asks.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert [p.name for p in needs] in ([], ["run"]), "an explorer opens by itself, or needs a run and nothing else"
    panel = made(*([request.getfixturevalue("run")] if needs else []))
    assert made.question.endswith("?") and made.title
    assert told(panel)["view"]["caption"] == panel.shown.caption and not told(panel)["error"]
    assert panel.picture(**panel.state).width > 150


def test_the_stored_table_is_that_of_today(tested):
    cells = json.loads((ROOT/"nbs"/"95_explore"/"97_overview.ipynb").read_text(encoding="utf-8"))["cells"]
    stored = ["".join(o["data"]["text/markdown"]) for c in cells for o in c.get("outputs", ())
              if "text/markdown" in o.get("data", {})]
    assert len(stored) == 1
    def line(r): return (f"`{r.idea}`" if r.idea else "any run", f"`{r.explorer}`" if r.explorer else "none yet")
    shown = [tuple(c.strip() for c in l.split("|")[1:4:2]) for l in stored[0].split("\n")[2:]]
    today = [line(r) for r in overview(ROOT, tested)]
    assert [(i, e.partition(" (")[0]) for i, e in shown] == today, \
        "a new explorer or idea: nbdev-test --save nbs/95_explore/97_overview.ipynb"


def test_what_is_missing_is_said(tmp_path):
    "A notebook without one of the four, and one that holds its page twice"
    book = json.loads((ROOT/"nbs"/"95_explore"/"25_sweep.ipynb").read_text(encoding="utf-8"))
    def lacks(change, tested=("25_sweep",)):
        copy = json.loads(json.dumps(book))
        copy["cells"] = change(copy["cells"])
        (tmp_path/"25_sweep.ipynb").write_text(json.dumps(copy), encoding="utf-8")
        return [f for f, there in forms_of(tmp_path/"25_sweep.ipynb", tested).items() if not there]
    def without(kind): return lambda cells: [c for c in cells if not any(kind in o.get("data", {})
                                                                         for o in c.get("outputs", ()))]
    assert lacks(lambda cells: cells) == [] and lacks(lambda cells: cells, ()) == ["test"]
    assert lacks(without("image/png")) == ["picture"] and lacks(without("text/html")) == ["page"]
    assert lacks(lambda cells: [c for c in cells if "#| widget" not in "".join(c["source"])]) == ["widget"]
    assert lacks(lambda cells: cells+[c for c in cells if "".join(c["source"]) == "page"]) == ["page"]
