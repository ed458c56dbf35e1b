"Two threads wherever the tests run: a container often shows the processors of its host and has two of them, and sums depend on the number of threads."
import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ.setdefault(name, "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits sleeps: where others use the cores too, spinning made the tests twenty times slower
os.environ.setdefault("TQDM_DISABLE", "1")  # no progress bars in reports

from commands import call,fails,here,scenes,trained  # noqa: E402,F401  (fixtures)
from lab import browser,lab  # noqa: E402,F401
