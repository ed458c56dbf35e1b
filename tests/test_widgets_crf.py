"The CRF panel without a browser: `send` is what a message from one does."
import numpy as np
import pytest
from panels import caption, painted, same, send, told

from wsss_nb.ground.core import UserError
from wsss_nb.refine.crf import CRF_PRESETS, CRFSettings, dense_crf
from wsss_nb.ground.viz import overlay
from wsss_nb.explore.crf import CRFExample, CRFPanel, crf_caption, crf_panels, crf_picture, toy_examples


@pytest.fixture
def panel(): return CRFPanel(*toy_examples(3))


def chosen(panel): return panel.examples[panel.state["example"]]


def move(panel, name, value):
    "Send that a control is moved to `value`, as the browser does: by its number on the scale"
    return send(panel, name, [v for _, v in panel.controls[name].offers(panel.state)].index(value))


@pytest.mark.parametrize("name,value,says",
                         [("example", 2, "train_00002"), ("iters", 2, "2 rounds"),
                          ("pos_xy_std", 8., "space 8 px"),
                          ("pos_w", 0., "weight 0 ·"),
                          ("bi_xy_std", 9., "colour 9 px"),
                          ("bi_rgb_std", 40., "40 grey levels"),
                          ("bi_w", 12., "weight 12"),
                          ("preset", "deeplab", "colour 67 px")])
def test_a_control_moves_caption_and_picture(panel, name, value, says):
    before, pictures = caption(panel), painted(panel)
    move(panel, name, value)
    assert caption(panel) != before and says in caption(panel)
    assert any(not np.array_equal(p, pictures[k]) for k, p in painted(panel).items())


def test_what_is_shown_is_the_plain_picture(panel):
    for name, value in (("bi_rgb_std", 20.), ("example", 1), ("iters", 4), ("pos_w", 1.)): move(panel, name, value)
    settings = CRFSettings(4, 3., 1., 64., 20., 4.)
    assert panel.settings() == settings and panel.state["preset"] == "own"
    (*_, example), classes = toy_examples(2)
    assert same(panel, crf_panels(example, classes, settings))
    assert np.array_equal(panel.picture(**panel.state), np.asarray(crf_picture(example, classes, settings)))
    assert caption(panel) == crf_caption(example, classes, settings)


def test_the_picture_is_the_crf(panel):
    "The third panel is the label map of `dense_crf` with these settings"
    example, size = chosen(panel), len(chosen(panel).image)
    label = np.array(example.labels)[dense_crf(example.image, example.probs, as_labels=True, preset="tscd")]
    page = np.asarray(crf_picture(example, panel.classes, CRF_PRESETS["tscd"], size))
    assert np.array_equal(page[18:18+size, 2*(size+6):2*(size+6)+size], overlay(example.image, label))


@pytest.mark.parametrize("preset", CRF_PRESETS)
def test_presets_are_drawn_once(panel, monkeypatch, preset):
    drawn = []
    monkeypatch.setattr("wsss_nb.explore.crf.crf_caption",
                        lambda example, classes, settings: drawn.append(settings) or "")
    if preset == panel.state["preset"]: panel.move(preset="psa"); drawn.clear()
    said = move(panel, "preset", preset)
    assert drawn == [CRF_PRESETS[preset]] and panel.settings() == CRF_PRESETS[preset]
    assert said["view"]["state"]["preset"]["text"] == preset == panel.state["preset"]


def test_back_again(panel):
    before = told(panel)["arrays"]
    for v in (1., 90., 5.): move(panel, "bi_rgb_std", v)
    assert panel.settings() == CRF_PRESETS["tscd"] and told(panel)["arrays"] == before


def test_without_ground_truth_there_is_no_score(panel):
    e = chosen(panel)
    blind = CRFPanel([CRFExample("mine", e.image, e.probs, e.labels)], panel.classes)
    assert "mine" in caption(blind) and "mIoU" not in caption(blind)
    assert same(blind, panel.shown.panels)


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="unknown CRF preset"): CRFPanel(preset="tsc")
