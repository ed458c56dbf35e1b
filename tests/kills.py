"""SIGKILL at random moments of a toy run of each method, in training or in evaluation; resumed, it has to end as if nothing had happened.

    python tests/kills.py [--kills 20] [--methods all] [--seed 0] [--iters 10] [--json FILE]

A run is killed at a moment drawn evenly from the time that an undisturbed one takes, resumed with --resume, killed again, and so on; when it ends, weights, moments of the optimiser and files of every stage are compared bit for bit with those of
the undisturbed run, and the next one begins, until there were as many kills as asked for and the last run has ended. The script lives among the tests because it takes their settings (`commands.py`) and measures nothing; `test_kills.py` runs
three kills of it. Everything is imported once, then each attempt is a fork of this process: an attempt costs no start, and one thread keeps sums equal.
"""
import contextlib
import json as js
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")

import accelerate  # noqa: E402,F401  (what a run imports late is here before it is forked)
import timm  # noqa: E402,F401
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402,F401
from commands import SMALL, STAGED, TINY  # noqa: E402
from fastcore.script import call_parse  # noqa: E402

import wsss_nb.use.experiment  # noqa: E402,F401
from wsss_nb.use.cli import main as command  # noqa: E402
from wsss_nb.use.names import METHODS, get_method  # noqa: E402


def settings(method, iters):
    "Return the options of a small run of a method that saves at every second step"
    if method == "i2crc": return (*STAGED[method], f"iters={iters}", f"cls_iters={iters}")
    if method == "ktse": return (*STAGED[method], *(f"{part}.iters={iters}" for part in ("ktse", "irn", "beco")))
    if method in STAGED: return (*STAGED[method], f"iters={iters}")
    return (*TINY, *SMALL.get(method, ()), f"iters={iters}", "seg_start=2", "save_every=2", "log_every=1", "val_every=5")


def attempt(argv, after=None):
    "Run a command in a fork, and kill it after so many seconds; return its exit status (-9: killed) and what it took"
    begin, child = time.monotonic(), os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try: status = command(list(argv))
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status), time.monotonic()-begin
        if after is not None and time.monotonic()-begin >= after:
            with contextlib.suppress(ProcessLookupError): os.kill(child, signal.SIGKILL)
        time.sleep(.001)


def same(a, b):
    "Are two values of checkpoints equal, bit for bit?"
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b

def differences(run, other):
    "Return which checkpoints and files of images differ between two run folders"
    def files(root): return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file() and (p.suffix in (".pt", ".safetensors", ".npz") or p.suffix == ".png" and p.parent.name != "report"))
    if files(run) != files(other): return [str(p) for p in set(files(run)) ^ set(files(other))]
    def equal(p):
        if p.suffix == ".pt": return same(*(torch.load(root/p, weights_only=True) for root in (run, other)))
        return (run/p).read_bytes() == (other/p).read_bytes()
    return [str(p) for p in files(run) if not equal(p)]


def torture(method, kills, rng, data, folder, iters):
    "Kill runs of one method; return the row of the table"
    argv = ["wsss-run", method, "--data", str(data), *map(str, settings(method, iters))]
    status, whole = attempt([*argv, "--out", f"{folder}/undisturbed"])
    assert status == 0, f"{method}: the undisturbed run ended with status {status}"
    row, runs = {"method": method, "seconds": round(whole, 1), "kills": 0, "runs": 0, "equal": 0}, 0
    while row["kills"] < kills or status:
        if not status: runs += 1
        again = ["--resume"] if (Path(folder)/f"run_{runs}"/"config.toml").exists() else []
        status, spent = attempt([*argv, "--out", f"{folder}/run_{runs}", *again], rng.uniform(0, whole) if row["kills"] < kills else None)
        assert status in (0, -signal.SIGKILL), f"{method}: an attempt ended with status {status}"
        row["kills"] += status != 0
        if not again and not status: whole = min(whole, spent)  # the machine was busier at first
        if not status:
            found = differences(Path(folder)/f"run_{runs}", Path(folder)/"undisturbed")
            row["runs"], row["equal"] = row["runs"]+1, row["equal"]+(not found)
            if found: print(f"{method}: run {runs} differs in {', '.join(found[:5])}", file=sys.stderr)
    return row


@call_parse
def main(
    kills:int=20,         # of each method
    methods:str="all",    # names, separated by commas
    seed:int=0,           # of the moments
    iters:int=10,         # steps of a run, of each training of it
    json:str=None,        # write the table to this file
):
    "Kill toy runs and compare what they end with"
    torch.set_num_threads(1)
    names = list(METHODS) if methods == "all" else methods.split(",")
    for name in names: get_method(name)
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        data = Path(tmp)/"scenes"
        with contextlib.redirect_stdout(sys.stderr): assert command(["wsss-data", "make-shapes", str(data), "--n", "12", "--size", "64"]) == 0
        ids = data/"ImageSets"/"Segmentation"/"val.txt"
        ids.write_text("".join(ids.read_text().splitlines(keepends=True)[:4]))
        for name in names:
            rows.append(torture(name, kills, random.Random(f"{seed} {name}"), data, f"{tmp}/{name}", iters))
            print(", ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    if json: Path(json).write_text(js.dumps(rows, indent=2)+"\n")
    return sys.exit(any(r["equal"] < r["runs"] for r in rows))
