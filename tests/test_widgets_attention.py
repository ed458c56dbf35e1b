"The explorer of a step along the attention on a small run, without a browser."
import numpy as np
import pytest
import torch
from panels import caption, painted, same, send

from wsss_nb.cam.attention import attention_walk
from wsss_nb.explore.attention import AttentionExplorer, block_attention, run_attention
from wsss_nb.ground.core import UserError
from wsss_nb.ground.tensors import resize
from wsss_nb.data.transforms import normalise
from wsss_nb.use.experiment import load_run, run_method

BRIEF = ["iters=3", "batch_size=2", "warmup_iter=1", "save_every=3", "val_images=0", "crop_size=64",
         "cam_attention=true"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder of a ViT that has hardly learnt anything, and that walks by itself"
    path = tmp_path_factory.mktemp("attention")/"run"
    run_method("toco", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    return path


def test_one_step_is_what_the_run_does(run):
    panel, method = AttentionExplorer.of_run(run, count=2), load_run(run)
    assert panel.state["blocks"] == (1,) and "along the run, block 2" in caption(panel)
    e, k = panel.sources["the run"][0], panel.state["only"]
    x = normalise(e.image)[None]
    with torch.no_grad(): walked = method.raw_cam(x, method.config.cam_layer)
    assert torch.allclose(attention_walk(e.cam[None], block_attention(method.encoder, x)[1]), walked, atol=1e-5)
    full = resize(walked[:, k:k+1], e.image.shape[:2])[0, 0]
    full = (full-full.min())/(full.max()-full.min())
    heat = next(p.heat for p in panel.shown.panels if p.title == "walked map")
    assert np.allclose(heat/255, full, atol=.01)


def test_controls_move_what_they_should(run):
    panel = AttentionExplorer.of_run(run, count=2)
    before = painted(panel)
    send(panel, "place", [.1, .9])
    now = painted(panel)
    assert "patch 12,1 of 14×14" in caption(panel)
    assert {t for t in now if not np.array_equal(now[t], before[t])} == {"image", "where it looks"}
    send(panel, "count", 0)
    assert "no step along" in caption(panel) and np.array_equal(painted(panel)["walked map"], now["raw map"])
    send(panel, "source", 1)
    send(panel, "blocks", 4)
    assert "along colours, block 5" in caption(panel) and same(panel, panel.view(**panel.state).panels)
    send(panel, "source", 0)                                     # a fifth block is not offered there
    assert panel.state["blocks"] == (0,)


def test_what_is_no_vit_is_said(tmp_path):
    run_method("baseline", "shapes:n=50", tmp_path/"run", "shapes", stages=["train"], device="cpu",
               overrides=[*BRIEF[:6], "backbone=wrn_toy"])
    with pytest.raises(UserError, match="no plain Vision Transformer"): run_attention(tmp_path/"run")
