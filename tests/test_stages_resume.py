"A method with several stages: killed by SIGKILL in the middle of every one of them and resumed, it leaves the same files and numbers as undisturbed; each stage runs alone."
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from commands import STAGED, run
from wsss_nb.ground.io import read_cam, read_label
from wsss_nb.methods.i2crc import METHOD
from wsss_nb.run.folder import Run, load_checkpoint, read_log

STAGES = METHOD.stage_names()[:-1]  # all but the evaluation
SETTINGS = (*STAGED["i2crc"], "saliency=rbd")
FOLDERS = {"saliency": "saliency", "seeds": "cams", "pseudo-labels": "labels", "predict-train": "predictions_train", "refine-labels": "labels_refined", "evaluate": "predictions"}
TRAININGS = ("classify", "segment", "segment-again")

# One process imports everything, then forks for each attempt, so that an attempt costs no start. An attempt ends by SIGKILL: a training before its fourth step,
# another stage before its third file gets its name, which leaves half of it under a temporary one.
HARNESS = """
import json, os, signal, sys
from pathlib import Path
from wsss_nb.use.cli import main
import accelerate, timm, torch.utils.tensorboard, wsss_nb.use.experiment, wsss_nb.methods.i2crc
from wsss_nb.run.loop import Trainer
out, folders, attempts, argv = (json.loads(a) for a in sys.argv[1:])

def die(): os.kill(os.getpid(), signal.SIGKILL)

def arm(stage):
    step, rename, count = Trainer.one_step, Path.replace, [0]
    def one_step(self, batch): return die() if self.run.stage == stage and self.step == 3 else step(self, batch)
    def replace(self, target):
        if Path(target).parent.name == folders.get(stage) and (count.append(0) or len(count)) > 3: die()
        return rename(self, target)
    Trainer.one_step, Path.replace = one_step, replace

def files(): return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in Path(out).rglob("*") if p.is_file()}
told = []
for stage in attempts:
    child = os.fork()
    if not child:
        if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        if stage: arm(stage)
        os.dup2(2, 1)
        os._exit(main([*argv, *(["--resume"] if told else [])]))
    told.append([stage, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), files()])
print(json.dumps(told))
"""


