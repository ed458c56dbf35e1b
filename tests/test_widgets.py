"""The explorer without a browser: `send` is what a message from one does.

Time is measured by benchmarks/explorer.py, not here."""
import os

import numpy as np
import pytest
import torch
from commands import STAGED
from panels import caption, painted, same, send, told

from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.explore.crf import CRFPanel, run_examples
from wsss_nb.explore.sweep import SweepExplorer, run_cams
from wsss_nb.ground.core import UserError
from wsss_nb.ground.io import read_cam
from wsss_nb.use.experiment import load_run, run_method
from wsss_nb.run.evaluate import label_image, predict_image
from wsss_nb.ground.viz import overlay, overlay_cam
from wsss_nb.explore.cam import (SCALES, Explorer, StageMaps, explorer_caption, explorer_panels, explorer_picture,
                                 explorer_scores)
from wsss_nb.explore.compare import CompareExplorer, run_pairs

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
    return panel.move(image=next(i for i in maps.places if maps.present(i).sum() == 2))


@pytest.mark.parametrize("name,value,says", [("image", 7, "val_00007"), ("only", 1, "· IoU seed"),
                                             ("scales", len(SCALES)-1, "scales 1, 0.5, 1.5"),
                                             ("bg_thresh", 5, "threshold 0.05"),
                                             ("layer", 1, "layer aux")])
def test_a_control_moves_caption_and_picture(panel, name, value, says):
    before, pictures = caption(panel), painted(panel)
    send(panel, name, value)
    assert caption(panel) != before and says in caption(panel)
    assert any(not np.array_equal(p, pictures[k]) for k, p in painted(panel).items())


def test_what_is_shown_is_the_plain_picture(panel, run):
    "After any moves, the panel shows what a fresh script would draw from the same settings"
    for name, value in (("bg_thresh", 60), ("layer", 1), ("image", 4), ("bg_thresh", 20), ("scales", 0)):
        send(panel, name, value)
    fresh = StageMaps(run)
    assert same(panel, explorer_panels(fresh, **panel.state))
    assert np.array_equal(panel.picture(**panel.state), explorer_picture(fresh, **panel.state))
    assert caption(panel) == explorer_caption(fresh, **panel.state)


def test_back_again(panel):
    "Kept maps are not changed by what is made of them"
    before = told(panel)["view"], told(panel)["arrays"]
    for t in (10, 90, round(100*panel.state["bg_thresh"])): send(panel, "bg_thresh", t)
    for i in (1, 0): send(panel, "layer", i)
    assert (told(panel)["view"], told(panel)["arrays"]) == before


def test_nothing_is_computed_twice(panel):
    passes = []
    panel.maps.method.encoder.register_forward_hook(lambda *_: passes.append(1))
    for name, value in (("bg_thresh", 60), ("only", 1), ("only", 0)): send(panel, name, value)
    assert not passes
    send(panel, "layer", 1)
    assert len(passes) == len({1, *panel.maps.method.config.cam_scales})
    send(panel, "layer", 0)
    assert len(passes) == len({1, *panel.maps.method.config.cam_scales})


def test_each_change_is_drawn_once(panel, monkeypatch):
    "Also where the new image brings other classes, with the chosen one among them or not"
    maps, drawn, expected = panel.maps, [], []
    monkeypatch.setattr("wsss_nb.explore.cam.explorer_caption",
                        lambda maps, **settings: drawn.append((settings["image"], settings["only"])) or "")
    for image in [i for i in maps.places if i != panel.state["image"]][:10]:
        present, chosen = (np.flatnonzero(maps.data.image_labels(image))+1).tolist(), panel.state["only"]
        panel.move(image=image)
        expected.append((image, chosen if chosen in present else 0))
        send(panel, "only", 1)
        if expected[-1] != (image, present[0]): expected.append((image, present[0]))
    assert drawn == expected


def test_classes_follow_the_image(panel):
    maps, only = panel.maps, panel.controls["only"]
    for image in maps.places[:20]:
        panel.move(image=image)
        options = only.offers(panel.state)
        assert [v-1 for _, v in options[1:]] == np.flatnonzero(maps.data.image_labels(image)).tolist()
        assert told(panel)["view"]["state"]["only"]["texts"] == [t for t, _ in options]
        if len(options) > 2: send(panel, "only", 2)   # keep one chosen: the next image may lack it


@pytest.mark.parametrize("bg_thresh,scales", [(.2, (1.,)), (.6, (1., .5, 1.5))])
def test_maps_are_those_that_are_scored(panel, run, bg_thresh, scales):
    "Of a run with these settings, by the functions that evaluate it; drawing them before does no harm"
    image = panel.state["image"]
    for only in (0, panel.controls["only"].offers(panel.state)[1][1]):
        explorer_picture(panel.maps, image, only, bg_thresh=bg_thresh, scales=scales)
    item, out = panel.maps.item(image), panel.maps.stages(image, bg_thresh=bg_thresh, scales=scales)
    method = load_run(run, overrides=[f"bg_thresh={bg_thresh}", f"cam_scales={','.join(map(str, scales))}"])
    scored = label_image(method, item.image, item.image_labels)
    for k in ("seed", "pseudo_label"): assert torch.equal(out[k], scored[k]), k
    assert torch.allclose(out["cam"], scored["cam"][item.image_labels > 0])
    assert torch.equal(out["prediction"], predict_image(method, item.image))


