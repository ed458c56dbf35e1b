"Explorers of single parts of a method, on the folder of a tiny run: what is shown is what the run is scored by."
import numpy as np
import pytest
import torch
from panels import caption, painted, same, send

from wsss_nb.explore.fusion import FusionExplorer
from wsss_nb.explore.mean_field import MeanFieldExplorer
from wsss_nb.explore.orders import ORDERS, OrderExplorer
from wsss_nb.explore.prototypes import GRID, PrototypeExplorer
from wsss_nb.explore.scales import SCALES, ScaleExplorer
from wsss_nb.explore.views import PLACES, ViewExplorer
from wsss_nb.ground.core import UserError
from wsss_nb.ground.viz import overlay
from wsss_nb.methods.tsd_cam import Step
from wsss_nb.refine.crf import cam_probs, dense_crf
from wsss_nb.run.evaluate import label_image, predict_image
from wsss_nb.use.experiment import load_run, run_method

BRIEF = ["iters=6", "batch_size=4", "warmup_iter=1", "seg_start=1", "save_every=6", "val_images=0"]


@pytest.fixture(scope="module")
def tsd_cam(tmp_path_factory):
    "A run folder of TSD-CAM, with a network that has hardly learnt anything"
    path = tmp_path_factory.mktemp("parts")/"tsd_cam"
    more = ["corr_start=2", "corr_samples=6"]
    run_method("tsd-cam", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF+more)
    return path


def switch(panel, name, value):
    "Send that a control is moved to `value`"
    return send(panel, name, value if isinstance(value, bool) else
                [v for _, v in panel.controls[name].offers(panel.state)].index(value))


def test_scales_of_a_run(tsd_cam):
    "It begins with the sizes of the run, whose seed it shows; a switch needs no pass of the network"
    panel, method = ScaleExplorer(tsd_cam, count=3), load_run(tsd_cam)
    assert {s for s in SCALES if panel.state[panel.numbered[s]]} == {1, *method.config.cam_scales}
    for image in panel.places:
        switch(panel, "image", image)
        item = panel.maps.item(image)
        scored = label_image(method, item.image, item.image_labels)["seed"]
        shown = next(p for p in panel.shown.panels if p.title == "seed").labels
        assert (shown == scored.numpy()).mean() > .999      # size by size the sums differ in the last bit
    passes, before = [], painted(panel)
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for name, value in (("mirror", False), ("bg_thresh", .6), ("scale_50", False)): switch(panel, name, value)
    assert not passes and "scales 1 · no mirror · threshold 0.6" in caption(panel)
    assert not np.array_equal(painted(panel)["sum"], before["sum"])
    assert same(panel, panel.view(**panel.state).panels)
    switch(panel, "layer", "aux")
    assert len(passes) > 0 and "layer aux" in caption(panel)


def test_orders_of_a_run(tsd_cam):
    "The kit's order gives the seed of the run; another order, a doubt or a threshold needs no pass of the network"
    method = load_run(tsd_cam)
    panel = OrderExplorer(tsd_cam, count=3, scales=method.config.cam_scales)
    assert panel.state["doubt"] == 0 and panel.state["bg_thresh"] == method.config.bg_thresh
    switch(panel, "order", "larger of both")
    for image in panel.places:
        switch(panel, "image", image)
        item = panel.maps.item(image)
        scored = label_image(method, item.image, item.image_labels)["seed"]
        shown = next(p for p in panel.shown.panels if p.title == "seed").labels
        assert (shown == scored.numpy()).mean() > .999      # views by themselves differ from a batch in the last bit
    passes = []
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for order in ORDERS:
        before = painted(panel)["other CAM"]
        switch(panel, "other", order)
        assert f"larger of both (the kit) | {order} (" in caption(panel)
        assert same(panel, panel.view(**panel.state).panels)
        assert order == "cut first" or not np.array_equal(painted(panel)["other CAM"], before), order
    for name, value, title in (("doubt", .5, "other CAM"), ("bg_thresh", .6, "other seed")):
        before = painted(panel)[title]
        switch(panel, name, value)
        assert not np.array_equal(painted(panel)[title], before), name
    assert not passes and "the mirror made to doubt by 0.5 · threshold 0.6" in caption(panel)


