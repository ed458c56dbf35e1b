"""What the world does to a run, what the run says, what is left of it: one table, which the tests execute
(`test_failures.py`) and the notebook 06_failures shows.

    python tests/failures/failure_table.py        writes the table into the notebook

A row's `make` brings the failure about in an empty folder that holds `scenes`, and returns status and standard
error; `says` is all that the command prints there, with <words> for what differs from time to time. Unless a row
says otherwise the run is then taken up again by the same command with --resume, after `mend`, and has to end with
the weights of one that nothing happened to.
"""
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT/"tests"))

import torch  # noqa: E402
from commands import TINY, run, started  # noqa: E402

from wsss_nb.ground.core import UserError  # noqa: E402
from wsss_nb.methods.baseline import Network  # noqa: E402
from wsss_nb.run.folder import Run, read_log  # noqa: E402
from wsss_nb.run.loop import LossStep, Trainer  # noqa: E402

ITERS = 8
ARGV = ("wsss-run", "baseline", "--data", "scenes", "--out", "out", "--stages", "train", *TINY, f"iters={ITERS}",
        "save_every=2", "log_every=1", "val_every=6")


@dataclass
class Row:
    "A failure"
    happens: str                         # in words
    says: str                            # on standard error, <words> stand for anything; empty: nothing
    left: str                            # what is there afterwards, and what to do
    # tools of the test -> (status, standard error); tools: `call`, `patch` (monkeypatch), `at` (see there)
    make: Callable
    status: int = 2                      # of the command
    mend: Callable = lambda: None        # before the run goes on
    more: tuple = ()                     # options of the command that goes on
    goes_on: bool = True                 # does it?


class Tools:
    "What a row makes its failure with"
    def __init__(self, call, patch): self.call, self.patch = call, patch
    def at(self, step, do, owner=Trainer, name="one_step"):
        "Run the command; when training comes to a step, `do()` first, once"
        inner, done = getattr(owner, name), []
        def outer(it, *args):
            if (it.step if owner is Trainer else args[-1]) == step and not done:
                done.append(1)
                do()
            return inner(it, *args)
        self.patch.setattr(owner, name, outer)
    def train(self, *more, argv=ARGV):
        "Return status and standard error of the run"
        return self.call(*argv, *more)[::2]


# %% How each is made
def steps_logged():
    "How far a run is by its log, which it may be writing just now"
    try: return max((int(r["step"]) for r in read_log(Run("out").log)), default=0)
    except UserError: return 0

def killed(t):
    process, step = started(*ARGV), random.SystemRandom().randrange(1, ITERS-1)
    while steps_logged() < step: time.sleep(.001)
    process.kill()
    return process.wait(), process.communicate()[1]

def stopped(t):
    t.at(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    return t.train()

def full_disk(t):
    "A limit on the size of files stands for the disk; the log is small, a checkpoint is not"
    status, _, err = run(*ARGV, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)))
    return status, err

def raises(error):
    def raise_it(): raise error
    return raise_it

def no_memory(t):
    t.at(5, raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n"
                                          "GPU 0 has a total capacity of 7.79 GiB")),
         LossStep, "forward")
    return t.train()

def no_number(t):
    losses = Network.training_losses
    def spoil(network, batch, step):
        return {k: (w, v*float("nan") if step == 5 and k == "seg" else v)
                for k, (w, v) in losses(network, batch, step).items()}
    t.patch.setattr(Network, "training_losses", spoil)
    return t.train()

def loader_killed(t):
    """Torch hears of it at once, by a signal, or may later notice that nobody is there, and says it otherwise

    The nap lets it hear."""
    t.at(5, lambda: ([os.kill(p.pid, signal.SIGKILL) for p in multiprocessing.active_children()], time.sleep(5)))
    return t.train("workers=1")

def image_vanishes(t):
    t.at(4, lambda: move_images("scenes/JPEGImages", "elsewhere"))
    return t.train()

def move_images(here, there):
    Path(there).mkdir(exist_ok=True)
    for p in Path(here).glob("train_*"): p.rename(Path(there)/p.name)

def second_run(t):
    first = started(*ARGV, "iters=5000")
    try:
        while not read_log(Run("out").log): time.sleep(.01)
        t.patch.setattr(Trainer, "one_step", raises(AssertionError("two runs train in one folder")))
        return t.train("iters=5000", "--resume")
    finally:
        first.terminate() # not killed: a file that it is just writing becomes whole
        first.communicate()

def checkpoint_torn(t):
    stopped(t)
    last = Run("out").last
    last.write_bytes(last.read_bytes()[:1000])
    return t.train("--resume")

def log_unwritable(t):
    def replace():
        Run("out").log.rename("log_until_here.csv")
        Run("out").log.mkdir()
    t.at(5, replace)
    return t.train()

def log_again():
    Run("out").log.rmdir()
    Path("log_until_here.csv").rename(Run("out").log)

def folder_closed(t):
    t.patch.setattr(Path, "mkdir", lambda *a, **kw: raises(OSError(30, os.strerror(30)))())
    return t.train()

def clock_back(t):
    "The clock loses an hour whenever it is looked at, and the files of a first part are from tomorrow"
    status, err = t.train()
    for p in Path("out").rglob("*"): os.utime(p, (time.time()+86400,)*2)
    now, looks = time.time, []
    t.patch.setattr(time, "time", lambda: looks.append(1) or now()-3600*len(looks))
    return status, err