def attempts(scenes, out, stages):
    "Run and be killed in each of `stages` in turn (None: not at all); return (stage, status, files and their times) of each attempt"
    argv = ["wsss-run", "i2crc", "--data", str(scenes), "--out", str(out), *SETTINGS]
    done = subprocess.run([sys.executable, "-c", HARNESS, *map(json.dumps, (str(out), FOLDERS, stages, argv))], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("stages")/"undisturbed"
    ((_, status, _),), err = attempts(scenes, out, [None])
    assert status == 0, err
    return out


def assert_equal_runs(out, other):
    for folder in {*FOLDERS.values(), "predictions_crf"}:
        names = sorted(p.name for p in (out/folder).iterdir())
        assert names == sorted(p.name for p in (other/folder).iterdir()) and names
        for name in names:
            a, b = (out/folder/name, other/folder/name)
            if folder == "cams": assert all(np.array_equal(x, y) for x, y in zip(read_cam(a), read_cam(b), strict=True))
            else: assert a.read_bytes() == b.read_bytes(), a
    for stage in TRAININGS:
        a, b = (load_checkpoint(Run(o, stage)) for o in (out, other))
        assert a["step"] == b["step"] == 4
        for k in a["model"]: assert torch.equal(a["model"][k], b["model"][k]), (stage, k)
        for i, moments in a["optimizer"]["state"].items(): assert torch.equal(moments["momentum_buffer"], b["optimizer"]["state"][i]["momentum_buffer"])
        logs = [[{k: v for k, v in r.items() if k != "images_per_second"} for r in read_log(Run(o, stage).log)] for o in (out, other)]
        assert logs[0] == logs[1] and [r["step"] for r in logs[0]] == [1, 2, 3, 4]
    a, b = (json.loads((o/"result.json").read_text()) for o in (out, other))
    for k in ("miou", "iou", "coverage", "scored", "config_hash", "images", "saliency"): assert a[k] == b[k], k
    assert a["seconds"].keys() == b["seconds"].keys() and a["stage_memory_mb"].keys() == b["stage_memory_mb"].keys()


def test_killed_in_every_stage(scenes, undisturbed, tmp_path):
    out, stages = tmp_path/"out", [*STAGES, "evaluate"]
    told, err = attempts(scenes, out, [*stages, None])
    assert [(stage, status) for stage, status, _ in told] == [*((s, -signal.SIGKILL) for s in stages), (None, 0)], err
    for (stage, _, files), (_, _, later) in zip(told, told[1:]):
        there = {name for name in files if "/" in name and not name.split("/")[-1].startswith(".") and name.split("/")[0] in FOLDERS.values()}
        if stage in FOLDERS:
            assert sum(n.startswith(f"{FOLDERS[stage]}/") for n in there) == 2 and any(n.startswith(f"{FOLDERS[stage]}/.") for n in files), "it was killed while it wrote the third file"
        for name in there: assert later[name] == files[name], f"{name} was whole, and was made again after the kill in {stage}"
    assert not [p for p in out.rglob(".*") if p.is_file()]
    assert_equal_runs(out, undisturbed)


def test_one_stage_at_a_time(call, scenes, undisturbed, tmp_path):
    "In any number of commands, with settings given once; a stage that comes too early says which is missing"
    out = tmp_path/"out"
    argv = ("wsss-run", "i2crc", "--data", scenes, "--out", out)
    status, printed, err = call(*argv, *SETTINGS, "--stages", "seeds")
    assert status == 2 and "stage seeds needs checkpoints/classify, which stage classify makes and has not finished here; run it first (--stages classify,seeds)" in err
    assert call(*argv, "--stages", "saliency", *SETTINGS, "--resume")[::2] == (0, "")
    for stage in (*STAGES[1:3], "evaluate"): assert call(*argv, "--stages", stage)[::2] == (0, "")
    result = json.loads((out/"result.json").read_text())
    assert result["miou"].keys() == {"seed"} and result["scored"]["seed"] == {"split": "train", "images": 12, "image_labels": True}
    status, printed, err = call(*argv, "--stages", "segment,pseudo-labels")  # in the method's order, whatever that of the option
    assert (status, err) == (0, "") and "finished: saliency, classify, seeds, pseudo-labels, segment" not in printed and "seed" in printed
    for bad, words in ((("--stages", "seeed"), "did you mean"), (("--stages", "seeds", "--set", "bg_thresh=0.5"), "begun with other settings (bg_thresh: 0.3 -> 0.5)"),
                       (("--stages", "seeds", "--backbone", "resnet50"), "backbone=unet_toy, not backbone=resnet50"), ((), "holds a run already; continue it with --resume")):
        status, printed, err = call(*argv, *bad)
        assert status == 2 and words in err and len(err.splitlines()) == 1, err
    assert call(*argv, "--stages", "predict-train,refine-labels,segment-again,evaluate")[::2] == (0, "")
    assert {k: v for k, v in json.loads((out/"result.json").read_text())["miou"].items()}.keys() == {"seed", "pseudo_label", "refined_label", "prediction", "prediction_crf"}
    for stage in TRAININGS: assert load_checkpoint(Run(out, stage))["step"] == 4
    for name in sorted(p.name for p in (out/"labels").iterdir()): assert np.array_equal(read_label(out/"labels"/name), read_label(undisturbed/"labels"/name))


def test_result(undisturbed):
    "What others read: every stage with its time and memory, every product with the split it was scored on, and where the saliency is from"
    result = json.loads((undisturbed/"result.json").read_text())
    assert list(result["seconds"])[:len(STAGES)] == list(STAGES) and result["stage_memory_mb"].keys() == {*STAGES, "evaluate"}
    assert result["peak_memory_mb"] == max(result["stage_memory_mb"].values()) and min(result["seconds"].values()) >= 0
    assert list(result["miou"]) == ["seed", "pseudo_label", "refined_label", "prediction", "prediction_crf"]
    assert {k: (s["split"], s["image_labels"]) for k, s in result["scored"].items()} == {"seed": ("train", True), "pseudo_label": ("train", True), "refined_label": ("train", True),
                                                                                           "prediction": ("val", False), "prediction_crf": ("val", False)}
    assert result["saliency"] == "made with rbd from the images alone" and result["supervision"] == "labels and saliency"
    assert result["coverage"].keys() == {"seed", "pseudo_label", "refined_label"} and result["coverage"]["seed"] == 1
    html = (undisturbed/"report"/"index.html").read_text()
    assert "refined label" in html and "of the pixels were decided" in html


def test_predict(call, scenes, undisturbed, tmp_path):
    "A finished run segments new photos with its last segmenter; another checkpoint of it when named"
    photos = sorted((scenes/"JPEGImages").glob("val_*"))[:2]
    for source, name in ((undisturbed, "last"), (undisturbed/"checkpoints"/"segment-again"/"last.pt", "named"), (undisturbed/"checkpoints"/"segment"/"last.pt", "first")):
        assert call("wsss-predict", source, *photos, "--out", tmp_path/name, "--crf")[::2] == (0, "")
    for p in photos:
        last, named = (read_label(tmp_path/k/f"{p.stem}.png") for k in ("last", "named"))
        assert np.array_equal(last, named) and np.array_equal(last, read_label(undisturbed/"predictions_crf"/f"{p.stem}.png"))
    status, _, err = call("wsss-predict", undisturbed/"checkpoints"/"classify"/"last.pt", photos[0], "--out", tmp_path/"none")
    assert status == 2 and "of another architecture" in err


def test_without_saliency(call, scenes, fails, tmp_path):
    "A dataset without maps is refused before anything is written; without saliency all stages run, and the result says so"
    bare = tmp_path/"bare"
    shutil.copytree(scenes, bare, ignore=shutil.ignore_patterns("Saliency"))
    settings = [s.replace("saliency=rbd", "saliency=dataset") for s in SETTINGS]
    assert "wsss-data saliency" in fails("wsss-run", "i2crc", "--data", bare, "--out", tmp_path/"out", *settings) and not (tmp_path/"out").exists()
    settings = [s.replace("saliency=rbd", "saliency=none") for s in SETTINGS]
    assert call("wsss-run", "i2crc", "--data", bare, "--out", tmp_path/"out", *settings)[::2] == (0, "")
    result = json.loads((tmp_path/"out"/"result.json").read_text())
    assert (result["saliency"], result["supervision"]) == ("none", "labels") and "saliency" not in result["seconds"] and not (tmp_path/"out"/"saliency").exists()
    assert "fg" not in read_log(Run(tmp_path/"out", "classify").log)[-1]


def test_saliency_command(fails, scenes, tmp_path):
    "The maps of a folder by the installed command, on all cores; called again there is nothing to do"
    bare = tmp_path/"bare"
    shutil.copytree(scenes, bare, ignore=shutil.ignore_patterns("Saliency"))
    status, printed, err = run("wsss-data", "saliency", bare)
    assert (status, err) == (0, "") and f"{len(list((bare/'JPEGImages').iterdir()))} maps made with rbd" in printed
    status, printed, err = run("wsss-data", "saliency", bare)
    assert (status, err) == (0, "") and " 0 maps made with rbd" in printed
    assert "did you mean rbd?" in fails("wsss-data", "saliency", bare, "--provider", "rdb")
    assert "unknown origin" in fails("wsss-data", "saliency", scenes)


def test_two_processes_share_the_work(scenes, undisturbed, tmp_path):
    "Launched by torchrun, each makes a part of the files of every stage; together they are those of one process, and the result is written once"
    out = tmp_path/"out"
    shutil.copytree(undisturbed, out)
    again = [s for s in STAGES if s in FOLDERS and s != "saliency"]+["evaluate"]
    for stage in again: shutil.rmtree(out/FOLDERS[stage])
    shutil.rmtree(out/"predictions_crf")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "wsss_nb.cli", "i2crc", "--data", str(scenes), "--out", str(out), "--stages", ",".join(again)],
                          capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert_equal_runs(out, undisturbed)
