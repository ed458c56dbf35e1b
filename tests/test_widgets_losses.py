"The explorer of losses on a small run, without a browser."
import numpy as np
import pytest
import torch
from panels import caption, painted, same, send

from wsss_nb.data.transforms import normalise
from wsss_nb.explore.losses import BOUNDARY_LOSSES, EVERY, LossExplorer, run_predictions
from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.ground.tensors import enlarge
from wsss_nb.losses.segment import balanced_seg_loss
from wsss_nb.run.evaluate import label_image
from wsss_nb.use.experiment import load_run, run_method

BRIEF = ["iters=3", "batch_size=2", "warmup_iter=1", "save_every=3", "val_images=0", "crop_size=64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder of a method that segments, and has hardly learnt anything"
    path = tmp_path_factory.mktemp("losses")/"run"
    run_method("toco", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    return path


@pytest.fixture(scope="module")
def panel(run): return LossExplorer.of_run(run, count=3)


def test_prediction_and_label_are_those_of_the_run(run, panel):
    method = load_run(run)
    for e in panel.examples:
        assert np.array_equal(e.label, label_image(method, e.image, e.image_labels)["seed"])
    e, told = panel.examples[0], panel.told(0, True)
    x = enlarge(method.seg_logits(normalise(e.image)[None]), e.image.shape[:2]).detach().requires_grad_()
    loss = balanced_seg_loss(x, told.label)
    value, pull = panel.pull(0, "segmentation", True, error="run", blur=9)
    assert value == pytest.approx(float(loss.detach()), abs=1e-5)
    assert torch.allclose(pull, -torch.autograd.grad(loss, x)[0][0], atol=1e-6)
    assert not pull[:, told.label[0] == IGNORE_INDEX].any()


def test_every_loss_can_be_chosen(panel):
    for n, name in enumerate(EVERY):
        send(panel, "loss", n)
        assert f"· {name} ·" in caption(panel) and same(panel, panel.view(**panel.state).panels)
        assert ("pull on boundary" in caption(panel)) == (name in BOUNDARY_LOSSES)


def test_controls_move_what_they_should(panel):
    send(panel, "loss", 0)
    before = painted(panel)
    def moved(name, value):
        nonlocal before
        send(panel, name, value)
        now = painted(panel)
        changed, before = {t for t in now if not np.array_equal(now[t], before[t])}, now
        return changed
    assert moved("step", 0) <= {"after a step"}
    assert "label" in moved("unsure", False)
    assert {"prediction", "its score", "pull on it"} <= moved("error", 1)
    assert moved("blur", 4) and moved("only", 1) <= {"its score", "pull on it"}


def test_a_run_that_does_not_segment_says_so(run, monkeypatch):
    monkeypatch.setattr("wsss_nb.explore.losses.has_cam", lambda method: False)      # CAMs are files, as in a chain
    with pytest.raises(UserError, match="toco does not segment and make CAMs at once"): run_predictions(run)
