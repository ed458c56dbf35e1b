"""`wsss-anatomy`: exact numbers on maps made by hand, runs of all kinds from end to end, what cannot be looked at."""
import json
import os
import shlex
import shutil
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import SMALL, STAGED, TINY, chain
from torchmetrics.functional.classification import binary_average_precision

from wsss_nb.data.core import Item
from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.ground.io import read_cam, read_label, write_image, write_label
from wsss_nb.scores.confusion import ConfusionMatrix, threshold_sweep
from wsss_nb.use.anatomy import (STEPS, THRESHOLDS, Tally, _found_seed, advice, anatomy, anatomy_table,
                                 average_precision, edge_band, full_command, line_up, losses, scores_of_tally)
from wsss_nb.use.cli import main

OF_NETWORK = ["classifier", "cam_found", "cam", "cam_best", "refined", "label", "prediction"]
OF_CHAIN = ["classifier", "cam_found", "cam", "cam_best", "label", "prediction_train", "prediction"]


# %% Maps made by hand
def counted(label, mask, present=(), where=None):
    label, mask = np.asarray(label, np.uint8), np.asarray(mask, np.uint8)
    tally = Tally(4)
    where = label != IGNORE_INDEX if where is None else where
    tally.add(label, mask, edge_band(mask, 1), where, np.array(present, int))
    return tally

STRIP = [[0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2]]  # a picture of one line: objects 1 and 2

@pytest.mark.parametrize("label,reasons,lacking,added", [
    # at the rim of an object that is found
    ([0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2], (1, 0, 0, 0), 0, 0),
    ([0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2], (1, 0, 0, 0), 0, 0),
    # beyond it: one pixel at the rim, two inside
    ([0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 2, 2, 2, 2, 2], (1, 2, 0, 0), 0, 0),
    # missed altogether: its rim is missed as well
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2], (0, 5, 0, 0), 1, 0),
    # called another that is there, and one that is not
    ([0, 0, 0, 0, 2, 2, 2, 2, 2, 0, 0, 2, 2, 2, 2, 2], (0, 0, 0, 5), 1, 0),
    ([0, 0, 0, 0, 3, 3, 3, 3, 3, 0, 0, 2, 2, 2, 2, 2], (0, 0, 0, 5), 1, 1),
    # background taken by an object far away, and by a class that is not there, at the rim of another
    ([2, 2, 0, 0, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2], (0, 0, 2, 0), 0, 0),
    ([0, 0, 0, 3, 1, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2], (0, 0, 1, 0), 0, 1),
    (STRIP[0], (0, 0, 0, 0), 0, 0),
    # undecided pixels count as background
    ([255, 0, 0, 0, 255, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 2], (1, 0, 0, 0), 0, 0)])
def test_every_wrong_pixel_has_one_reason(label, reasons, lacking, added):
    tally = counted([label], STRIP)
    assert tuple(tally.reasons.values()) == reasons and (tally.lacking, tally.added) == (lacking, added)
    shown = np.where(np.array(label) == IGNORE_INDEX, 0, label)
    assert sum(reasons) == (shown != STRIP[0]).sum()
    told = scores_of_tally(tally)
    assert told["miou"] == ConfusionMatrix(4).add(shown, STRIP[0]).miou and told["wrong"] == sum(reasons)/16
    assert (told.get("coverage"), "miou_decided" in told) == ((14/16, True) if 255 in label else (None, False))

def test_pixels_without_truth_do_not_count():
    mask = np.array(STRIP)
    mask[0, :4] = IGNORE_INDEX
    tally = counted([[3, 3, 3, 3, *STRIP[0][4:]]], mask)
    assert (tally.pixels, tally.decided, tally.added, sum(tally.reasons.values())) == (12, 12, 0, 0)

