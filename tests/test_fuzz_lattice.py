"""Twenty seconds of random calls to the lattice built with AddressSanitizer and UndefinedBehaviorSanitizer

`python tests/fuzz_lattice.py` takes five minutes."""
import fuzz_lattice
import pytest


def test_fuzz():
    if why := fuzz_lattice.why_not(): pytest.skip(why)
    done = fuzz_lattice.run(seconds=20, seed=1)
    assert done.returncode == 0, done.stdout+done.stderr[-6000:]
