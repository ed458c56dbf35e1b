"""The dense CRF in evaluation and prediction: a second prediction with files and scores of its own, asked for with
the run or after it."""
import json
import shutil
import tomllib

import numpy as np
import pytest
from PIL import Image
from torch.nn import functional as F

from commands import TINY
from wsss_nb.data.transforms import normalise
from wsss_nb.ground.io import read_image, read_label
from wsss_nb.methods.core import MethodNet
from wsss_nb.refine.crf import dense_crf
from wsss_nb.ground.viz import overlay

PRODUCTS = ["seed", "pseudo_label", "prediction"]


def colours(images):
    "Stand in for a trained decoder, which two steps do not make: smoothed colours as logits of the first three classes"
    return 5*F.avg_pool2d(images-images.mean((-1,-2), keepdim=True), 9, 1, 4)

def expected(photo, preset):
    "Return the label map that the stand-in and this CRF make of a photo"
    image = read_image(photo)
    return dense_crf(image, colours(normalise(image)[None])[0].softmax(0), preset=preset, as_labels=True).numpy()

@pytest.fixture(autouse=True)
def stand_in(monkeypatch): monkeypatch.setattr(MethodNet, "segmentation", lambda self, images: colours(images))

@pytest.fixture
def evaluate(call, scenes, here):
    """Return a function that evaluates the run `out`

    It returns what was printed, the result, and when each file was written"""
    def evaluate(*settings):
        status,out,err = call("wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages",
                              "evaluate", *settings)
        assert (status, err) == (0, ""), err
        files = {p: p.stat().st_mtime_ns for k in ("cams", "labels", "predictions", "predictions_crf")
                 if (here/"out"/k).exists() for p in (here/"out"/k).iterdir()}
        return out,json.loads((here/"out"/"result.json").read_text()),files
    return evaluate

@pytest.fixture
def plain(evaluate, trained, here):
    "The run of others, evaluated with the stand-in and without a CRF, as `out`"
    shutil.copytree(trained[0], here/"out")
    shutil.rmtree(here/"out"/"predictions")
    return evaluate()


def changed(before, after): return {p.parent.name for p in after if before.get(p) != after[p]}


def test_run_with_crf(call, scenes, here):
    "Files, scores, words and pictures of the second prediction, beside the first"
    status,out,err = call("wsss-run", "baseline", "--data", scenes, "--out", "out", *TINY, "crf=toco")
    assert (status, err) == (0, ""), err
    result,ids = (json.loads((here/"out"/"result.json").read_text()),
                  (scenes/"ImageSets"/"Segmentation"/"val.txt").read_text().split())
    assert tomllib.loads((here/"out"/"config.toml").read_text())["settings"]["crf"] == "toco"
    assert sorted(p.name for p in (here/"out"/"predictions_crf").iterdir()) == [f"{i}.png" for i in sorted(ids)]
    for i in ids:
        assert (read_label(here/"out"/"predictions_crf"/f"{i}.png")
                == expected(scenes/"JPEGImages"/f"{i}.png", "toco")).all()
    for k in ("miou", "iou", "precision", "recall", "errors", "scored"):
        assert [*result[k]] == [*PRODUCTS, "prediction_crf"], k
    assert result["miou"]["prediction_crf"] != result["miou"]["prediction"]
    assert result["seconds"].keys() == {"train", "pseudo_label", "prediction", "prediction_crf", "evaluate"}
    assert result["scored"]["prediction_crf"] == {"split": "val", "images": 8, "image_labels": False}
    assert result["thresholds"]["CRF"] == "toco"
    table = next(l for l in out.splitlines() if l.startswith("mean")).split()
    assert table[1:] == [f"{100*v:.1f}" for v in result["miou"].values()] and "prediction + CRF" in out.splitlines()[0]
    assert "| prediction + CRF | ground truth" in out
    html = (here/"out"/"report"/"index.html").read_text()
    assert ("no CRF was applied to it. Prediction + CRF is its probabilities after the dense CRF toco on the image: "
            "iters 10, pos_xy_std 1.0") in html
    assert "prediction + CRF mIoU" in html
    assert (call("wsss-eval", here/"out"/"predictions_crf", scenes/"SegmentationClass", "--classes",
                 scenes/"classes.txt", "--list", scenes/"ImageSets"/"Segmentation"/"val.txt", "--json",
                 "scores.json")[0] == 0)
    assert json.loads((here/"scores.json").read_text())["miou"] == pytest.approx(result["miou"]["prediction_crf"])


