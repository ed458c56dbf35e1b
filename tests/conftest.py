"""Two threads wherever the tests run, one in each of several test processes: a container often shows the processors of its host and has two of them, and sums depend on the number of threads.

`pytest -n auto` runs files beside each other, one process per core."""
import os

threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, threads)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits sleeps: where others use the cores too, spinning made the tests twenty times slower
os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in reports

import pytest  # noqa: E402
from commands import call,fails,here,scenes,trained  # noqa: E402,F401  (fixtures)
from firefox import firefox  # noqa: E402,F401
from lab import browser,lab  # noqa: E402,F401
from miniatures import archives,site  # noqa: E402,F401
from wsss_nb.ground.core import num_cores  # noqa: E402

def work_of(nodeid):
    "Return what one process does in a piece: a file of tests, whose fixtures are made once; the notebooks of a room"
    file,_,test = nodeid.partition("::")
    return f"{file}::{test.partition('/')[0]}" if file.endswith("test_notebooks.py") else file

# What takes longest, so that no process is left alone with it at the end.
LONG = ("test_lab.py", "test_notebooks.py::test_notebook[00_start", "test_stages_resume.py", "test_processes.py", "test_notebooks.py::test_notebook[80_methods",
        "test_failures.py", "test_docs_blocks.py", "test_fuzz_lattice.py", "test_resume.py", "test_notebooks.py::test_notebook[95_explore", "test_notebooks.py", "test_commands.py")

def pytest_collection_modifyitems(items):
    def place(item): return next((i for i,name in enumerate(LONG) if name in work_of(item.nodeid)), len(LONG))
    items.sort(key=place)

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(): return min(num_cores(), 4)  # each may take 3 GB

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling
    class Pieces(LoadScopeScheduling):
        def _split_scope(self, nodeid): return work_of(nodeid)
    config.option.loadscopereorder = False  # the order is the one above
    return Pieces(config, log)
