"Every notebook runs from top to bottom, each in a process of its own. NB_FLAGS='slow gpu' also runs the cells with these flags."
import os,subprocess,sys
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

cfg = get_config(__file__)
NBDEV_TEST = [Path(sys.executable).with_name("nbdev-test"), "--n-workers", "0"]
FLAGS = f"widget {os.environ.get('NB_FLAGS', '')}".strip()

@pytest.mark.parametrize("nb", sorted(nbglob(cfg.nbs_path, as_path=True)), ids=lambda p: p.relative_to(cfg.nbs_path).as_posix().removesuffix(".ipynb"))
def test_notebook(nb):
    before = set(nb.parent.iterdir())
    done = subprocess.run([*NBDEV_TEST, "--flags", FLAGS, nb], cwd=cfg.config_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{nb.name}:\n{done.stdout}{done.stderr}"
    left = sorted(p.name for p in set(nb.parent.iterdir()) - before)
    assert not left, f"{nb.name} leaves files behind: {left}"
