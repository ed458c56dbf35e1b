"""Where the reference vectors are, and which there are.

`$WSSS_GOLDEN` names another set (other sizes, seeds, options) than tests/golden."""
import os,re
from pathlib import Path

import pytest

GOLDEN = Path(os.environ.get("WSSS_GOLDEN") or Path(__file__).parent/"golden")

def of_family(stem, family):
    "Does the file `stem`.npz belong to `family`? par_2 and par2 belong to par, part does not"
    return re.match(rf"{re.escape(family)}(?![a-z])", stem) is not None

def golden(area, family):
    """Return a pytest parameter (a path) for each file of `family` in the folder `area`

    If another set has none, one that is skipped and says so; raise `LookupError` if our own has none."""
    files = [f for f in sorted((GOLDEN/area).glob("*.npz")) if of_family(f.stem, family)]
    if files: return [pytest.param(f, id=f.stem) for f in files]
    why = f"no {family}*.npz" if (GOLDEN/area).is_dir() else "no such folder"
    if "WSSS_GOLDEN" not in os.environ: raise LookupError(f"{area}: {why} in {GOLDEN}")
    return [pytest.param(None, id=f"{family}-absent", marks=pytest.mark.skip(reason=f"{area}: {why} in {GOLDEN.name}"))]

def cases(npz, key):
    """Return what follows `key` in the names of `npz`, one per independent case: ['_0', '_1'], ['0', '1'] or ['']

    Raise `LookupError` if there is none: who walks through no case tests nothing."""
    found = [m[1] or "" for name in npz if (m := re.fullmatch(rf"{re.escape(key)}(_?\d+)?", name))]
    if not found: raise LookupError(f"no case of {key}")
    return sorted(found, key=lambda s: int(s.strip("_") or -1))