def test_a_class_that_the_labels_name_is_none_too_many():
    "Its object may be too small for the mask, or lie where that is not sure"
    label = [[3, *STRIP[0][1:]]]
    assert [counted(label, STRIP, present).added for present in ((1, 2), (1, 2, 3), ())] == [1, 0, 1]

class Stub:
    "A network whose CAM of class k fills column k"
    config, classes = SimpleNamespace(cam_size=0), ("background", "a", "b", "c")
    def cam(self, images, image_labels):
        maps = torch.zeros(1, 3, *images.shape[-2:])
        for k in image_labels[0].nonzero(): maps[0, k, :, k] = 1
        return maps

@pytest.mark.parametrize("logits,seed", [([1, -1, -1], [1, 0, 0, 0]), ([1, 1, -1], [1, 2, 0, 0]),
                                         ([-1, 1, 1], [0, 2, 3, 0]), ([-1, -1, -1], [0, 0, 0, 0])])
def test_the_seed_of_classes_as_found(logits, seed):
    "Of an image with class a, whose CAM is given; those of others are made"
    item = Item("i", np.zeros((2, 4, 3), np.uint8), np.array([1, 0, 0], np.float32))
    given = np.array([0]), np.zeros((1, 2, 4), np.float32)
    given[1][..., 0] = .9
    assert _found_seed(Stub(), item, given, np.array(logits), .5, "cpu").tolist() == [seed]*2

def test_what_the_label_decides():
    "The sure matrix is of the pixels that are named, whatever the map is"
    where = np.arange(16)[None] >= 8
    told = scores_of_tally(counted(np.zeros((1, 16)), STRIP, where=where))
    assert told["miou_decided"] == ConfusionMatrix(4).add(np.zeros(8, int), STRIP[0][8:]).miou
    assert "coverage" not in told

def test_average_precision_is_that_of_others():
    rng = np.random.RandomState(0)
    for n in (3, 50):
        scores, true = rng.randint(0, 9, n)/10, rng.randint(0, 2, n)
        true[0] = 1
        theirs = binary_average_precision(torch.tensor(scores), torch.tensor(true)).item()
        assert average_precision(scores, true) == pytest.approx(theirs, abs=1e-6)


# %% The sentence
LINES = {"classifier": {"f1": .95}, "cam_found": {"miou": .38}, "cam": {"miou": .5},
         "cam_best": {"miou": .51, "bg_thresh": .3}, "refined": {"miou": .55},
         "label": {"miou": .5, "miou_decided": .7, "coverage": .8},
         "prediction": {"miou": .56, "miou_decided": .69}, "prediction_crf": {"miou": .57}}

@pytest.mark.parametrize("changes,cause,words", [
    ({"classifier": {"f1": .6}}, "classes", "costs the CAM 12.0 points"),
    ({"cam_best": {"miou": .6, "bg_thresh": .2}}, "threshold", "--set bg_thresh=0.2 (this used ground truth"),
    ({"cam_best": {"miou": .54, "bg_thresh": .2}}, "none", "nothing"),  # the refinement has made up for it
    ({"refined": {"miou": .4}}, "refinement", "loses 10.0 points"),
    ({"label": {"miou": .3, "miou_decided": .7, "coverage": .4}}, "coverage", "leave out 60 % of the pixels"),
    ({"prediction": {"miou": .5, "miou_decided": .6}}, "segmenter",
     "10.0 points behind its labels on the pixels that these decide: give it more steps"),
    ({"prediction_crf": {"miou": .5}}, "crf", "the CRF loses 6.0 points"),
    ({"prediction_train": {"miou": .7, "miou_decided": .7}}, "new_images", "14.0 points worse"),
    ({"full": {"miou": .57}}, "full", "true masks would hardly do better"), ({}, "none", "nothing")])
def test_rules(changes, cause, words):
    found = advice(LINES | changes)
    assert found["cause"] == cause and words in found["text"], found
    assert ("lost" in found) == (cause in losses(LINES | changes))

