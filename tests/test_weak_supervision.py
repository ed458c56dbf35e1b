"No pixel label is used in training: masks may be there, spoilt or deleted, the weights are the same bit for bit."
import json
import shutil
import tomllib

import numpy as np
import pytest
import torch

from commands import SMALL, STAGED, TINY
from wsss_nb.data.folder import FolderDataset
from wsss_nb.ground.io import write_label
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.names import METHODS, get_method

WEAK = (*TINY, "iters=6", "seg_start=2", "val_every=2")
FULL = ("--preset", "full", *TINY[2:], "backbone=vit_toy", "aux_layer=-2")  # the preset for comparison, small

SUPERVISION = {"i2crc": "labels and saliency"}  # of methods that are given more than labels

def weights(out): return load_checkpoint(Run(out))["model"]
def result(out): return json.loads((Run(out).result).read_text())
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def guarded(monkeypatch, allowed):
    "Let masks be read of the splits `allowed` only; return the splits whose masks were read"
    seen,load = set(),FolderDataset.load_mask
    def load_mask(self, i):
        seen.add(self.split)
        assert self.split in allowed, f"a mask of split {self.split} was read"
        return load(self, i)
    monkeypatch.setattr(FolderDataset, "load_mask", load_mask)
    return seen


def test_deleting_the_masks_changes_nothing(call, scenes, here):
    for name in ("with", "noise", "without"): shutil.copytree(scenes, here/name)
    for p in (here/"noise"/"SegmentationClass").glob("*.png"):
        write_label(p, np.random.RandomState(0).randint(6, size=(64,64)))
    shutil.rmtree(here/"without"/"SegmentationClass")
    for name in ("with", "noise", "without"):
        assert call("wsss-run", "baseline", "--data", name, "--out", f"out_{name}", *WEAK)[::2] == (0, "")
    assert same(weights("out_with"), weights("out_noise")) and same(weights("out_with"), weights("out_without"))
    assert result("out_with")["miou"] != result("out_noise")["miou"]
    assert not {"miou", "iou", "precision", "recall", "errors"} & result("out_without").keys()
    assert not Run("out_without").best.exists()  # chosen with ground truth, so it is not there
    for kind in ("labels", "predictions"):
        files = sorted((here/"out_with"/kind).iterdir())
        assert files
        for p in files: assert p.read_bytes() == (here/"out_without"/kind/p.name).read_bytes()


@pytest.mark.parametrize("name", [m for m in METHODS if m not in STAGED])
def test_no_method_reads_a_mask_of_a_training_image(call, scenes, here, monkeypatch, name):
    seen = guarded(monkeypatch, allowed=("val",))
    assert call("wsss-run", name, "--data", scenes, "--out", "out", *WEAK, *SMALL.get(name, ()))[::2] == (0, "")
    assert seen == {"val"} and result("out")["supervision"] == "labels" and result("out")["method"] == name


@pytest.mark.parametrize("name", STAGED)
def test_no_stage_before_the_scores_reads_a_mask(call, scenes, here, monkeypatch, name):
    "Labels that a stage made of training images are scored in the end, with their masks; nothing before that sees one"
    *making,last = get_method(name).stage_names()
    with monkeypatch.context() as m:
        guarded(m, allowed=())
        assert last == "evaluate"
        assert (call("wsss-run", name, "--data", scenes, "--out", "out", "--stages", ",".join(making),
                     *STAGED[name])[::2] == (0, ""))
    assert call("wsss-run", name, "--data", scenes, "--out", "out", "--stages", "evaluate")[::2] == (0, "")
    assert result("out")["supervision"] == SUPERVISION.get(name, "labels") and "seed" in result("out")["miou"]


def test_the_weights_do_change(call, scenes, here):
    "The comparison above would notice: other labels give other weights"
    shutil.copytree(scenes, here/"other")
    rows = (here/"other"/"labels.csv").read_text().splitlines()
    (here/"other"/"labels.csv").write_text("\n".join([rows[0], *(f"{r.split(',')[0]},cat" for r in rows[1:])]))
    for name,data in (("a", scenes), ("b", here/"other")):
        assert call("wsss-run", "baseline", "--data", data, "--out", name, "--stages", "train", *WEAK)[0] == 0
    assert not same(weights("a"), weights("b"))


def test_full_supervision_reads_them_and_says_so(call, scenes, here, monkeypatch):
    seen = guarded(monkeypatch, allowed=("train", "val"))
    assert call("wsss-run", "baseline", "--data", scenes, "--out", "out", *FULL)[0] == 0
    assert seen == {"train", "val"} and result("out")["supervision"] == "masks"
    guarded(monkeypatch, allowed=("val",))
    with pytest.raises(AssertionError, match="a mask of split train was read"):
        call("wsss-run", "baseline", "--data", scenes, "--out", "again", *FULL)


def test_full_supervision_needs_masks(fails, scenes, here):
    shutil.copytree(scenes, here/"scenes")
    shutil.rmtree(here/"scenes"/"SegmentationClass")
    assert "no ground-truth masks" in fails("wsss-run", "baseline", "--data", "scenes", "--out", "out", *FULL)


def test_only_the_preset_full_opens_masks(call, scenes, here):
    for name in METHODS:
        method = get_method(name)
        assert method.config().supervision == SUPERVISION.get(name, "labels")
        assert ({p for p,changes in method.presets.items() if changes.get("supervision", "labels") != "labels"}
                <= {"full"})
    assert call("wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages", "train", *WEAK)[0] == 0
    assert tomllib.loads((here/"out"/"config.toml").read_text())["settings"]["supervision"] == "labels"
