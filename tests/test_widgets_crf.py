"The CRF panel without a browser: `set_state` is what a message from one does."
import io

import numpy as np
import pytest
from PIL import Image

from wsss_nb.ground.core import UserError
from wsss_nb.refine.crf import CRF_PRESETS, CRFSettings, dense_crf
from wsss_nb.ground.viz import overlay
from wsss_nb.explore.crf import CRFExample, CRFPanel, crf_caption, crf_picture, toy_examples


@pytest.fixture
def panel(): return CRFPanel(*toy_examples(3))


def shown(panel): return np.asarray(Image.open(io.BytesIO(panel.picture.value)))
def chosen(panel): return panel.examples[panel.controls["example"].value]


@pytest.mark.parametrize("name,state,says",
                         [("example", {"index": 2}, "train_00002"), ("iters", {"value": 2}, "2 rounds"),
                          ("pos_xy_std", {"value": 8.}, "space 8 px"),
                          ("pos_w", {"value": 0.}, "weight 0 ·"),
                          ("bi_xy_std", {"value": 9.}, "colour 9 px"),
                          ("bi_rgb_std", {"value": 40.}, "40 grey levels"),
                          ("bi_w", {"value": 12.}, "weight 12"),
                          ("preset", {"index": 1}, "colour 67 px")])
def test_a_control_moves_caption_and_picture(panel, name, state, says):
    caption, png = panel.caption.value, panel.picture.value
    panel.controls[name].set_state(state)
    assert panel.caption.value != caption and says in panel.caption.value
    assert panel.picture.value != png


def test_what_is_shown_is_the_plain_picture(panel):
    for name, state in (("bi_rgb_std", {"value": 20.}), ("example", {"index": 1}), ("iters", {"value": 4}),
                        ("pos_w", {"value": 1.})):
        panel.controls[name].set_state(state)
    settings = CRFSettings(4, 3., 1., 64., 20., 4.)
    assert panel.settings() == settings and panel.controls["preset"].value == "own"
    (*_, example), classes = toy_examples(2)
    assert np.array_equal(shown(panel), np.asarray(crf_picture(example, classes, settings)))
    assert panel.caption.value == crf_caption(example, classes, settings)


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
    if preset == panel.controls["preset"].value: panel.controls["preset"].value = "psa"; drawn.clear()
    panel.controls["preset"].value = preset
    assert drawn == [CRF_PRESETS[preset]] and panel.settings() == CRF_PRESETS[preset]


def test_back_again(panel):
    before = panel.picture.value
    for v in (1., 90., 5.): panel.controls["bi_rgb_std"].set_state({"value": v})
    assert panel.settings() == CRF_PRESETS["tscd"] and panel.picture.value == before


def test_without_ground_truth_there_is_no_score(panel):
    e = chosen(panel)
    blind = CRFPanel([CRFExample("mine", e.image, e.probs, e.labels)], panel.classes)
    assert "mine" in blind.caption.value and "mIoU" not in blind.caption.value
    assert np.array_equal(shown(blind), shown(panel))


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="unknown CRF preset"): CRFPanel(preset="tsc")