def test_names_are_those_of_the_run(run):
    "What a run's table calls its pseudo label is called so; the one with two thresholds has another name"
    found = anatomy(run, device="cpu")
    lines, miou = at(found), result(run)["miou"]
    named = next(l for l in found["lines"] if l["name"] == "pseudo label")
    assert named["miou"] == miou["pseudo_label"] and named["thresholds"] == [result(run)["thresholds"][
        "background (seed and pseudo label)"]]
    assert lines["label"]["name"] == "label to learn from" and len(lines["label"]["thresholds"]) == 2
    text = anatomy_table(found)
    assert "\npseudo label: with one threshold (" in text and "\nlabel to learn from: with two thresholds (" in text

@pytest.mark.parametrize("images,steps,words", [
    (8, 2, "from 8 images and 2 steps these numbers are noise; an advice needs 10 images (--images) and 50 steps"),
    (1, 50, "from 1 image these"), (10, 1, "from 1 step these"), (10, 50, None)])
def test_no_advice_from_a_tiny_run(images, steps, words):
    found = advice(LINES | {"crf": {"miou": .1}, "prediction_crf": {"miou": .4}}, {"images": images, "steps": steps})
    assert found["cause"] == ("few" if words else "crf") and (words or "the CRF loses") in found["text"]

def test_the_command_tells_of_a_tiny_run(call, run, tmp_path):
    text = call("wsss-anatomy", run, "--out", tmp_path/"a.json")[1]
    assert "Where to work: not to be told: from 8 images and 2 steps these numbers are noise" in text

def test_a_segmenter_that_begins_late():
    told = advice(LINES | {"prediction": {"miou": .1, "miou_decided": .1}}, {"iters": 100, "seg_start": 90})
    assert "begins late (seg_start=90 of iters=100)" in told["text"] and "seg_start=25" in told["text"]

def test_changes_are_differences():
    lines = {l["key"]: l for l in line_up(LINES)}
    assert [*lines] == [k for k in STEPS if k in LINES] and "change" not in lines["classifier"]
    for l in lines.values():
        if "change" in l: assert l["change"] == pytest.approx(l["miou"]-lines[l["against"]]["miou"])
    assert lines["refined"]["against"] == "cam" and lines["prediction"]["against"] == "refined"


# %% Runs
@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    "A run of one network; for reading only"
    out = tmp_path_factory.mktemp("anatomy")/"run"
    assert main(["wsss-run", "baseline", "--data", str(scenes), "--out", str(out), *TINY]) == 0
    return out

@pytest.fixture(scope="module")
def chained(scenes, tmp_path_factory):
    "A chain of three parts; for reading only"
    out = tmp_path_factory.mktemp("anatomy")/"chain"
    words = chain("baseline", "crf", "deeplab")
    assert main(["wsss-run", "baseline+crf+deeplab", "--data", str(scenes), "--out", str(out), *words]) == 0
    return out

def told(out): return json.loads((out/"anatomy.json").read_text())
def at(found): return {l["key"]: l for l in found["lines"]}
def result(out): return json.loads((out/"result.json").read_text())

