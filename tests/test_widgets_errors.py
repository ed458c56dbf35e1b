"The error browser on a run and on folders, without a browser: `send` is what a message from one does."
import csv

import numpy as np
import pytest
from panels import caption, same, send, told

from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.explore.errors import ANY, KINDS, ErrorExplorer, folder_errors, reason_map, run_errors
from wsss_nb.ground.core import UserError
from wsss_nb.ground.io import read_label, write_label
from wsss_nb.run.evaluate import predict_image
from wsss_nb.use.anatomy import anatomy
from wsss_nb.use.experiment import load_run, run_method

BRIEF = ["iters=8", "batch_size=4", "warmup_iter=1", "seg_start=4", "val_images=0", "crop_size=64", "infer_scales=1",
         "infer_par=0", "cam_scales=1", "workers=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder with predictions, of a method that has hardly learnt anything"
    path = tmp_path_factory.mktemp("errors")/"run"
    run_method("baseline", "shapes:n=40,size=64", path, "shapes", device="cpu", overrides=BRIEF)
    return path


def test_reasons_are_those_of_the_anatomy(run):
    "Of all images together: the shares of the wrong pixels, and how many are wrong"
    items, classes = run_errors(run)
    line = next(l for l in anatomy(run, device="cpu")["lines"] if l["key"] == "prediction")
    wrong = sum(np.bincount(reason_map(x.label, x.mask, len(classes)).ravel(), minlength=5)[1:] for x in items)
    assert len(items) == line["images"] and sum(wrong) == pytest.approx(line["wrong"]*64*64*len(items))
    assert dict(zip(KINDS, wrong/wrong.sum())) == pytest.approx(line["reasons"])


def test_predictions_are_read_or_made(run, tmp_path):
    "A file of the last evaluation is taken as it is; without one the network is asked"
    first = run_errors(run, count=3)[0][1]
    file = run/"predictions"/f"{first.name}.png"
    assert np.array_equal(first.label, read_label(file))
    kept = file.read_bytes()
    write_label(file, np.ones_like(first.label))
    assert (run_errors(run, count=3)[0][1].label == 1).all()
    file.unlink()
    made = run_errors(run, count=3)[0][1].label
    assert np.array_equal(made, predict_image(load_run(run), first.image))
    file.write_bytes(kept)


def test_a_browser_chooses(run, tmp_path):
    panel = ErrorExplorer(*run_errors(run, count=12))
    reasons = panel.controls["reason"].offers(panel.state)
    for at in range(len(reasons)):
        said = send(panel, "reason", at)
        listed = panel.worst(reasons[at][1], 0)
        assert not said["error"] and caption(panel).startswith(panel.items[panel.state["image"]].name)
        assert len(told(panel)["view"]["state"]["image"]["texts"]) == len(listed)
        send(panel, "image", len(listed)-1)
        assert caption(panel).startswith(listed[-1].name)
        assert same(panel, panel.view(**panel.state).panels)
        rows = [*csv.DictReader(panel.export(tmp_path/"list.csv").open(newline=""))]
        assert [r["image"] for r in rows] == [j.name for j in listed]
    send(panel, "reason", 0)
    for at in range(len(panel.controls["only"].offers(panel.state))): assert not send(panel, "only", at)["error"]
    assert panel.state["reason"] == ANY


def test_the_chosen_image_is_compared(run):
    panel = ErrorExplorer(*run_errors(run, count=2))
    both = panel.compare()
    assert [*both.items[0].maps] == ["prediction", "seed", "pseudo label", "ground truth"]
    assert panel.items[panel.state["image"]].name in caption(both)
    assert send(both, "right", 1)["error"] == ""


def test_folders_of_any_project(tmp_path):
    data = [open_dataset("shapes:n=4,size=64", s, masks=True) for s in ("train", "val")]
    write_voc_folder(data, tmp_path/"photos")
    masks, photos, out = tmp_path/"photos"/"SegmentationClass", tmp_path/"photos"/"JPEGImages", tmp_path/"mine"
    out.mkdir()
    for file in masks.glob("*.png"): write_label(out/file.name, np.zeros_like(read_label(file)))
    items, classes = folder_errors(out, masks, tmp_path/"photos"/"classes.txt", photos)
    panel = ErrorExplorer(items, classes)
    reasons = [v for _, v in panel.controls["reason"].offers(panel.state)]
    assert reasons == [ANY, 1] and "missed object" in caption(panel)
    (out/file.name).unlink()
    with pytest.raises(UserError, match="no prediction for 1 of"): folder_errors(out, masks, classes)
    write_label(out/file.name, np.zeros((3, 3), np.uint8))
    with pytest.raises(UserError, match=f"{file.stem}: the prediction is 3x3"):
        ErrorExplorer(*folder_errors(out, masks, classes))


def test_mistakes_are_one_line(run, tmp_path):
    with pytest.raises(UserError, match="no such run"): run_errors(tmp_path/"none")
    data = open_dataset("shapes:n=4,size=64")
    write_voc_folder([data, open_dataset("shapes:n=4,size=64", "val")], tmp_path/"photos")
    with pytest.raises(UserError, match="has no masks, so nobody knows"): run_errors(run, tmp_path/"photos")
    with pytest.raises(UserError, match="cannot be written"):
        ErrorExplorer(*run_errors(run, count=2)).export(run/"config.toml"/"list.csv")
