"""Every notebook runs from top to bottom, each in a process of its own: a fork of one that has imported torch and the like (`notebooks.py`).

NB_FLAGS='slow gpu' also runs the cells with these flags."""
import json,os,subprocess,sys
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

cfg = get_config(__file__)
FLAGS = f"widget {os.environ.get('NB_FLAGS', '')}".strip()
NBDEV_TEST = [Path(sys.executable).with_name("nbdev-test"), "--n-workers", "0", "--flags", FLAGS]
FRESH = {"10_ground/10_core"}  # asks what a process holds that has not imported torch: a process from the command line

def name_of(nb): return nb.relative_to(cfg.nbs_path).as_posix().removesuffix(".ipynb")

@pytest.fixture(scope="session")
def warm():
    "Return a function that runs a notebook in a fork of one warm process, and returns exit status and output"
    process = subprocess.Popen([sys.executable, "-P", Path(__file__).with_name("notebooks.py"), FLAGS], cwd=cfg.config_path,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def run(nb):
        print(nb, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())
    yield run
    process.stdin.close()
    assert process.wait(60) == 0

def fresh(nb):
    done = subprocess.run([*NBDEV_TEST, nb], cwd=cfg.config_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode,done.stdout+done.stderr

@pytest.mark.parametrize("nb", sorted(nbglob(cfg.nbs_path, as_path=True)), ids=name_of)
def test_notebook(nb, warm):
    before = set(nb.parent.iterdir())
    status,output = (fresh if name_of(nb) in FRESH else warm)(nb)
    assert status == 0, f"{nb.name}:\n{output}"
    left = sorted(p.name for p in set(nb.parent.iterdir()) - before)
    assert not left, f"{nb.name} leaves files behind: {left}"