def test_the_command(call, run, tmp_path):
    out = shutil.copytree(run, tmp_path/"run")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    status, text, err = call("wsss-anatomy", out)
    assert (status, err) == (0, "")
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    page = out/"report"/"index.html"
    assert {p for p in after if before.get(p) != after[p]} == {out/"anatomy.json", page}
    found = told(out)
    assert [*at(found)] == OF_NETWORK and found["images"] == 8 and found["split"] == "val"
    assert all(l["name"] in text for l in found["lines"]) and found["advice"]["text"] in text
    rows = text.splitlines()[2:3+len(found["lines"])]
    assert all(rows[0].index("missed") < 110 and len(r) <= 120 for r in rows)
    assert "    prediction + CRF: the run has no CRF. It is made by wsss-run baseline" in text
    ceiling = "needs a run that learnt from masks, named with --full. It is made by wsss-run baseline"
    assert f"    same segmenter, true masks: {ceiling}" in text
    assert page.read_text().count("<table class=steps>") == 1 and "<small>threshold 0." in page.read_text()
    assert page.read_text().count("<section id=anatomy>") == 1 and "Where to work" in page.read_text()
    miou = result(out)["miou"]
    assert [at(found)[k]["miou"] for k in ("cam", "refined", "prediction")] == [
        miou[k] for k in ("seed", "pseudo_label", "prediction")]
    assert {l["used"] for l in found["lines"]} == {"none", "image labels", "masks"}
    assert at(found)["cam_best"]["used"] == "masks" and any("used ground truth" in s for s in found["ground_truth"])
    assert call(*shlex.split(found["left_out"]["prediction_crf"].partition("; ")[2]))[0] == 0
    assert "prediction_crf" in at(anatomy(out, images=1, device="cpu"))

def test_the_best_threshold_is_that_of_a_sweep(run, scenes):
    found = at(anatomy(run, device="cpu"))["cam_best"]
    ids = [p.stem for p in sorted((run/"cams").iterdir())]
    masks = [read_label(scenes/"SegmentationClass"/f"{i}.png") for i in ids]
    swept = threshold_sweep([read_cam(run/"cams"/f"{i}.npz") for i in ids], masks, 6)
    assert (found["bg_thresh"], found["miou"]) == (swept["bg_thresh"], swept["miou"])
    assert THRESHOLDS == tuple(t for t, _ in swept["curve"])

def test_another_split_and_few_images(call, run, tmp_path):
    status, text, _ = call("wsss-anatomy", run, "--split", "test", "--images", "3", "--out", tmp_path/"a.json")
    found = json.loads((tmp_path/"a.json").read_text())
    assert status == 0 and found["images"] == 3 and {l["split"] for l in found["lines"]} == {"test"}
    assert "3 images of test" in text and not (run/"anatomy.json").exists()

def test_a_crf_and_a_threshold_of_the_last_evaluation(call, run, scenes, tmp_path):
    "What the last evaluation changed counts, and its files are read"
    out = shutil.copytree(run, tmp_path/"run")
    changed = ("--stages", "evaluate", "--set", "crf=toco", "bg_thresh=0.6")
    assert call("wsss-run", "baseline", "--data", scenes, "--out", out, *changed)[0] == 0
    lines, miou = at(anatomy(out, device="cpu")), result(out)["miou"]
    assert [*lines] == [*OF_NETWORK, "prediction_crf"]
    assert (lines["cam"]["miou"], lines["prediction_crf"]["miou"]) == (miou["seed"], miou["prediction_crf"])
    shutil.rmtree(out/"predictions_crf")
    assert at(anatomy(out, device="cpu"))["prediction_crf"]["miou"] == pytest.approx(miou["prediction_crf"], abs=1e-6)

def test_files_of_other_images_are_not_read(run, scenes, tmp_path):
    "Files are read for the images that they were made of; another dataset may have the same names"
    out, other = shutil.copytree(run, tmp_path/"run"), shutil.copytree(scenes, tmp_path/"other")
    for f in (out/"predictions").iterdir(): write_label(f, np.full_like(read_label(f), 1))
    read, made = (at(anatomy(out, d, device="cpu"))["prediction"]["miou"] for d in (None, other))
    assert made == result(run)["miou"]["prediction"] != read

def test_from_another_working_folder(call, scenes, tmp_path, monkeypatch):
    "The data of a run was named from where it was made"
    monkeypatch.chdir(scenes.parent)
    assert call("wsss-run", "baseline", "--data", scenes.name, "--out", tmp_path/"run", *TINY)[0] == 0
    here = anatomy(tmp_path/"run", device="cpu")
    monkeypatch.chdir(tmp_path)
    there = anatomy(tmp_path/"run", device="cpu")
    assert there["data"] == str(scenes.resolve()) and here["data"] == scenes.name
    for a, b in zip(here["lines"], there["lines"]): assert a.get("miou") == pytest.approx(b.get("miou"), abs=1e-3)