def test_mean_field_of_a_run(tsd_cam):
    "Step by step it comes to what the CRF makes of the CAM of the run"
    panel = MeanFieldExplorer.of_run(tsd_cam, count=2)
    for image, preset in ((1, "cam_label"), (0, "i2crc")):
        for name, value in (("image", image), ("preset", preset), ("step", 10)): switch(panel, name, value)
        e = panel.examples[image]
        cam = ScaleExplorer(tsd_cam).maps.stages(image)["cam"]
        label = dense_crf(e.image, cam_probs(cam, 6.), as_labels=True, preset=preset)
        assert np.array_equal(painted(panel)["now"], overlay(e.image, np.array(e.labels)[label]))
    before = painted(panel)
    send(panel, "place", [.2, .9])
    assert "pixel 100,22" in caption(panel) and not np.array_equal(painted(panel)["appearance"], before["appearance"])
    switch(panel, "k", 0)
    assert "background here" in panel.shown.numbers and same(panel, panel.view(**panel.state).panels)


def test_views_of_a_run(tsd_cam):
    "CAMs and logits of both views are those of a training step"
    panel = ViewExplorer(tsd_cam, count=3)
    config, maps, image = panel.maps.method.config, panel.maps, panel.state["image"]
    assert panel.state["scale"] == config.view_scale and panel.state["absent"] is not config.mask_corr_cams
    batch = {"input": maps.input(image), "image_labels": maps.present(image)}
    with torch.no_grad():
        step = Step(maps.method, batch, config.corr_start+1)
        for made, wanted in zip(maps.views(image, config.view_scale, True).values(),
                                ((step.images, step.small), step.pair, (step.logits, step.logits2)), strict=True):
            for a, b in zip(made, wanted): assert torch.allclose(a, b, atol=1e-5)
    passes, before = [], painted(panel)
    maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    send(panel, "place", [.1, .9])
    assert f"patch {int(.9*PLACES)},{int(.1*PLACES)}" in caption(panel) and not passes
    assert not np.array_equal(painted(panel)["answer"], before["answer"])
    switch(panel, "absent", False)
    assert passes and same(panel, panel.view(**panel.state).panels)


def test_prototypes_of_a_run(tsd_cam, tmp_path):
    "Those of the run; rows are computed once an image; a method without prototypes is told"
    more = ["queue_len=96", "proto_from=0", "contrast_start=1", "ptc_start=1", "final_from=5", "ramp_iters=2"]
    run_method("cpdgl", "shapes:n=50", tmp_path/"run", "shapes", stages=["train"], device="cpu", overrides=BRIEF+more)
    panel = PrototypeExplorer(tmp_path/"run", count=2)
    net, rows = load_run(tmp_path/"run"), panel.maps.rows(panel.state["image"])
    wanted = (rows @ net.prototypes.T).argmax(1).view(GRID, GRID)+1
    shown = next(p for p in panel.shown.panels if p.title == "nearest prototype").labels
    assert (shown == wanted.numpy()).mean() > .99          # where two are as near, the last bit decides
    passes, before = [], painted(panel)
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    send(panel, "place", [.1, .9])
    switch(panel, "k", 5)
    assert not np.array_equal(painted(panel)["share of the prototype"], before["share of the prototype"])
    assert f"crop at {int(.9*GRID)},{int(.1*GRID)}" in caption(panel) and not passes
    assert same(panel, panel.view(**panel.state).panels)
    with pytest.raises(UserError, match="tsd_cam has no prototypes; choose a run of cpdgl"): PrototypeExplorer(tsd_cam)


def test_fusion_of_a_run(tsd_cam):
    "It begins with what the run predicts; a switch needs no pass of the network"
    panel, method = FusionExplorer(tsd_cam, count=2), load_run(tsd_cam)
    image = panel.places[1]
    switch(panel, "image", image)
    wanted = predict_image(method, panel.maps.item(image).image).numpy()
    assert np.array_equal(painted(panel)["joined"], overlay(panel.maps.item(image).image, wanted))
    switch(panel, "size_50", True)
    passes, before = [], painted(panel)
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for name, value in (("mirror", False), ("rule", "max-sum"), ("k", 3)): switch(panel, name, value)
    assert not passes and "no mirror · mirrors by maximum, sizes by sum" in caption(panel)
    assert not np.array_equal(painted(panel)["joined"], before["joined"])
    assert same(panel, panel.view(**panel.state).panels)
