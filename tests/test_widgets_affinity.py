"The affinity explorer without a browser: `send` is what a click or a control sends."
import numpy as np
import pytest
import torch
from panels import caption, painted, same, send

from wsss_nb.ground.core import UserError
from wsss_nb.use.experiment import load_run, run_method
from wsss_nb.run.evaluate import label_image
from wsss_nb.explore.affinity import (AffinityExplorer, AffinityMaps, affinity_caption, affinity_panels,
                                      affinity_picture, partners)

BRIEF = ["iters=3", "batch_size=2", "warmup_iter=1", "seg_start=1", "save_every=3", "val_images=0", "crop_size=64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder with a method that has hardly learnt anything"
    path = tmp_path_factory.mktemp("affinity")/"run"
    run_method("tscd", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    return path


@pytest.fixture
def panel(run): return AffinityExplorer(run)


@pytest.mark.parametrize("what,value,says", [("place", [.1, .9], "patch 12,1 of 14×14"), ("image", 3, "val_00003"),
                                             ("near", False, "all patches")])
def test_clicks_and_controls_move_everything(panel, what, value, says):
    before = painted(panel)
    send(panel, what, value)
    now = painted(panel)
    assert says in caption(panel) and not np.array_equal(now["gives to"], before["gives to"])
    assert np.array_equal(now["image"], before["image"]) == (what == "near")


def test_what_is_shown_is_the_plain_picture(panel, run):
    for place in ([.3, .3], [0., 1.]): send(panel, "place", place)
    send(panel, "image", 5)
    fresh = AffinityMaps(run)
    assert same(panel, affinity_panels(fresh, **panel.state))
    assert np.array_equal(panel.picture(**panel.state), affinity_picture(fresh, **panel.state))
    assert caption(panel) == affinity_caption(fresh, **{k: v for k, v in panel.state.items() if k != "steps"})


def test_nothing_is_computed_twice(panel):
    passes = []
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for place in ([.3, .3], [.7, .2]): send(panel, "place", place)
    send(panel, "near", False)
    send(panel, "steps", 9)
    assert not passes


def test_maps_are_those_that_are_scored(panel, run):
    maps, image = panel.maps, panel.state["image"]
    item, method = maps.item(image), load_run(run)
    assert torch.equal(maps.walked(image), label_image(method, item.image, item.image_labels)["random_walk_seed"])
    affinity, grid = maps.affinity(image)
    near = partners(affinity, grid, (0, 0), method.config.radius)
    assert (near["gives"] > 0).sum() == (method.config.radius+1)**2
    assert torch.equal(near["takes"][:2, 0], affinity[[0, grid[1]], 0])


def test_a_method_without_affinity_is_told(tmp_path):
    run_method("baseline", "shapes:n=50", tmp_path/"run", "shapes", stages=["train"], device="cpu",
               overrides=[b for b in BRIEF if not b.startswith("crop")])
    with pytest.raises(UserError, match="baseline learns no affinity; choose a run of tscd"):
        AffinityExplorer(tmp_path/"run")