def test_old_files_are_not_believed(run, tmp_path):
    out = shutil.copytree(run, tmp_path/"run")
    for f in (out/"predictions").iterdir():
        write_label(f, np.full_like(read_label(f), 1))
        os.utime(f, (1, 1))
    assert at(anatomy(out, device="cpu"))["prediction"]["miou"] == result(run)["miou"]["prediction"]

def test_the_report_keeps_it_until_the_weights_change(call, run, scenes, tmp_path):
    out = shutil.copytree(run, tmp_path/"run")
    assert call("wsss-anatomy", out, "--images", "2")[0] == 0
    page, again = (out/"report"/"index.html").read_text(), ("--data", scenes, "--out", out, "--stages", "evaluate")
    assert call("wsss-run", "baseline", *again)[0] == 0
    assert (out/"report"/"index.html").read_text().count("<section id=anatomy>") == 1 and "Anatomy" in page
    assert call("wsss-run", "baseline", *again, "--set", "bg_thresh=0.6")[0] == 0
    assert "Anatomy" not in (out/"report"/"index.html").read_text()

def test_a_chain(call, chained, tmp_path):
    out = shutil.copytree(chained, tmp_path/"chain")
    status, text, err = call("wsss-anatomy", out)
    assert (status, err) == (0, ""), err
    lines, miou = at(told(out)), result(out)["miou"]
    assert [*lines] == [*OF_CHAIN, *(["prediction_crf"] if "prediction_crf" in miou else [])]
    assert [lines[k]["split"] for k in OF_CHAIN] == ["train"]*6+["val"]
    for ours, theirs in (("cam", "seed"), ("label", "pseudo_label"), ("prediction", "prediction")):
        assert lines[ours]["miou"] == miou[theirs], ours
    assert lines["prediction"]["against"] == "prediction_train" and lines["prediction_train"]["against"] == "label"
    assert "refined" in told(out)["left_out"]
    assert [*at(anatomy(out, split="train", images=2, device="cpu"))] == [
        k for k in lines if k != "prediction_train"]
    assert "pseudo label" not in text.partition("Lines that are not there")[2]  # there is one, under this name
    assert at(told(out))["label"]["name"] == "pseudo label"

def test_a_chain_that_ends_with_labels(call, scenes, tmp_path):
    words = chain("baseline", "none")
    assert call("wsss-run", "baseline+none", "--data", scenes, "--out", tmp_path/"run", *words)[0] == 0
    found = anatomy(tmp_path/"run", images=3, device="cpu")
    assert [*at(found)] == OF_CHAIN[:5] and found["split"] == "train" and found["images"] == 3
    assert "no segmenter" in found["left_out"]["full"] and "prediction" in found["left_out"]

def test_a_method_of_several_stages(call, scenes, tmp_path):
    assert call("wsss-run", "i2crc", "--data", scenes, "--out", tmp_path/"run", *STAGED["i2crc"])[0] == 0
    found = anatomy(tmp_path/"run", images=4, device="cpu")
    assert {"cam", "cam_best", "label", "refined_label", "prediction_train", "prediction"} <= at(found).keys()
    assert "not known here" in found["left_out"]["classifier"]
    command = shlex.split(full_command(tmp_path/"run"))
    assert command[:2] == ["wsss-run", "deeplab"] and str(scenes/"SegmentationClass") in command

@pytest.mark.parametrize("method,lines", [
    ("resnet-cam", {"cam", "cam_best"}),
    ("ktse", {"cam", "cam_best", "label", "prediction_train", "prediction", "prediction_crf"})])
