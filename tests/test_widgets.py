"""The explorer without a browser: `set_state` is what a message from one does.

Time is measured by benchmarks/explorer.py, not here."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.ground.core import UserError
from wsss_nb.use.experiment import load_run, run_method
from wsss_nb.run.evaluate import label_image, predict_image
from wsss_nb.ground.viz import overlay, overlay_cam
from wsss_nb.explore.cam import SCALES, Explorer, StageMaps, explorer_caption, explorer_picture

BRIEF = ["iters=8", "batch_size=4", "warmup_iter=1", "seg_start=4", "save_every=8", "val_images=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder with a method that has hardly learnt anything"
    path = tmp_path_factory.mktemp("explorer")/"run"
    run_method("baseline", "shapes:n=50", path, "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    return path


@pytest.fixture
def panel(run):
    "An explorer on an image with two classes"
    panel = Explorer(run)
    maps = panel.maps
    panel.controls["image"].value = next(i for i in maps.places if maps.present(i).sum() == 2)
    return panel


def values(panel): return {k: w.value for k, w in panel.controls.items()}
def shown(panel): return np.asarray(Image.open(io.BytesIO(panel.picture.value)))


@pytest.mark.parametrize("name,state,says", [("image", {"index": 7}, "val_00007"), ("only", {"index": 1}, "· IoU seed"),
                                             ("scales", {"index": len(SCALES)-1}, "scales 1, 0.5, 1.5"),
                                             ("bg_thresh", {"value": .05}, "threshold 0.05"),
                                             ("layer", {"index": 1}, "layer aux")])
def test_a_control_moves_caption_and_picture(panel, name, state, says):
    caption, png = panel.caption.value, panel.picture.value
    panel.controls[name].set_state(state)
    assert panel.caption.value != caption and says in panel.caption.value
    assert panel.picture.value != png
    assert "wsss-caption" in panel.caption._dom_classes


def test_what_is_shown_is_the_plain_picture(panel, run):
    "After any moves, the panel shows what a fresh script would draw from the same settings"
    for name, state in (("bg_thresh", {"value": .6}), ("layer", {"index": 1}), ("image", {"index": 4}),
                        ("bg_thresh", {"value": .2}), ("scales", {"index": 0})):
        panel.controls[name].set_state(state)
    fresh = StageMaps(run)
    assert np.array_equal(shown(panel), explorer_picture(fresh, **values(panel)))
    assert panel.caption.value == explorer_caption(fresh, **values(panel))


def test_back_again(panel):
    "Kept maps are not changed by what is made of them"
    before = panel.picture.value
    for t in (.1, .9, values(panel)["bg_thresh"]): panel.controls["bg_thresh"].set_state({"value": t})
    for i in (1, 0): panel.controls["layer"].set_state({"index": i})
    assert panel.picture.value == before


def test_nothing_is_computed_twice(panel):
    passes = []
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for name, state in (("bg_thresh", {"value": .6}), ("only", {"index": 1}), ("only", {"index": 0})):
        panel.controls[name].set_state(state)
    assert not passes
    panel.controls["layer"].set_state({"index": 1})
    assert len(passes) == len({1, *panel.maps.method.config.cam_scales})
    panel.controls["layer"].set_state({"index": 0})
    assert len(passes) == len({1, *panel.maps.method.config.cam_scales})


def test_each_change_is_drawn_once(panel, monkeypatch):
    "Also where the new image brings other classes, with the chosen one among them or not"
    maps, only, drawn, expected = panel.maps, panel.controls["only"], [], []
    monkeypatch.setattr("wsss_nb.explore.cam.explorer_caption",
                        lambda maps, **settings: drawn.append((settings["image"], settings["only"])) or "")
    for image in [i for i in maps.places if i != panel.controls["image"].value][:10]:
        present, chosen = (np.flatnonzero(maps.data.image_labels(image))+1).tolist(), only.value
        panel.controls["image"].value = image
        expected.append((image, chosen if chosen in present else 0))
        only.index = 1
        if expected[-1] != (image, present[0]): expected.append((image, present[0]))
    assert drawn == expected


def test_classes_follow_the_image(panel):
    maps, only = panel.maps, panel.controls["only"]
    for image in maps.places[:20]:
        panel.controls["image"].value = image
        assert [v-1 for _, v in only.options[1:]] == np.flatnonzero(maps.data.image_labels(image)).tolist()
        if len(only.options) > 2: only.index = 2   # keep one chosen: the next image may lack it


@pytest.mark.parametrize("bg_thresh,scales", [(.2, (1.,)), (.6, (1., .5, 1.5))])
def test_maps_are_those_that_are_scored(panel, run, bg_thresh, scales):
    "Of a run with these settings, by the functions that evaluate it; drawing them before does no harm"
    image = panel.controls["image"].value
    for only in (0, panel.controls["only"].options[1][1]):
        explorer_picture(panel.maps, image, only, bg_thresh=bg_thresh, scales=scales)
    item, out = panel.maps.item(image), panel.maps.stages(image, bg_thresh=bg_thresh, scales=scales)
    method = load_run(run, overrides=[f"bg_thresh={bg_thresh}", f"cam_scales={','.join(map(str, scales))}"])
    scored = label_image(method, item.image, item.image_labels)
    for k in ("seed", "pseudo_label"): assert torch.equal(out[k], scored[k]), k
    assert torch.allclose(out["cam"], scored["cam"][item.image_labels > 0])
    assert torch.equal(out["prediction"], predict_image(method, item.image))


def test_one_class_alone(panel):
    "Every panel shows it and nothing else; the caption scores it"
    image, only = panel.controls["image"].value, panel.controls["only"].options[2][1]
    maps, item, out = panel.maps, panel.maps.item(panel.controls["image"].value), panel.maps.stages(image)
    side = len(item.image)
    page = np.asarray(explorer_picture(maps, image, only, size=side))
    height = (page.shape[0]-2*side-6)//2   # of a line of text
    def at(row, col): return page[row*(side+height+6)+height:][:side, col*(side+6):][:, :side]
    assert np.array_equal(at(0, 0), item.image)
    for k, place in {"seed": (0, 2), "prediction": (0, 3), "ground_truth": (1, 0), "pseudo_label": (1, 2)}.items():
        assert np.array_equal(at(*place), overlay(item.image, np.where(out[k] == only, only, 0))), k
    for k, place in {"cam": (0, 1), "refined": (1, 1)}.items():
        assert np.array_equal(at(*place), overlay_cam(item.image, out[k][1])), k
    mask, said = item.mask == only, explorer_caption(maps, image, only)
    for k in ("seed", "pseudo label", "prediction"):
        label = out[k.replace(" ", "_")].numpy() == only
        assert f"{k} {(label & mask).sum()/(label | mask).sum():.2f}" in said, k
    assert f"{item.id} · {maps.data.classes[only]} · threshold" in said


def test_mistakes_are_one_line(run, tmp_path):
    for args, says in (((tmp_path,), "not a run folder"), ((tmp_path/"none",), "no such run"),
                       ((run, "shapes:m=3"), "unknown option")):
        with pytest.raises(UserError, match=says): Explorer(*args)
