"""Chains from end to end with their commands: parts of several systems joined, files of other projects in front, a run
to go on from, kills in the middle of every stage."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import STAGED, chain, of_longer_runs, run
from PIL import Image
from test_stages_resume import HARNESS

from wsss_nb.data.folder import read_ids
from wsss_nb.ground.io import read_cam, read_label
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.names import get_method

SYSTEMS = {"toco+irn+beco": ("toco", "irn", "beco"), "i2crc+beco": ("i2crc", "beco"),
           "baseline+crf+deeplab": ("baseline", "crf", "deeplab"), "ktse": ("ktse", "irn", "beco")}


def result(out): return json.loads((Path(out)/"result.json").read_text())

def images(scenes): return read_ids(scenes/"ImageSets"/"Segmentation"/"train.txt")


@pytest.fixture(scope="module")
def made(scenes, tmp_path_factory):
    "A run of each system by the installed command, made when it is first asked for; for reading only"
    folder = tmp_path_factory.mktemp("chains")
    def made(name):
        out = folder/name
        if not out.exists():
            status, _, err = run("wsss-run", name, "--data", scenes, "--out", out, *chain(*SYSTEMS[name]))
            assert (status, of_longer_runs(err)) == (0, ""), err
        return out
    return made


@pytest.mark.parametrize("name", SYSTEMS)
def test_from_image_level_labels_to_predictions(made, scenes, call, name, tmp_path):
    out, stages = made(name), [s for s in get_method(name).stage_names() if s != "saliency"]  # the scenes have maps
    told = result(out)
    assert told["method"] == name and [*told["seconds"]][:len(stages)-1] == stages[:-1]
    assert {*told["stage_memory_mb"]} == {*stages} and min(told["stage_memory_mb"].values()) > 0
    assert {"seed", "pseudo_label", "prediction"} <= told["miou"].keys()
    assert {k: (s["split"], s["image_labels"]) for k, s in told["scored"].items() if k != "prediction_crf"} == {
        "seed": ("train", True), "pseudo_label": ("train", True), "prediction": ("val", False)}
    assert told["coverage"].keys() == {"seed", "pseudo_label"}
    for kind in ("cams", "labels"): assert len([*(out/kind).iterdir()]) == len(images(scenes))
    assert "The masks were read to compute the scores, and for nothing else." in told["ground_truth"]
    assert f"{SYSTEMS[name][0]}: background (seed)" in told["thresholds"]
    photo = sorted((scenes/"JPEGImages").glob("val_*"))[0]
    assert call("wsss-predict", out, photo, "--out", tmp_path)[::2] == (0, "")
    assert np.array_equal(read_label(tmp_path/f"{photo.stem}.png"), read_label(out/"predictions"/f"{photo.stem}.png"))


def test_another_segmenter_trains_no_classifier_again(made, scenes, call, tmp_path):
    before = made("baseline+crf+deeplab")
    argv = ("wsss-run", "beco", "--from", before, "--data", scenes, "--out", tmp_path/"out", *chain("beco"))
    assert call(*argv)[::2] == (0, "")
    told, old = result(tmp_path/"out"), result(before)
    assert told["method"] == "baseline+crf+beco" and {*told["taken_over"]} == {"train", "cams", "crf-labels"}
    for k in ("seed", "pseudo_label"): assert told["miou"][k] == old["miou"][k]
    for i in images(scenes):
        assert (tmp_path/"out"/"labels"/f"{i}.png").samefile(before/"labels"/f"{i}.png")
    assert call(*argv, "--resume")[::2] == (0, "")
    again = "wsss-run", "baseline+crf+beco", "--data", scenes, "--out", tmp_path/"out", "--stages", "evaluate"
    assert call(*again)[::2] == (0, "")


def test_single_stage_run_goes_on(trained, scenes, call, tmp_path):
    "A run of one method has no CAMs of training images: they are made from its weights"
    argv = "wsss-run", "walk", "--from", trained[0], "--data", scenes, "--out", tmp_path/"out", *chain("walk")
    assert call(*argv)[::2] == (0, "")
    told = result(tmp_path/"out")
    assert [*told["taken_over"]] == ["train"] and [*told["seconds"]][:3] == ["train", "cams", "walk-labels"]
    assert told["miou"].keys() == {"seed", "pseudo_label"}


@pytest.fixture(scope="module")
def foreign(made, scenes, tmp_path_factory):
    "Folders of CAMs as other projects write them, from those of a run, and of label maps and masks"
    folder, out = tmp_path_factory.mktemp("foreign"), made("baseline+crf+deeplab")
    for name in ("irn", "torch", "seam", "toco", "labels", "masks"): (folder/name).mkdir()
    for i in images(scenes):
        keys, cam = read_cam(out/"cams"/f"{i}.npz")
        np.save(folder/"irn"/f"{i}.npy", {"keys": keys, "cam": cam[:, ::4, ::4], "high_res": cam})
        np.save(folder/"torch"/f"{i}.npy", {"keys": torch.from_numpy(keys), "cam": torch.from_numpy(cam)})
        np.save(folder/"seam"/f"{i}.npy", {int(k): m for k, m in zip(keys, cam, strict=True)})
        every = np.full((1, 6, *cam.shape[1:]), -9, np.float32)
        every[0, 0], every[0, keys+1] = .3, cam
        np.save(folder/"toco"/f"{i}.npy", {"msc_seg": every})
        shutil.copy(out/"labels"/f"{i}.png", folder/"labels")
        shutil.copy(out/"confidence"/f"{i}.png", folder/"masks")
    return folder


@pytest.mark.parametrize("form", ["irn", "torch", "seam", "toco"])
def test_begins_with_cams_of_another_project(foreign, made, scenes, call, form, tmp_path):
    out = tmp_path/"out"
    assert call("wsss-run", "crf+deeplab", "--cams", foreign/form, "--data", scenes, "--out", out,
                *chain("crf", "deeplab"))[::2] == (0, "")
    told = result(out)
    assert [*told["seconds"]][:3] == ["given-cams", "crf-labels", "deeplab"]
    assert any("From files" in s for s in told["ground_truth"])
    if form == "toco": return
    mine = made("baseline+crf+deeplab")
    for i in images(scenes):
        (keys, cam), (old_keys, old) = (read_cam(o/"cams"/f"{i}.npz") for o in (out, mine))
        assert np.array_equal(keys, old_keys) and np.abs(cam-old).max() < 2e-3
        assert (read_label(out/"labels"/f"{i}.png") == read_label(mine/"labels"/f"{i}.png")).mean() > .99


def test_begins_with_labels_and_masks(foreign, scenes, call, fails, tmp_path):
    files = "--labels", foreign/"labels", "--confidence", foreign/"masks"
    argv = "wsss-run", "beco", "--data", scenes, "--out", tmp_path/"out"
    assert call(*argv, *files, *chain("beco"))[::2] == (0, "")
    told = result(tmp_path/"out")
    assert [*told["seconds"]][:3] == ["given-labels", "given-confidence", "beco"]
    assert told["miou"].keys() >= {"pseudo_label", "prediction"} and "seed" not in told["miou"]
    name = images(scenes)[0]
    shutil.copytree(foreign/"masks", tmp_path/"masks")
    ones = np.asarray(read_label(tmp_path/"masks"/f"{name}.png") > 0, np.uint8)
    Image.fromarray(ones).save(tmp_path/"masks"/f"{name}.png")
    argv = "wsss-run", "beco", "--data", scenes, "--out", tmp_path/"again", *files[:3], tmp_path/"masks", *chain("beco")
    assert f"{name}.png: is no mask, it holds 1" in fails(*argv)


MISFITS = {
    ("baseline+deeplab+irn",): "deeplab makes nothing to hand on, and nothing after it reads that; irn asks for cams",
    ("irn+toco",): "irn makes labels, confidence, and nothing after it reads that; toco asks for nothing",
    ("baseline+irn+irn+beco",): "nothing after it reads that; irn asks for cams",
    ("resnet-cam+beco",): "resnet-cam makes cams, and nothing after it reads that; beco asks for labels",
    ("irn+beco",): "nothing in this chain makes cams; give --cams DIR or --from RUN",
    ("deeplab",): "nothing in this chain makes labels; give --labels DIR or --from RUN",
    ("toco+iren+beco",): "did you mean irn?",
    ("toco+irn+beco", "--cams", "files"): "--cams: toco+irn+beco makes its own",
    ("irn+beco", "--cams", "files"): "files: no such folder",
    ("irn+beco", "--from", "nowhere"): "nowhere: no such run folder",
    ("toco+irn+beco", "--set", "irn.lrr=1"): "did you mean irn.lr",
    ("toco+irn+beco", "--set", "lr=1"): "unknown setting 'lr'",
    ("toco+irn+beco", "--set", "beco.crf=toko"): "beco: ",
}

@pytest.mark.parametrize("argv", MISFITS, ids=" ".join)
def test_a_chain_that_does_not_fit_is_one_line(fails, scenes, here, argv):
    line = fails("wsss-run", argv[0], "--data", scenes, "--out", "out", *argv[1:])
    assert MISFITS[argv] in line, line
    assert not (here/"out").exists()


def test_from_says_what_cannot_be_taken(made, scenes, fails, tmp_path):
    before, out = made("toco+irn+beco"), tmp_path/"out"
    argv = "--from", before, "--data", scenes, "--out", out
    assert "toco asks for nothing that a run could give" in fails("wsss-run", "toco+crf", *argv)
    assert "toco is taken from" in fails("wsss-run", "crf+deeplab", *argv, "--set", "toco.bg_thresh=0.1")
    assert "is a run of" not in fails("wsss-run", "deeplab", *argv, "--set", "irn.bg_thresh=0.1")
    assert not out.exists()


def test_a_run_on_other_images_is_not_taken_over(made, scenes, fails, here):
    "The toy scenes of every seed have the same names"
    before = made("baseline+crf+deeplab")
    for n, more in enumerate(((), ("--size", "48"))):
        other = here/f"scenes{n}"
        assert run("wsss-data", "make-shapes", other, "--n", "12", "--size", "64", "--seed", "5", *more)[0] == 0
        for what in ("walk", "deeplab"):
            line = fails("wsss-run", what, "--from", before, "--data", other, "--out", "out", *chain(what))
            assert f"is another image than that of {other}" in line
    assert not (here/"out").exists()


def test_given_files_have_to_fit_the_images(foreign, scenes, fails, tmp_path):
    small = {"labels": tmp_path/"labels", "masks": tmp_path/"masks"}
    name = images(scenes)[3]
    for kind, folder in small.items():
        shutil.copytree(foreign/kind, folder)
        Image.fromarray(np.zeros((64, 63), np.uint8)).save(folder/f"{name}.png")
    argv = "wsss-run", "beco", "--data", scenes, *chain("beco")
    line = fails(*argv, "--out", tmp_path/"a", "--labels", small["labels"])
    assert f"{small['labels']/name}.png: has 64x63 pixels (height x width), its image 64x64" in line
    line = fails(*argv, "--out", tmp_path/"b", "--labels", foreign/"labels", "--confidence", small["masks"])
    assert f"{small['masks']/name}.png: has 64x63 pixels" in line


@pytest.mark.parametrize("maps,say", [({9: np.ones((64, 64))}, "holds a map of label 10; this data has"),
                                      ({-1: np.ones((64, 64))}, "holds maps of labels 0; its image has"),
                                      ({"keys": np.array([0]), "cam": np.zeros((1, 0, 0))}, "its maps have no pixels"),
                                      ({0: np.full((8, 8), 1e300)}, "holds NaN or infinite numbers")],
                         ids=["beyond", "below", "no pixels", "huge"])
def test_cams_have_to_fit_the_classes(foreign, scenes, fails, tmp_path, maps, say):
    shutil.copytree(foreign/"seam", tmp_path/"cams")
    np.save(tmp_path/"cams"/f"{images(scenes)[0]}.npy", maps)
    assert say in fails("wsss-run", "none", "--cams", tmp_path/"cams", "--data", scenes, "--out", tmp_path/"out")


def test_a_file_without_a_class_is_background(foreign, scenes, call, tmp_path):
    shutil.copytree(foreign/"seam", tmp_path/"cams")
    name = images(scenes)[0]
    np.save(tmp_path/"cams"/f"{name}.npy", {"keys": np.zeros(0, int), "cam": np.zeros((0, 8, 8))})
    argv = "wsss-run", "none", "--cams", tmp_path/"cams", "--data", scenes, "--out", tmp_path/"out"
    assert call(*argv)[::2] == (0, "")
    assert not read_label(tmp_path/"out"/"labels"/f"{name}.png").any()


def test_files_that_nothing_reads_and_runs_of_another_chain(foreign, made, scenes, fails, tmp_path):
    labels = "--labels", foreign/"labels"
    argv = "wsss-run", "--data", scenes, "--out", tmp_path/"out"
    assert "--confidence: deeplab reads none" in fails(*argv, "deeplab", *labels, "--confidence", foreign/"masks")
    assert "--cams: beco reads none" in fails(*argv, "beco", *labels, "--cams", foreign/"seam")
    argv = "wsss-run", "baseline+walk+deeplab", "--data", scenes, "--out", made("baseline+crf+deeplab"), "--resume"
    assert "holds a run of baseline+crf+deeplab, not of baseline+walk+deeplab" in fails(*argv)


def test_a_later_stage_alone_is_refused_before_any_work(made, scenes, fails, call, tmp_path):
    "Neither training nor labels begin; a run that has made what is needed goes on with the stage alone"
    name = "baseline+crf+deeplab"
    argv = "wsss-run", name, "--data", scenes, "--out", tmp_path/"out", *chain("baseline", "crf", "deeplab")
    line = fails(*argv, "--stages", "crf-labels,train")
    assert "stage crf-labels needs cams, which stage cams makes and has not finished here; run it first" in line
    assert not (tmp_path/"out").exists()
    argv = "wsss-run", "crf+deeplab", "--from", made(name), "--data", scenes, "--out", tmp_path/"out"
    assert call(*argv, *chain("crf", "deeplab"), "--stages", "crf-labels")[0] == 0
    assert "crf-labels" in result(tmp_path/"out")["seconds"]

def test_two_files_of_one_image_are_refused(foreign, scenes, fails, tmp_path):
    "ID.npy and ID.npz: nobody knows which is meant"
    cams, name = shutil.copytree(foreign/"seam", tmp_path/"cams"), images(scenes)[0]
    np.savez(cams/f"{name}.npz", keys=np.zeros(0, int), cam=np.zeros((0, 4, 4)))
    said = f"{cams}: holds {name}.npy and {name}.npz, two files of one image; remove one of them"
    assert said in fails("wsss-run", "none", "--cams", cams, "--data", scenes, "--out", tmp_path/"out")
    assert said in fails("wsss-eval", cams, scenes/"SegmentationClass", "--classes", scenes/"classes.txt",
                         "--threshold", "0.3")
    assert not (tmp_path/"out").exists()

def test_advice_names_settings_of_a_part(scenes, fails, call, tmp_path):
    "What a method says of its settings has the part's name in front, as --set wants it"
    bare = shutil.copytree(scenes, tmp_path/"bare")
    shutil.rmtree(bare/"Saliency")
    line = fails("wsss-run", "i2crc+none", "--data", bare, "--out", tmp_path/"out", *chain("i2crc", "none"))
    assert "(--set i2crc.saliency=rbd," in line and line.endswith("(--set i2crc.saliency=none)")
    line = fails("wsss-run", "i2crc", "--data", bare, "--out", tmp_path/"out", *STAGED["i2crc"])
    assert "(--set saliency=none)" in line
    status, printed, err = call("wsss-run", "i2crc+none", "--data", scenes, "--out", tmp_path/"out",
                                *chain("i2crc", "none"))
    assert (status, err) == (0, "") and "pseudo label | ground truth, as far as" in printed  # nothing predicts

def test_refinement_of_ones_own(made, scenes, call, here):
    "The file is the solution of the exercise on the page of refinements"
    cells = json.loads((Path(__file__).parents[1]/"nbs"/"80_methods"/"85_refinements.ipynb").read_text())["cells"]
    (text,) = [t for c in cells if "<summary>Solution of 2" in (t := "".join(c["source"]))]
    (here/"my_refinement.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    argv = "--data", scenes, "--preset", "shapes", "--set", "squared.power=3"
    assert call("wsss-run", "my_refinement.py", "--from", made("ktse"), "--out", "mine", *argv)[::2] == (0, "")
    told = result("mine")
    assert told["method"] == "ktse+squared" and told["miou"].keys() == {"seed", "pseudo_label"}
    whole = "wsss-run", "deeplab", "--from", "mine", "--data", scenes, "--out", "whole", *chain("deeplab")
    assert call(*whole)[::2] == (0, "")
    assert result("whole")["method"] == "ktse+squared+deeplab"


def test_an_evaluation_makes_no_labels_anew(made, scenes, call, fails, tmp_path):
    "A setting that made labels cannot change when they are only scored; those of seeds and predictions can"
    name = "baseline+crf+deeplab"
    shutil.copytree(made(name), tmp_path/"out")
    argv = ("wsss-run", name, "--data", scenes, "--out", tmp_path/"out", "--stages", "evaluate", "--set")
    for setting in ("crf.alpha=2", "baseline.low_thresh=0.1"):
        assert f"{setting.partition('=')[0]} made files that are there" in fails(*argv, setting)
    assert call(*argv, "baseline.bg_thresh=0.9", "deeplab.infer_scales=1")[0] == 0
    assert result(tmp_path/"out")["thresholds"]["baseline: background (seed)"] == .9


def test_labels_without_a_segmenter_are_no_network(made, scenes, call, fails, tmp_path):
    argv = ("wsss-run", "none", "--from", made("i2crc+beco"), "--data", scenes, "--out", tmp_path/"out", *chain("none"))
    assert call(*argv)[::2] == (0, "")
    photo = sorted((scenes/"JPEGImages").iterdir())[0]
    line = fails("wsss-predict", tmp_path/"out", photo, "--out", tmp_path/"labels")
    assert "i2crc+none ends with labels" in line and "--from" in line


def test_list(call):
    status, out, err = call("wsss-list", "chains")
    assert (status, err) == (0, "") and "ktse = ktse+irn+beco" in out
    assert "  irn  reads cams  makes labels, confidence  refines" in "  "+out.replace("\n", "\n  ")
    assert "beco  reads labels (and confidence, if it is there)  makes predictions  ends a chain" in out
    for name in ("none", "par", "crf", "walk", "tokens", "deeplab", "largefov", "segformer"):
        assert f"{name}  reads" in out


FOLDERS = {"cams": "cams", "irn-labels": "irn_labels", "irn-walk": "labels", "evaluate": "predictions"}
TRAININGS = {"train": None, "irn-train": "irn-train", "beco": "beco"}

def test_killed_in_every_stage(made, scenes, tmp_path):
    "The whole of KTSE ends with the same files and numbers as undisturbed, bit for bit"
    out, undisturbed = tmp_path/"out", made("ktse")
    stages = get_method("ktse").stage_names()
    argv = ["wsss-run", "ktse", "--data", str(scenes), "--out", str(out), *chain("ktse", "irn", "beco")]
    harness = HARNESS.replace("self.run.stage == stage", "(self.run.stage or 'train') == stage")
    done = subprocess.run([sys.executable, "-c", harness, *map(json.dumps, (str(out), FOLDERS, [*stages, None], argv))],
                          capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(s, status) for s, status, _ in told] == [*((s, -signal.SIGKILL) for s in stages), (None, 0)], done.stderr
    alone = tmp_path/"alone"
    argv[argv.index(str(out))] = str(alone)
    subprocess.run([sys.executable, "-c", harness, *map(json.dumps, (str(alone), FOLDERS, [None], argv))],
                   capture_output=True, check=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for folder in ("cams", "irn_labels", "labels", "confidence", "predictions", "predictions_crf"):
        names = sorted(p.name for p in (out/folder).iterdir())
        assert names == sorted(p.name for p in (alone/folder).iterdir()) and names
        for name in names: assert (out/folder/name).read_bytes() == (alone/folder/name).read_bytes(), (folder, name)
    for stage in TRAININGS.values():
        a, b = (load_checkpoint(Run(o, stage)) for o in (out, alone))
        assert a["step"] == b["step"] == 4
        for k in a["model"]: assert torch.equal(a["model"][k], b["model"][k]), (stage, k)
    a, b = result(out), result(alone)
    for k in ("miou", "iou", "coverage", "scored", "config_hash"): assert a[k] == b[k], k
    assert result(undisturbed)["miou"].keys() == a["miou"].keys()
