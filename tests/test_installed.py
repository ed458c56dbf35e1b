"The package that tests/release_check.py has installed is the one that is imported, whole, and compiled if it could be."
import os
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

import wsss_nb

KIND = os.environ.get("WSSS_INSTALLED")  # "compiled" or "plain"
pytestmark = pytest.mark.skipif(KIND is None, reason="for an installed package: make release-check")


def test_it_is_the_installed_one():
    place = Path(wsss_nb.__file__).resolve()
    assert place.is_relative_to(Path(sys.prefix).resolve()) and "site-packages" in place.parts
    assert not Path(__file__).resolve().is_relative_to(place.parent.parent)

def test_version_and_commands():
    found = distribution("wsss_nb")
    assert found.version == wsss_nb.__version__
    commands = {e.name for e in found.entry_points if e.group == "console_scripts"}
    assert commands == {p.name for p in Path(sys.executable).parent.glob("wsss-*")} and len(commands) > 5

def test_files_beside_the_code():
    from wsss_nb.backbones.core import shipped_weights
    assert all(shipped_weights(name).is_file() for name in ("vit_toy", "mit_toy"))

def test_lattice():
    assert (find_spec("wsss_nb._lattice") is not None) == (KIND == "compiled")