def test_what_a_method_does_not_have_is_left_out(call, scenes, tmp_path, method, lines):
    assert call("wsss-run", method, "--data", scenes, "--out", tmp_path/"run", *STAGED[method])[0] == 0
    status, text, err = call("wsss-anatomy", tmp_path/"run", "--images", 2)
    found = told(tmp_path/"run")
    assert (status, err) == (0, "") and {*at(found)} == lines
    assert {"classifier", "full"} <= found["left_out"].keys()
    assert "    classes in the image: the class scores of this method are not known here" in text

@pytest.mark.parametrize("method", ["toco", "tscd"])
def test_networks_of_other_methods(call, scenes, tmp_path, method):
    "TSCD has a walk of its own; what would train their segmenter on masks is the baseline with their backbone"
    words = [w for w in TINY if not (method == "tscd" and w.startswith("pretrained"))]
    assert call("wsss-run", method, "--data", scenes, "--out", tmp_path/"run", *words, *SMALL[method])[0] == 0
    found, miou = anatomy(tmp_path/"run", device="cpu"), result(tmp_path/"run")["miou"]
    walked = ["walked"] if method == "tscd" else []
    assert [*at(found)] == [*OF_NETWORK[:4], *walked, *OF_NETWORK[4:]]
    if walked: assert at(found)["walked"]["miou"] == miou["random_walk_seed"]
    assert at(found)["refined"]["miou"] == miou["pseudo_label"]
    command = shlex.split(found["left_out"]["full"])
    command[command.index("--out")+1] = str(tmp_path/"full")
    assert command[:2] == ["wsss-run", "baseline"] and call(*command)[::2] == (0, "")
    assert "full" in at(anatomy(tmp_path/"run", full=tmp_path/"full", images=1, device="cpu"))

def test_the_ceiling(call, fails, run, scenes, tmp_path):
    "The command that is told makes a run that is the missing line; run and command are those of this run"
    command = shlex.split(anatomy(run, images=1, device="cpu")["left_out"]["full"])
    assert command[:2] == ["wsss-run", "baseline"] and {"supervision=masks", "iters=2"} <= {*command}
    command[command.index("--out")+1] = str(tmp_path/"full")
    assert call(*command)[0] == 0
    ours, theirs = (tomllib.loads((f/"config.toml").read_text())["settings"] for f in (run, tmp_path/"full"))
    assert theirs == ours | {"supervision": "masks"}  # nothing else, steps that scale with iters included
    found = at(anatomy(run, full=tmp_path/"full", device="cpu"))
    assert found["full"]["miou"] == result(tmp_path/"full")["miou"]["prediction"] and found["full"]["used"] == "masks"
    assert "not from masks" in fails("wsss-anatomy", run, "--full", run)
    assert [*at(anatomy(tmp_path/"full", images=2, device="cpu"))] == ["prediction"]

def test_the_ceiling_of_a_chain(call, chained, tmp_path):
    command = shlex.split(full_command(chained))
    assert command[:2] == ["wsss-run", "deeplab"] and "--labels" in command and "deeplab.iters=4" in command
    command[command.index("--out")+1] = str(tmp_path/"full")
    assert call(*command)[0] == 0
    found = at(anatomy(chained, full=tmp_path/"full", images=2, device="cpu"))
    assert found["full"]["against"] == "prediction"

def test_the_ceiling_of_a_chain_on_scenes_in_memory(call, here):
    "Scenes have no folder of masks: the command writes them first"
    words = chain("baseline", "none", "deeplab")
    assert call("wsss-run", "baseline+none+deeplab", "--data", "shapes:n=12,size=64", "--out", "run", *words)[0] == 0
    first, then = full_command("run").split(" && ")
    assert call(*shlex.split(first))[0] == 0 and call(*shlex.split(then))[0] == 0
    status, _, err = call("wsss-anatomy", "run", "--full", "run_full", "--images", 2)
    assert (status, err) == (0, "") and "full" in at(told(here/"run"))