def test_crf_for_a_run_that_is_there(evaluate, plain, here):
    """Neither trained nor labelled again; taken back, its scores are gone

    Asked for again, its files are good as they are; another CRF makes its own"""
    checkpoint = (here/"out"/"checkpoints"/"last.pt").read_bytes()
    _,before,files = plain
    assert [*before["miou"]] == PRODUCTS and "prediction_crf" not in before["seconds"]
    assert not (here/"out"/"predictions_crf").exists()
    _,result,added = evaluate("--set", "crf=toco")
    assert {k: v for k,v in result["miou"].items() if k != "prediction_crf"} == before["miou"]
    assert "prediction_crf" in result["miou"]
    assert changed(files, added) == {"predictions_crf"} and len(added) == len(files)+8
    assert (here/"out"/"checkpoints"/"last.pt").read_bytes() == checkpoint
    out,again,kept = evaluate()
    assert again["miou"] == before["miou"] and kept == added and "CRF" not in out
    assert not any("prediction_crf" in again[k] for k in ("iou", "errors", "scored", "seconds"))
    assert any("no CRF was applied." in s for s in again["ground_truth"]) and "CRF" not in again["thresholds"]
    assert evaluate("--set", "crf=cpdgl")[2] == added  # the same parameters by another name
    _,other,made = evaluate("--set", "crf=tscd")
    assert changed(added, made) == {"predictions_crf"}
    assert other["miou"]["prediction_crf"] != result["miou"]["prediction_crf"]
    assert (changed(made, evaluate("--set", "crf=tscd", "bg_thresh=0.8")[2])
            == {"cams", "labels", "predictions", "predictions_crf"})


def test_killed_between_the_two_predictions(evaluate, plain, here):
    "What is missing is made, and nothing else"
    _,result,files = evaluate("--set", "crf=toco")
    lost = sorted(p for p in files if p.parent.name == "predictions_crf")[3:5]
    for p in lost: p.unlink()
    _,again,made = evaluate("--set", "crf=toco")
    assert again["miou"] == result["miou"] and {p for p in made if made[p] != files[p]} == {*lost}


def test_predict_with_crf(call, plain, scenes, here):
    "The CRF that the run names, or toco; the overlay shows it"
    photos = sorted((scenes/"JPEGImages").glob("test*"))[:2]
    assert len(photos) == 2
    def predict(out, *argv):
        status,said,err = call("wsss-predict", "out", *photos, "--out", out, *argv)
        assert (status, err) == (0, ""), err
        return said,[read_label(here/out/p.name) for p in photos]
    (said,before),(said_crf,after) = predict("plain"),predict("refined", "--crf", "--overlay")
    assert "CRF" not in said and "refined by the dense CRF toco" in said_crf
    for photo,a,b in zip(photos, before, after, strict=True):
        assert (b == expected(photo, "toco")).all() and .01 < (a != b).mean() < .9
        assert (np.asarray(Image.open(here/"refined"/f"{photo.stem}_overlay.png"))
                == overlay(read_image(photo), b)).all()
    config = here/"out"/"config.toml"
    config.write_text(config.read_text().replace("[settings]\n", '[settings]\ncrf = "tscd"\n'))
    said,named = predict("named", "--crf")
    assert "dense CRF tscd" in said and all((m == expected(p, "tscd")).all() for p,m in zip(photos, named, strict=True))
    for a,b in zip(before, predict("unasked")[1], strict=True): assert (a == b).all()


def test_unknown_crf(fails, plain, scenes, here):
    for stages in ("train,evaluate", "evaluate"):
        argv = "baseline", "--data", scenes, "--out", "new" if "train" in stages else "out", "--stages", stages
        assert "unknown CRF preset 'tocoo': did you mean toco?" in fails("wsss-run", *argv, "--set", "crf=tocoo")
    assert not (here/"new").exists() and not (here/"out"/"predictions_crf").exists()
    config = here/"out"/"config.toml"
    config.write_text(config.read_text().replace("[settings]\n", '[settings]\ncrf = "tocoo"\n'))
    assert "did you mean toco?" in fails("wsss-predict", "out", scenes/"JPEGImages", "--out", "labels", "--crf")
