"""BECO at its edges: one class, no label, nothing to trust, one image, odd sizes, a batch that is no pair."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from wsss_nb.data.mixing import MixTransform, choose_classes, mix_pairs
from wsss_nb.ground.core import IGNORE_INDEX, UserError, child_rng, seed_everything
from wsss_nb.methods.beco import ORIGINAL, Config, Network, check_data
from wsss_nb.networks.deeplab_plus import DeepLabPlus
from wsss_nb.backbones.resnet import ResNet

SMALL = Config(backbone="resnet_toy", crop_size=32, infer_size=0, infer_scales=None, warmup=1, mix_prob=1.,
               threshold=0.)

def network(classes=3, **change):
    seed_everything(0)
    return Network(replace(SMALL, **change), tuple(map(str, range(classes)))).train()

def batch(label, size=2, classes=3, epoch=1, trust=None):
    "A batch of noise with one label map"
    make = MixTransform(32, classes)
    image = np.random.RandomState(0).randint(0, 256, (*label.shape, 3)).astype(np.uint8)
    samples = [make(image, child_rng(0, 0, i), label, trust) for i in range(size)]
    return {k: torch.stack([s[k] for s in samples]) for k in samples[0]} | {"epoch": epoch}

LABELS = {"background": np.zeros((40, 37), np.uint8), "undecided": np.full((40, 37), IGNORE_INDEX, np.uint8),
          "one class": np.ones((40, 37), np.uint8), "a pixel": np.eye(40, 37, dtype=np.uint8)}

@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("kind", LABELS)
def test_a_step_from_any_label(kind, epoch):
    net = network()
    terms = net.training_losses(batch(LABELS[kind], epoch=epoch), 0)
    total = sum(w*v for w, v in terms.values())
    total.backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in net.parameters())
    if kind == "undecided" and epoch == 0: assert terms["seg"][1] == 0 < terms["cot"][1]  # all is left to the other

def test_one_class_and_no_class():
    for classes in (2, 1):
        terms = network(classes).training_losses(batch(LABELS["background"], classes=classes), 0)
        assert all(v.isfinite() for _, v in terms.values())

def test_nothing_is_trusted():
    given = batch(LABELS["one class"], trust=np.zeros((40, 37), np.float32), epoch=0)
    terms = network(mix_prob=0.).training_losses(given, 0)
    assert terms["seg"][1].abs() < 1e-6 and terms["cot"][1] > 0
    assert network(mix_prob=0., cotrain=False).training_losses(given, 0)["seg"][1].abs() < 1e-6

@pytest.mark.parametrize("size", [(1, 1), (7, 40), (37, 53)])
@pytest.mark.parametrize("options", [{}, {"segmenter": "deeplab_plus"}, {"infer_size": 48},
                                     {"infer_size": 48, "infer_scales": (.75, 1.25)}])
def test_answers_of_any_size(size, options):
    net = network(**options).eval()
    with torch.no_grad(): logits = net.segmentation(torch.randn(1, 3, *size))
    assert logits.shape == (1, 3, *size) and logits.isfinite().all()

def test_res_net_d_of_odd_sizes():
    net = DeepLabPlus(ResNet((1, 1, 1, 3), (2, 2, 2, 2), 4, 16, "all", deep=True, multi_grid=(1, 2, 4)), 3, 4, 2).eval()
    with torch.no_grad(): assert net(torch.randn(1, 3, 37, 53)).shape == (1, 3, 10, 14)

def test_sizes_smaller_than_a_pixel():
    "A further size that leaves no pixel is one of one pixel"
    net = network(infer_scales=(.5,)).eval()
    with torch.no_grad(): assert net.multi_scale(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)

def test_chance_follows_the_sample():
    "The same image in another batch brings the same draws; another epoch brings others"
    make, image, label = MixTransform(32, 3), np.zeros((40, 37, 3), np.uint8), LABELS["a pixel"]
    a, b, c = (make(image, child_rng(*key), label) for key in ((0, 1, 5), (0, 1, 5), (0, 2, 5)))
    for k in ("mix", "keys", "colour"): assert torch.equal(a[k], b[k]) and not torch.equal(a[k], c[k])

def test_classes_beyond_the_half_are_not_pasted():
    label = torch.arange(8).view(1, 2, 4).expand(2, 2, 4).clone()
    for seed in range(20):
        keys = torch.rand(2, 8, generator=torch.Generator().manual_seed(seed))
        chosen = choose_classes(label, keys)
        assert chosen.sum(1).tolist() == [4, 4] and not chosen[:, 0].any()   # of seven, rounded up
        out = mix_pairs(torch.zeros(2, 3, 2, 4), label, torch.ones_like(label), torch.zeros(2), lambda x: chosen)
        assert torch.equal(out["paste"], chosen[:, label[0]])

def test_original_configuration():
    with torch.device("meta"): net = Network(replace(Config(), **ORIGINAL), tuple(map(str, range(20+1))))
    assert [type(n) for n in net.networks] == [DeepLabPlus, DeepLabPlus]
    assert [b.conv2.dilation[0] for b in net.network2.encoder.layer4] == [2, 4, 8]
    assert net.network1.encoder.strides["last"] == 16

def test_batches_are_pairs(monkeypatch):
    monkeypatch.setattr("wsss_nb.methods.beco.processes", lambda: (0, 2))
    check_data(replace(Config(), batch_size=4), None)
    with pytest.raises(UserError, match="beco.batch_size=6: must be divisible by"):
        check_data(replace(Config(), batch_size=6), None)
