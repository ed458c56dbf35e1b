"The explorers of KTSE's three stages on one small run, without a browser."
import numpy as np
import pytest
import torch
from commands import STAGED
from panels import caption, painted, same, send

from wsss_nb.data.foreign import read_confidence
from wsss_nb.data.transforms import normalise
from wsss_nb.explore.class_mixing import MixingExplorer, run_mixing
from wsss_nb.explore.erasing import ErasingExplorer, part_of_run
from wsss_nb.explore.gate import GateExplorer
from wsss_nb.explore.inter_pixel import InterPixelExplorer, run_inter_pixel
from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.ground.io import read_label
from wsss_nb.ground.tensors import resize
from wsss_nb.losses.erasing import erased, foreground, stacked
from wsss_nb.methods import ktse
from wsss_nb.networks.gated_pyramid import FIELDS
from wsss_nb.run.folder import Run
from wsss_nb.use.experiment import run_method


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run folder of the whole chain, which has hardly learnt anything"
    path = tmp_path_factory.mktemp("explorers")/"run"
    run_method("ktse", "shapes:n=8,size=64", path, "shapes", device="cpu", overrides=STAGED["ktse"][3:])
    return path


def test_erasing_looks_with_the_classifier_of_the_run(run):
    panel = ErasingExplorer.of_run(run)
    net, data = part_of_run(run, "ktse", "train", ktse.Network)
    before = painted(panel)
    send(panel, "thresh", 1)
    assert "erased from 0.2" in caption(panel) and not np.array_equal(painted(panel)["erased"], before["erased"])
    image, k, partner = (panel.state[name] for name in ("image", "only", "partner"))
    x, x2 = (normalise(data[i].image)[None] for i in (image, partner))
    with torch.no_grad():
        cam = net(x)["cam"]
        fg = foreground(cam, torch.as_tensor(data.image_labels(image)).float()[None], x.shape[-2:])
        left, both = net(erased(x, fg, .2)), net(stacked(x, x2))
    numbers = [*panel.shown.numbers.values()]
    assert numbers[1:3] == pytest.approx([float(o["cls_logits"].sigmoid()[0, k]) for o in (left, both)], abs=1e-4)
    top = cam[0, k].relu().max().clamp(min=1e-6)
    shown = {p.title: p for p in panel.shown.panels}
    for name, cam in {"CAM of the rest": left["cam"][0, k], "image, stacked": both["cam"][0, k].chunk(2)[0]}.items():
        assert np.allclose(shown[name].heat/255, (cam.relu()/top).clamp(max=1), atol=.003), name
    assert same(panel, panel.view(**panel.state).panels)
    with pytest.raises(UserError, match="without toco"): part_of_run(run, "toco", "train", ktse.Network)


def test_labels_and_masks_are_those_of_the_run(run):
    "Where the controls begin, the explorer of IRN shows what the stage wrote"
    panel, (examples, *_) = InterPixelExplorer.of_run(run, count=3), run_inter_pixel(run, count=1)
    assert torch.equal(examples[0].maps, panel.examples[0].maps)
    assert [*panel.controls["source"].options] == [("IRNet", "IRNet"), ("colours", "colours")]
    assert panel.state["steps"] == 4 and "it points" in caption(panel)
    for i in range(3):
        panel.move(image=i)
        label, trusted = panel.shown.panels[6:8]
        folder, name = Run(run), panel.examples[i].name
        expected = read_label(folder.file("labels", name))
        assert (label.labels == expected).mean() > .999
        sure = read_confidence(folder.file("confidence", name))
        assert ((trusted.labels != IGNORE_INDEX) == sure).mean() > .99
    send(panel, "place", [.9, .1])
    assert "pixel 1,14 of 16×16" in caption(panel) and same(panel, panel.view(**panel.state).panels)
    assert "points" not in send(panel, "source", 1)["view"]["caption"]


def test_mixing_looks_with_both_networks_of_the_run(run):
    "Labels and masks are those in its folders; what each network says is seen, and where the two differ"
    net, examples = run_mixing(run, count=3)
    folder = Run(run)
    for e in examples:
        assert np.array_equal(e.label, read_label(folder.file("labels", e.name)))
        assert np.array_equal(e.trust, read_confidence(folder.file("confidence", e.name)))
    panel = MixingExplorer({"run": net}, examples)
    send(panel, "source", 1)
    assert caption(panel).startswith("train_00000 · pasted from train_00001")
    shown = {p.title: p for p in panel.shown.panels}
    with torch.no_grad(): logits = net.logits(normalise(shown["mixed"].image)[None])
    answers = [resize(z, (64, 64)).argmax(1)[0] for z in logits]
    for n,answer in enumerate(answers, 1): assert np.array_equal(shown[f"network {n}"].labels, answer)
    assert np.array_equal(shown["they disagree"].labels > 0, answers[0] != answers[1])
    assert same(panel, panel.view(**panel.state).panels)


def test_the_gated_pyramid_is_that_of_the_run(run):
    "With all levels it is the classifier's answer; a level that is off is not seen"
    panel, (net, data) = GateExplorer.of_run(run), part_of_run(run, "ktse", "train", ktse.Network)
    image, k = panel.state["image"], panel.state["only"]
    with torch.no_grad(): out = net(normalise(data[image].image)[None])
    numbers = [*panel.shown.numbers.values()]
    assert numbers[:2] == pytest.approx([float(out["cls_logits"].sigmoid()[0, k])]*2, abs=1e-5)
    assert torch.allclose(panel.passed(image, panel.state["network"], FIELDS).weights, out["gpp"][0], atol=1e-5)
    before = painted(panel)
    send(panel, "level_8", False)
    now = painted(panel)
    assert "levels 2×2, 4×4, 16×16" in caption(panel) and same(panel, panel.view(**panel.state).panels)
    assert all(not np.array_equal(now[t], before[t]) for t in ("8×8", "8×8 passes"))
    assert np.array_equal(now["CAM"], before["CAM"])
    assert "speaks against it" in send(panel, "sign", 1)["view"]["caption"]
