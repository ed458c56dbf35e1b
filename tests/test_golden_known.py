"""Every reference file is known: some test reads it, or its method is planned and says so.

A file that nobody reads would prove nothing."""
import re
from pathlib import Path

import pytest
from golden_files import GOLDEN,cases,golden,of_family

# What is recorded before it is built. A family leaves this list when its test arrives.
PLANNED = {}

def asked_for():
    "Return the (area, family) pairs that the other test modules ask for"
    sources = (f.read_text(encoding="utf-8") for f in Path(__file__).parent.glob("test_*.py")
               if f.name != Path(__file__).name)
    return {pair for text in sources
            for pair in re.findall(r"""\bgolden\(\s*["'](\w+)["']\s*,\s*["'](\w+)["']""", text)}

TESTED = asked_for()

def fate(file):
    "Return None if a test reads `file`, why not if it is planned; raise `LookupError` if nobody knows it"
    area,stem = file.parent.name,file.stem
    if any(a == area and of_family(stem, family) for a,family in TESTED): return None
    for family,why in PLANNED.get(area, {}).items():
        if of_family(stem, family): return f"planned: {why}"
    raise LookupError(f"{area}/{file.name}: no test calls golden({area!r}, ...) for it and it is not planned")

@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*/*.npz")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_known(file):
    why = fate(file)
    if why: pytest.skip(why)

def test_plans_are_not_stale():
    stale = [(a, f) for a,families in PLANNED.items() for f in families if (a, f) in TESTED]
    assert not stale, f"tested by now, so no longer planned: {stale}"

def test_a_stranger_fails():
    with pytest.raises(LookupError, match="no test calls golden"): fate(Path("tsd_cam/toco_dream.npz"))
    for stranger in ("dreams/toco_vit.npz", "bilateral/dream.npz", "densecrf/dream.npz"):
        with pytest.raises(LookupError): fate(Path(stranger))

def test_cases_and_families(monkeypatch):
    assert cases(["in/x10", "in/x2", "in/xs", "out/x0"], "in/x") == ["2", "10"]
    assert cases(["in/x_1", "in/x_0", "in/x_flat"], "in/x") == ["_0", "_1"]
    assert cases(["in/x", "in/xy"], "in/x") == [""]
    assert (
        of_family("par_2", "par")
        and of_family("par2", "par")
        and of_family("par", "par")
        and not of_family("part", "par")
    )
    with pytest.raises(LookupError, match="no case of in/y"): cases(["in/x", "in/xy"], "in/y")
    monkeypatch.delenv("WSSS_GOLDEN", raising=False)
    with pytest.raises(LookupError, match="no_such_area: no such folder"): golden("no_such_area", "x")
    monkeypatch.setenv("WSSS_GOLDEN", "elsewhere")
    (absent,) = golden("no_such_area", "x")
    assert absent.marks[0].name == "skip"