def test_one_class_alone(panel):
    "Every panel shows it and nothing else; the caption scores it"
    image, only = panel.state["image"], panel.controls["only"].offers(panel.state)[2][1]
    maps, item, out = panel.maps, panel.maps.item(image), panel.maps.stages(image)
    side, height = len(item.image), 18      # of a line of text
    page = np.asarray(explorer_picture(maps, image, only, size=side))
    assert page.shape[0] >= 2*(side+height)+6
    def at(row, col): return page[row*(side+height+6)+height:][:side, col*(side+6):][:, :side]
    assert np.array_equal(at(0, 0), item.image)
    for k, place in {"seed": (0, 2), "prediction": (0, 3), "ground_truth": (1, 0), "pseudo_label": (1, 2)}.items():
        assert np.array_equal(at(*place), overlay(item.image, np.where(out[k] == only, only, 0))), k
    for k, place in {"cam": (0, 1), "refined": (1, 1)}.items():
        heat = (out[k][1].numpy()*255).round()/np.float32(255)   # one byte a pixel, which a browser gets too
        assert np.array_equal(at(*place), overlay_cam(item.image, heat)), k
    mask, said = item.mask == only, explorer_caption(maps, image, only)
    for k in ("seed", "pseudo label", "prediction"):
        label = out[k.replace(" ", "_")].numpy() == only
        assert f"{k} {(label & mask).sum()/(label | mask).sum():.2f}" in said, k
    assert f"{item.id} · {maps.data.classes[only]} · threshold" in said


def test_mistakes_are_one_line(run, tmp_path):
    for args, says in (((tmp_path,), "not a run folder"), ((tmp_path/"none",), "no such run"),
                       ((run, "shapes:m=3"), "unknown option")):
        with pytest.raises(UserError, match=says): Explorer(*args)


def test_an_error_is_said_and_everything_goes_back(panel, monkeypatch):
    "The slider does not stay where its picture is not"
    before, state, view = painted(panel), dict(panel.state), told(panel)["view"]
    monkeypatch.setattr(panel.maps, "stages", lambda *args, **kw: 1/0)
    said = send(panel, "image", 3)
    assert "ZeroDivisionError" in said["error"] and "what was there before" in said["error"]
    assert panel.state == state and said["view"] == view
    assert all(np.array_equal(before[k], v) for k, v in painted(panel).items())
    monkeypatch.undo()
    said = send(panel, "image", 3)
    assert said["error"] == "" and "val_00003" in said["view"]["caption"]


def test_a_run_on_a_relative_path_opens_from_anywhere(run, tmp_path, monkeypatch):
    scenes = [open_dataset("shapes:n=40,size=64", split, masks=True) for split in ("train", "val")]
    write_voc_folder(scenes, tmp_path/"photos")
    monkeypatch.chdir(tmp_path)
    run_method("baseline", "photos", "run", "shapes", stages=["train"], device="cpu", overrides=BRIEF)
    here = Explorer("run").shown.caption
    (tmp_path/"elsewhere").mkdir()
    monkeypatch.chdir(tmp_path/"elsewhere")
    assert Explorer(tmp_path/"run").shown.caption == here == Explorer(os.path.relpath(tmp_path/"run")).shown.caption


def test_a_method_of_several_stages_shows_its_files(tmp_path):
    "I2CRC ends with a segmenter; its CAMs are files of the images that it has labelled"
    run_method("i2crc", "shapes:n=20,size=64", tmp_path/"run", "shapes", device="cpu", overrides=STAGED["i2crc"][3:])
    panel = Explorer(tmp_path/"run")
    assert [*panel.controls] == ["image", "only", "bg_thresh"] and "train_00000" in caption(panel)
    maps, image = panel.maps, panel.state["image"]
    keys, cam = read_cam(tmp_path/"run"/"cams"/"train_00000.npz")
    out, item = maps.stages(image, bg_thresh=.4), maps.item(image)
    assert np.allclose(out["cam"], cam) and keys.tolist() == np.flatnonzero(item.image_labels).tolist()
    assert torch.equal(out["prediction"], predict_image(maps.method, item.image))
    assert "CAM from its file" in send(panel, "bg_thresh", 40)["view"]["caption"]
    assert same(panel, explorer_panels(maps, image, bg_thresh=.4))
    with pytest.raises(UserError, match="give neither"): maps.stages(image, scales=(1.,))
    examples, _ = run_examples(tmp_path/"run", count=2)
    assert len(examples) == 2 and CRFPanel(examples, maps.data.classes).shown.numbers["changed"] >= 0
    for path in (tmp_path/"run"/"cams").iterdir(): path.unlink()
    with pytest.raises(UserError, match="holds no CAM files"): Explorer(tmp_path/"run")


def test_a_run_is_swept_and_compared(run):
    "The other explorers of a run take its maps as they are"
    examples, classes = run_cams(run, count=2)
    sweep, maps = SweepExplorer(examples, classes), StageMaps(run)
    image, half = maps.places[0], sweep.scale.index(.5)
    assert np.array_equal(examples[0].cam, maps.stages(image)["cam"]) and f"val_{image:05d}" in caption(sweep)
    assert np.array_equal(sweep.move(bg_thresh=.5).shown.panels[2].labels, maps.stages(image, bg_thresh=.5)["seed"])
    seed = explorer_scores(maps, image, bg_thresh=.5)["seed"]
    assert sweep.curves[0][half] == sweep.shown.numbers["mIoU here"] == pytest.approx(seed)
    stages, _ = run_pairs(run, count=2)
    assert [*stages[0].maps] == ["seed", "pseudo label", "prediction"]
    twice = CompareExplorer(*run_pairs(run, run, count=1))
    assert "0.0% differ" in caption(twice) and "run 1 | run 2" in caption(twice)
