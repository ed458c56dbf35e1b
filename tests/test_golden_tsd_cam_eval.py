"""Golden vectors of ToCo's scores (area `tsd_cam`, family `toco_eval`): sizes, class counts and case counts come
from the file."""
import numpy as np
import pytest
from golden_files import cases, golden

from wsss_nb.scores.confusion import ConfusionMatrix, image_f1
from wsss_nb.ground.io import voc_colormap


def scored(z, kind, **options):
    "The pooled matrix of all images of a file"
    n = int(z["opt/num_classes"])
    return sum((ConfusionMatrix(n).add(z[f"in/{kind}{i}"], z[f"in/gt{i}"], **options) for i in cases(z, f"in/{kind}")),
               ConfusionMatrix(n))


def close(a, b): np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_eval"))
def test_eval(path):
    z = dict(np.load(path))
    matrix = scored(z, "pred")
    assert matrix.counts.sum() == sum((z[f"in/gt{i}"] < matrix.num_classes).sum() for i in cases(z, "in/gt"))
    close(matrix.iou, z["out/iou"])
    close([matrix.miou, matrix.pixel_accuracy, matrix.mean_accuracy], [z["out/miou"], z["out/pAcc"], z["out/mAcc"]])


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_eval"))
def test_eval_pseudo_label(path):
    z = dict(np.load(path))
    if not any(k.startswith("in/pseudo") for k in z): pytest.skip("no pseudo labels in this file")
    matrix = scored(z, "pseudo", drop_ignored_pred=True)
    close(matrix.iou, z["out/pseudo_iou"])
    close(matrix.miou, z["out/pseudo_miou"])


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_eval"))
def test_eval_image_f1(path):
    z = dict(np.load(path))
    for i in cases(z, "in/f1_true"): close(image_f1(z[f"in/f1_pred{i}"], z[f"in/f1_true{i}"]), z[f"out/f1{i}"])
    if "out/f1_empty" in z: close(image_f1(0*z["in/f1_pred"], 0*z["in/f1_true"]), z["out/f1_empty"])


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_eval"))
def test_eval_colormap(path):
    colours = np.load(path)["out/colormap"]
    np.testing.assert_array_equal(voc_colormap(len(colours)), colours)