def other_locale(t):
    """Commas in numbers, another alphabet's encoding, the other side of the date line, in a process that obeys its
    surroundings"""
    made = (subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", "locales/de_DE.UTF-8"], capture_output=True)
            if Path("locales").mkdir() is None and shutil.which("localedef") else None)
    name = "de_DE.UTF-8" if made and Path("locales/de_DE.UTF-8").exists() else "C"
    script = ("import locale,sys; locale.setlocale(locale.LC_ALL, ''); "
              f"assert {name == 'C'} or locale.localeconv()['decimal_point'] == ','; "
              "from wsss_nb.use.cli import main; sys.exit(main(sys.argv[1:]))")
    env = (os.environ | {"LOCPATH": os.path.abspath("locales"), "LC_ALL": name, "LANG": name,
                         "TZ": "Pacific/Kiritimati", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    done = subprocess.run([sys.executable, "-c", script, *map(str, ARGV)], capture_output=True, text=True,
                          env=env, timeout=120)
    return done.returncode, done.stderr


# %% The table
ROWS = {r.happens: r for r in (
    Row("the process is killed (SIGKILL, power cut) at any moment", "",
        "All up to the last checkpoint (`save_every`); files are whole or absent. `--resume` goes on and ends with the "
        "same weights, bit for bit (on a CPU, with as many threads). `python tests/kills.py` tries it.", killed,
        -signal.SIGKILL),
    Row("Ctrl-C, or SIGTERM from a cluster that wants its machine back",
        "wsss-run: stopped; what is written stays, and a run goes on with --resume",
        "A checkpoint of the step at which it happened. A second Ctrl-C acts at once. `--resume` goes on.",
        stopped, 130),
    Row("the disk is full",
        "wsss-run: out/checkpoints/last.pt: cannot be written (is the disk full? <why>); what was there before is "
        "untouched", "The checkpoint before. Make room; `--resume` goes on.", full_disk),
    Row("memory is not enough for a step",
        "wsss-run: out, step <n>: out of memory; try fewer images per step (--set batch_size=...), or smaller pieces "
        "of them (--set crop_size=...), into another --out",
        "The last checkpoint. With other settings it is another run. Where a method has the setting `accumulate`, it "
        "is named too: a batch in parts needs less memory and is the same batch.", no_memory),
    Row("a loss is no number",
        "wsss-run: loss 'seg' is nan at step <n> (images <ids>); the weights before this step are saved: look at these "
        "images, or train with a lower rate (--set lr=...) into another --out",
        "A checkpoint of the step before.", no_number),
    Row("a process that loads images is killed",
        "wsss-run: out, step <n>: a process that loads images died (DataLoader worker (<which>) is killed by signal: "
        "Killed), most likely for lack of memory; go on from the last checkpoint with --resume, if need be with fewer "
        "(--set workers=1)",
        "The last checkpoint. The number of loader processes changes nothing that comes out, so a run may go on with "
        "another.", loader_killed, more=("--set", "workers=0")),
    Row("an image vanishes in the middle of an epoch",
        "wsss-run: scenes/JPEGImages/<file>: no such file; check the path and the list that names it",
        "A checkpoint of the step before. Bring the image back; `--resume` goes on.", image_vanishes,
        mend=lambda: move_images("elsewhere", "scenes/JPEGImages")),
    Row("a second run is started in the same folder",
        "wsss-run: out: another run works in it (process <n> on <host>); wait until it has ended, or choose another "
        "--out", "The first run, which notices nothing. If its process dies, the folder is free at once.", second_run,
        goes_on=False),
    Row("the last checkpoint is torn or gone (a disk, a copy that broke off)",
        "out/checkpoints/last.pt: not a readable checkpoint (<why>); going on from step <n>, which previous.pt holds",
        "The checkpoint before it, which is kept until the next one is whole; the run goes on from there by itself.",
        checkpoint_torn, 0),
    Row("the log cannot be written any more",
        "wsss-run: out/log.csv: cannot be written (Is a directory); mend that and go on with --resume",
        "A checkpoint of the step at which it happened.", log_unwritable, mend=log_again),
    Row("the run folder cannot be made",
        "wsss-run: out: cannot be written (Read-only file system); choose another folder or mend its permissions",
        "Nothing, before any work is done.", folder_closed),
    Row("the clock is set back, or files come from the future", "",
        "Nothing depends on the time of day: steps count, and durations are taken from a clock that only goes forward.",
        clock_back, 0),
    Row("another locale (commas in numbers, no UTF-8) or time zone", "", "The same files, to the last digit.",
        other_locale, 0))}


def matches(says, err):
    "Is this what a row says?"
    return re.fullmatch(".+?".join(map(re.escape, re.split(r"<\w+>", says+"\n"*bool(says)))), err, re.S) is not None

def page():
    "Return the table as the notebook shows it"
    head = ("## What happens, what is said, what is left\n\nEach row is made to happen by the tests "
            "(`pytest tests/failures`), which also compare this table with what the commands print.\n\n"
            "| What happens | What `wsss-run` says | What is left, and how it goes on |\n|---|---|---|\n")
    def code(s): return f"`{s.removeprefix('wsss-run: ')}`" if s else "nothing"
    return head+"\n".join(f"| {r.happens[0].upper()+r.happens[1:]} | {code(r.says)} | {r.left} |"
                          for r in ROWS.values())

NOTEBOOK, CELL = ROOT/"nbs"/"10_ground"/"60_failures.ipynb", "6fa1000b"

def cell(): return next(c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["id"] == CELL)

if __name__ == "__main__":
    nb = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    next(c for c in nb["cells"] if c["id"] == CELL)["source"] = page().splitlines(keepends=True)
    NOTEBOOK.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+"\n", encoding="utf-8")