def test_another_segmenter_is_told(call, chained, scenes, run, tmp_path, capfd):
    command = shlex.split(full_command(run))
    command[command.index("--out")+1] = str(tmp_path/"full")
    assert call(*command)[0] == 0
    assert "another segmenter, its backbone is vit_toy" in call(
        "wsss-anatomy", chained, "--full", tmp_path/"full", "--images", 1, "--out", tmp_path/"a.json")[2]


# %% What cannot be looked at, or is odd
def test_mistakes(fails, run, chained, scenes, tmp_path):
    assert "no such run folder" in fails("wsss-anatomy", tmp_path/"none")
    assert "not a run folder" in fails("wsss-anatomy", scenes)
    assert "must be 1 or more" in fails("wsss-anatomy", run, "--images", "0")
    assert "nowhere" in fails("wsss-anatomy", run, "--split", "nowhere")
    assert "did you mean --images?" in fails("wsss-anatomy", run, "--image", "3")
    other = shutil.copytree(scenes, tmp_path/"other")
    (other/"classes.txt").write_text((scenes/"classes.txt").read_text().replace("cat", "lion"))
    for f in (*other.glob("*.csv"),): f.write_text(f.read_text().replace("cat", "lion"))
    assert "its classes (background, lion" in fails("wsss-anatomy", run, "--data", other)
    assert fails("wsss-anatomy", run, "--full", tmp_path/"none").endswith("no such run folder")

def test_no_masks(fails, call, run, scenes, tmp_path):
    blind = shutil.copytree(scenes, tmp_path/"blind")
    shutil.rmtree(blind/"SegmentationClass")
    assert "split 'val' has no masks" in fails("wsss-anatomy", run, "--data", blind)

def test_not_finished(fails, call, run, chained, tmp_path):
    out = shutil.copytree(run, tmp_path/"run")
    (out/"result.json").write_text(json.dumps(result(out) | {"seconds": {}}))
    assert "is not finished (stage train); go on with it first" in fails("wsss-anatomy", out)
    out = shutil.copytree(chained, tmp_path/"chain")
    kept = {k: v for k, v in result(out)["seconds"].items() if k in ("train", "cams", "labels", "crf-labels")}
    (out/"result.json").write_text(json.dumps(result(out) | {"seconds": kept}))
    found = anatomy(out, images=2, device="cpu")
    assert [*at(found)] == OF_CHAIN[:5] and "not trained" in found["left_out"]["prediction"]

def test_one_class_and_images_without_it(call, tmp_path):
    "Half of the images have nothing in them"
    root, rng = tmp_path/"data", np.random.RandomState(0)
    lists = root/"ImageSets"/"Segmentation"
    lists.mkdir(parents=True)
    (root/"classes.txt").write_text("background\nthing\n")
    rows = ["image,labels"]
    for split in ("train", "val"):
        ids = [f"{split}{k}" for k in range(4)]
        (lists/f"{split}.txt").write_text("\n".join(ids)+"\n")
        for k, i in enumerate(ids):
            mask = np.zeros((64, 64), np.uint8)
            if k%2: mask[10:50, 10:40] = 1
            write_label(root/"SegmentationClass"/f"{i}.png", mask)
            image = rng.randint(0, 99, (64, 64, 3)).astype(np.uint8)+mask[..., None]*150
            write_image(root/"JPEGImages"/f"{i}.png", image)
            rows.append(f"{i},{'thing' if k%2 else ''}")
    (root/"labels.csv").write_text("\n".join(rows)+"\n")
    assert call("wsss-run", "baseline", "--data", root, "--out", tmp_path/"run", *TINY)[0] == 0
    status, text, err = call("wsss-anatomy", tmp_path/"run")
    assert (status, err) == (0, ""), err
    lines = at(told(tmp_path/"run"))
    assert [*lines] == OF_NETWORK and lines["cam"]["images_adding"] == 0 and lines["cam"]["images"] == 4
    assert lines["cam"]["reasons"].get("classes_confused", 0) == 0
