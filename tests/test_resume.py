"A run that was stopped or killed, in training or in evaluation, goes on and ends where an undisturbed one does."
import json
import os
import shutil
import signal
import time

import pytest
import torch

from commands import SMALL, STAGED, TINY, run, started
from wsss_nb.run.folder import Run, load_checkpoint, read_log, read_result
from wsss_nb.run.loop import Trainer
from wsss_nb.use.names import METHODS

ITERS = 42
SETTINGS = ("baseline", *TINY, f"iters={ITERS}", "seg_start=10", "warmup_iter=5", "save_every=5", "log_every=3", "val_every=20", "val_split=test")
STOPPED = "wsss-run: stopped; what is written stays, and a run goes on with --resume\n"


def steps(out): return [int(r["step"]) for r in read_log(Run(out).log)]
def finished(out):
    "Return when the files of each image were written, of the images that have them all"
    files = {p.stem: [Run(out).file(k, p.stem) for k in ("cams", "labels", "predictions")] for p in (out/"predictions").glob("[!.]*")}
    return {i: [p.stat().st_mtime_ns for p in three] for i,three in files.items() if all(p.exists() for p in three)}

def disturb(process, when, kind, group=False):
    "Send a signal as soon as `when()` holds; return status and standard error of the process that this test started"
    end = time.monotonic()+100
    while not when():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(.002)
    os.killpg(process.pid, kind) if group else process.send_signal(kind)
    _,err = process.communicate(timeout=60)
    return process.returncode,err


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")/"undisturbed"
    status,_,err = run("wsss-run", *SETTINGS, "--data", scenes, "--out", out)
    assert (status, err) == (0, "")
    return out

def assert_equal_runs(out, other, losses_may_differ):
    "The same weights, the same log with each step once, the same scores. A line holds means since the line before it: after a stop between two lines one of them covers fewer steps"
    a,b = (load_checkpoint(Run(o)) for o in (out, other))
    assert a["step"] == b["step"] == ITERS and a["model"].keys() == b["model"].keys()
    for k in a["model"]: assert torch.equal(a["model"][k], b["model"][k]), k
    for i,moments in a["optimizer"]["state"].items():
        for k,v in moments.items(): assert torch.equal(torch.as_tensor(v), torch.as_tensor(b["optimizer"]["state"][i][k])), (i, k)
    assert steps(out) == steps(other) and len(set(steps(out))) == len(steps(out))
    logs = [[{k: v for k,v in r.items() if k != "images_per_second"} for r in read_log(Run(o).log)] for o in (out, other)]
    assert sum(r != s for r,s in zip(*logs, strict=True)) <= losses_may_differ, logs
    assert all(r["step"] == s["step"] and r.keys() == s.keys() and r.get("val_prediction") == s.get("val_prediction") for r,s in zip(*logs, strict=True))
    a,b = (json.loads(Run(o).result.read_text()) for o in (out, other))
    assert a["miou"] == b["miou"] and a["iou"] == b["iou"] and a["config_hash"] == b["config_hash"]


def goes_on(call, scenes, out, kind, status):
    "Disturb a run in training and again in evaluation, then let it end"
    argv = ("wsss-run", *SETTINGS, "--data", scenes, "--out", out)
    told = disturb(started(*argv), lambda: max(steps(out), default=0) >= 15, kind)
    assert told == (status, STOPPED if status > 0 else "")
    step = load_checkpoint(Run(out))["step"]
    assert step < ITERS and (step % 5 == 0 or status > 0) and not {"seconds", "miou"} & read_result(Run(out).result).keys()
    told = disturb(started(*argv, "--resume"), lambda: len(finished(out)) >= 2, kind)
    assert told == (status, STOPPED if status > 0 else "")
    assert load_checkpoint(Run(out))["step"] == ITERS
    before = finished(out)
    assert 2 <= len(before) < 24 and "miou" not in json.loads(Run(out).result.read_text())
    (Run(out).checkpoints/".last.0123456789abcdef.pt").touch()  # what a kill in the middle of a write leaves
    code,printed,err = call(*argv, "--resume")
    assert (code, err) == (0, "") and "mean" in printed
    after = finished(out)
    assert len(after) == 24 and {i: after[i] for i in before} == before, "finished images were computed again"
    assert not [p for p in out.glob("*/.*")]


