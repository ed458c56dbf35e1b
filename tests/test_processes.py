"""Two processes with half a batch each do what one does with the whole: the same losses, the same weights, one run folder, one word when something is wrong.

Trained with SGD: AdamW divides a gradient by its own size, so where the gradient is zero but for rounding (the biases of attention keys, for one) it makes whole steps of what is rounding."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from commands import SMALL, STAGED, TINY
from wsss_nb.use.cli import main
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import epoch_order
from wsss_nb.run.folder import Run, load_checkpoint, read_log
from wsss_nb.run.loop import Trainer

ADAMW = "WSSS_TEST_ADAMW"  # set: let the harness train as users do
SHORT = "WSSS_TEST_SHORT"  # the process that finds memory short in its third step
HARNESS = f"""
import atexit, gc, json, os, sys
atexit.register(gc.freeze)  # called last: looking through all that torch holds would take a second at the end
from functools import partial
from pathlib import Path
import torch
import wsss_nb.run.stage
from wsss_nb.use.cli import main
from wsss_nb.run.loop import Trainer
if not os.environ.get("{ADAMW}"): wsss_nb.run.stage.Trainer = partial(Trainer, optimizer=partial(torch.optim.SGD, momentum=.9))
if os.environ.get("{SHORT}") == os.environ["RANK"]:
    loss, calls = torch.nn.functional.multilabel_soft_margin_loss, []
    def short(*a, **kw):
        calls.append(1)
        if len(calls) > 2: raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(*a, **kw)
    torch.nn.functional.multilabel_soft_margin_loss = short
folder, *commands = map(json.loads, sys.argv[1:])
Path(folder, "pid"+os.environ["RANK"]).write_text(str(os.getpid()))
atexit.register(lambda: Path(folder, "end"+os.environ["RANK"]).write_text("connected" if torch.distributed.is_initialized() else "parted"))  # what `join` registers comes before this
for argv in commands:
    if status := main(["wsss-run", *argv]): sys.exit(status)
"""
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
# what makes the toy sizes well conditioned: projections that are not all but zero, a rate that does not blow up
CALM = {"toco": ("proj_hidden=256", "proj_bottleneck=64", "proj_dim=128"), "cpdgl": ("proj_hidden=256",)}
# what has to be the same: drawn crops; a queue, prototypes and a slow copy; batch norm, dropout, drawn places and two views; several trainings in parts of a batch, with files between them
METHODS = ("toco", "cpdgl", "tscd", "i2crc")
STAGES = ("classify", "segment")


def command(name, scenes, out, *more):
    if name in STAGED: return [name, "--data", str(scenes), "--out", str(out), "--stages", "saliency,classify,seeds,pseudo-labels,segment", *STAGED[name], "batch_size=4", "accumulate=2", "scales=0.5", *more]
    return [name, "--data", str(scenes), "--out", str(out), "--stages", "train", *TINY, *SMALL.get(name, ()), *CALM.get(name, ()),
            "lr=0.001", "zero_heads=false", "iters=6", "save_every=100", "log_every=1", "val_every=100", *more]

def launched(folder, *commands, launcher=TORCHRUN, **env):
    "Return the launcher's process, which this test started, of two processes that run the commands one after the other"
    script = folder/"harness.py"
    script.write_text(HARNESS)
    return subprocess.Popen([sys.executable, "-m", *launcher, str(script), json.dumps(str(folder)), *map(json.dumps, commands)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"} | env)

def ended(process, seconds):
    "Return what a launched process printed and complained about; if it does not end, end it and its processes, and fail"
    try: return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher passes it on, and kills who does not listen
        pytest.fail(f"not ended after {seconds} s: {process.communicate()[1]}")

@pytest.fixture
def alone(monkeypatch):
    "Return a function that runs a command in this process, with the harness's optimiser"
    monkeypatch.setattr("wsss_nb.run.stage.Trainer", partial(Trainer, optimizer=partial(torch.optim.SGD, momentum=.9)))
    def alone(argv): assert main(["wsss-run", *argv]) == 0
    return alone

def assert_parity(a, b, stage=None):
    "The same weights and the same losses, to 1e-5 of their size"
    a, b = Run(a, stage), Run(b, stage)
    one, two = load_checkpoint(a)["model"], load_checkpoint(b)["model"]
    for k, v in one.items(): assert (v.double()-two[k].double()).norm() <= 1e-5*v.double().norm(), k
    one, two = read_log(a.log), read_log(b.log)
    assert [r["step"] for r in one] == [r["step"] for r in two] and len(one) >= 4
    for r, s in zip(one, two, strict=True):
        assert r.get("val_on") == s.get("val_on")  # words
        for k in r.keys()-{"images_per_second","val_on"}: assert r[k] == pytest.approx(s[k], rel=1e-5), (r["step"], k)


@pytest.fixture(scope="module")
def pairs(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    process = launched(folder, *(command(m, scenes, folder/m) for m in METHODS))
    out, err = ended(process, 200)
    assert process.returncode == 0, err
    assert "Warning: find_unused" in err or not err, err  # of DDP, for a method whose terms are always on
    return folder, out

@pytest.mark.parametrize("name", METHODS)
def test_as_one(alone, scenes, pairs, tmp_path, name):
    alone(command(name, scenes, tmp_path/name))
    for stage in STAGES if name in STAGED else (None,): assert_parity(tmp_path/name, pairs[0]/name, stage)
    last = read_log(Run(pairs[0]/name, "classify" if name in STAGED else None).log)[-1]
    assert last.keys() >= {"toco": {"ctc","ptc","seg","reg"}, "cpdgl": {"pcl","lcl","ptc","seg","reg"}, "tscd": {"aff","corr","er","seg","reg"}, "i2crc": {"fg","bg","dist"}}[name]

def test_written_once(pairs):
    "One of the two wrote and spoke"
    folder, out = pairs
    for name in METHODS:
        assert len(list((folder/name).rglob("events.out*"))) == (len(STAGES) if name in STAGED else 1)
        assert out.count(f"{folder/name/'result.json'}") == 1
        assert not list((folder/name).rglob(".*"))
    assert json.loads((folder/"toco"/"result.json").read_text())["processes"] == 2

def test_parted_at_the_end(pairs):
    "A process that is still connected when the interpreter goes may abort although its work is done"
    assert [(pairs[0]/f"end{rank}").read_text() for rank in range(2)] == ["parted"]*2


def test_a_mistake_is_told_once(scenes, tmp_path):
    "Only the second process meets the damaged photo: both end, with one line between them and a checkpoint of the step before"
    bad, out = tmp_path/"bad", tmp_path/"out"
    shutil.copytree(scenes, bad)
    data = open_dataset(str(bad), "train")
    photo = next(bad.glob(f"JPEGImages/{data.ids[epoch_order(len(data), 0, 0)[7]]}.*"))  # last of the second batch
    photo.write_bytes(b"no photo")
    process = launched(tmp_path, command("baseline", bad, out), launcher=ACCELERATE)
    _, err = ended(process, 100)
    assert process.returncode and sum(line.startswith("wsss-run: ") for line in err.splitlines()) == 1 and f"{photo.name}: cannot be decoded" in err, err
    assert load_checkpoint(Run(out))["step"] == 1

@pytest.mark.parametrize("name", ("baseline", "i2crc"))
def test_short_of_memory(scenes, tmp_path, name):
    "Only the second process finds memory short, in the middle of a step: it says so, and the other one does not wait for it"
    process = launched(tmp_path, command(name, scenes, tmp_path/"out"), **{SHORT: "1"})
    _, err = ended(process, 100)
    setting = "cls_batch" if name in STAGED else "batch_size"
    assert process.returncode and re.search(rf"^wsss-run: .*step \d: out of memory; try fewer images per step \(--set {setting}=...\)", err, re.M), err
    assert (tmp_path/"end1").read_text() == "connected"  # to part in order it would have had to wait


def test_a_stop_is_agreed_upon(alone, scenes, tmp_path):
    "A signal that reaches the second process alone stops both after the same step; one process goes on alone, and ends where two would"
    out, more = tmp_path/"out", ("iters=40", "save_every=1000", "w_seg=0")  # without pseudo labels, in which one pixel may flip by rounding
    process = launched(tmp_path, command("baseline", scenes, out, *more))
    end = time.monotonic()+100
    while len(read_log(Run(out).log)) < 5:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(.01)
    os.kill(int((tmp_path/"pid1").read_text()), signal.SIGTERM)
    _, err = ended(process, 60)
    assert process.returncode and sum(line.startswith("wsss-run: stopped; ") for line in err.splitlines()) == 1, err
    step = load_checkpoint(Run(out))["step"]
    assert 5 <= step < 40 and [p.name for p in Run(out).checkpoints.iterdir()] == ["last.pt"]
    alone([*command("baseline", scenes, out, *more), "--resume"])
    alone(command("baseline", scenes, tmp_path/"whole", *more))
    assert_parity(tmp_path/"whole", out)


SLURM = {  # what the batch file needs of Slurm
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SAID"; fi',
    "torchrun": 'exec "$PYTHON" -m torch.distributed.run "$@"'}

def test_slurm(scenes, tmp_path):
    "The batch file under a stand-in for Slurm: signalled before its time is over it leaves a checkpoint and asks for another turn; in that it goes on to the end"
    out, said = tmp_path/"out", tmp_path/"said"
    for name, does in SLURM.items():
        (tmp_path/name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path/name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "SAID": str(said), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost",
                        "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    turn = partial(subprocess.Popen, ["bash", str(Path(__file__).parent.parent/"docs"/"slurm.sbatch"), *command("baseline", scenes, out, "iters=30", "w_seg=0")], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process, end = turn(), time.monotonic()+100
    while len(read_log(Run(out).log)) < 5:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(.01)
    process.send_signal(signal.SIGTERM)
    _, err = ended(process, 60)
    assert process.returncode == 0 and said.read_text() == f"requeue {os.getpid()}\n" and err.count("wsss-run: stopped; ") == 1, err
    assert 5 <= load_checkpoint(Run(out))["step"] < 30
    process = turn()
    _, err = ended(process, 100)
    assert process.returncode == 0 and load_checkpoint(Run(out))["step"] == 30 and said.read_text().count("requeue") == 1, err
    assert [r["step"] for r in read_log(Run(out).log)] == list(range(1, 31))