@pytest.mark.parametrize("kind,status", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["SIGINT", "SIGKILL"])
def test_goes_on(call, scenes, undisturbed, tmp_path, kind, status):
    goes_on(call, scenes, tmp_path/"out", kind, status)
    assert_equal_runs(tmp_path/"out", undisturbed, losses_may_differ=int(status > 0))


def test_killed_before_the_first_checkpoint(call, scenes, undisturbed, tmp_path):
    "There is nothing to go on with but the settings: it begins again, and ends the same"
    out = tmp_path/"out"
    out.mkdir()
    shutil.copy(undisturbed/"config.toml", out)
    (out/"log.csv").write_text("".join((undisturbed/"log.csv").read_text().splitlines(keepends=True)[:3])+"9,0.00")  # killed while writing a line
    assert call("wsss-run", *SETTINGS, "--data", scenes, "--out", out, "--stages", "train", "--resume")[::2] == (0, "")
    for k,v in load_checkpoint(Run(out))["model"].items(): assert torch.equal(v, load_checkpoint(Run(undisturbed))["model"][k])
    assert steps(out) == steps(undisturbed)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_or_cluster_stops_the_loader_too(scenes, tmp_path, kind):
    "The signal reaches the processes that load images as well: still one line, a checkpoint of a whole step, and nobody left behind"
    out = tmp_path/"out"
    process = started("wsss-run", *SETTINGS, "workers=1", "iters=2000", "val_every=5000", "--data", scenes, "--out", out, "--stages", "train", start_new_session=True)
    status,err = disturb(process, lambda: max(steps(out), default=0) >= 12, kind, group=True)
    assert (status, err) == (130, STOPPED)
    assert load_checkpoint(Run(out))["step"] >= 12
    with pytest.raises(ProcessLookupError): os.killpg(process.pid, 0)


def test_a_finished_run_is_not_touched(call, scenes, undisturbed, tmp_path):
    "Resumed once more it computes nothing and says the same"
    out = tmp_path/"out"
    shutil.copytree(undisturbed, out)
    before,weights = finished(out),Run(out).last.stat().st_mtime_ns
    status,printed,err = call("wsss-run", *SETTINGS, "--data", scenes, "--out", out, "--resume")
    assert (status, err) == (0, "") and "mean" in printed
    assert finished(out) == before and Run(out).last.stat().st_mtime_ns == weights


@pytest.mark.parametrize("name", [m for m in METHODS if m != "baseline" and m not in STAGED])
def test_every_method_goes_on(call, scenes, tmp_path, name):
    "Stopped before, at and after the steps where terms begin, a run ends with the weights of one that was not (of several stages: `test_stages_resume`)"
    settings = (*TINY, *SMALL.get(name, ()), "iters=6", "seg_start=2", "save_every=1", "log_every=1")
    def weights(out): return load_checkpoint(Run(out))["model"]
    def train(out, *more): assert call("wsss-run", name, *settings, "--data", scenes, "--out", out, "--stages", "train", *more)[::2] == (0, "")
    train(tmp_path/"whole")
    for k in (1, 4):
        out = tmp_path/f"from_{k}"
        def one_step(self, batch, step=Trainer.one_step):
            if self.step == k: raise KeyboardInterrupt
            return step(self, batch)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(Trainer, "one_step", one_step)
            assert call("wsss-run", name, *settings, "--data", scenes, "--out", out, "--stages", "train")[0] == 130
        assert load_checkpoint(Run(out))["step"] == k
        train(out, "--resume")
        for tensor,v in weights(tmp_path/"whole").items(): assert torch.equal(v, weights(out)[tensor]), (k, tensor)
    losses = set(read_log(Run(tmp_path/"whole").log)[-1])
    assert losses >= {"cls", "seg"}
