"""What the recorded vectors of KTSE's classifier leave open: what is frozen, the optimiser over two steps, dropout,
which passes a term looks at, and sizes that nobody planned."""
from dataclasses import replace

import pytest
import torch
from torch import nn

from wsss_nb.backbones.wide_resnet import FrozenBatchNorm
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import StatelessSampler, TrainingSet, one_class_partner, training_batches
from wsss_nb.data.pair_transforms import PairTransform
from wsss_nb.ground.core import UserError, seed_everything
from wsss_nb.methods import ktse
from wsss_nb.methods.ktse import Config, Network, Step, rate_factor, sgd
from wsss_nb.run.loop import Schedule

CLASSES = ("background", "a", "b", "c")
TINY = Config(width=8, start=0, dropout=0., refine_dilations=(1, 2), refine_iters=2, crop_size=32, pair_images=2)

def network(seed=0, **change):
    seed_everything(seed)
    return Network(replace(TINY, **change), CLASSES, width_div=16).train()

def batch(n=3, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    def labels(): return (torch.rand(n, 3, generator=g) < .4).float().index_fill(1, torch.tensor([seed % 3]), 1.)
    return {"input": torch.randn(n, 3, size, size, generator=g), "input2": torch.randn(n, 3, size, size, generator=g),
            "image_labels": labels(), "image_labels2": labels()}

def total(terms): return sum(w*v for w, v in terms.values())


# %% What trains, and how
def test_what_is_frozen():
    "Norms everywhere and two stages; b3 and all behind it train; training mode changes nothing of that"
    net = network()
    trains = {k for k, p in net.named_parameters() if p.requires_grad}
    def frozen(k): return ".bn" in k or k.split(".")[1].partition("_")[0] in ("conv1a", "b2")
    assert trains == {k for k, _ in net.named_parameters() if not (k.startswith("encoder.") and frozen(k))}
    assert any(k.startswith("encoder.b4_5.conv") for k in trains) and any(k.startswith("encoder.b3.") for k in trains)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 37 and all(type(m) is FrozenBatchNorm for m in norms)
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    total(net.training_losses(batch(), 0)).backward()
    assert all(torch.equal(v, buffers[k]) for k, v in net.named_buffers())
    assert {k for k, p in net.named_parameters() if p.grad is not None} == trains
    loose = network(freeze=False)
    assert all(p.requires_grad for p in loose.parameters())

def test_optimiser_by_hand():
    "What trains follows w -= lr·v, v = momentum·v + gradient + decay·w, over two steps; the rest stays"
    net = network()
    optimizer = sgd(net.config)(net.param_groups(), weight_decay=net.config.weight_decay)
    schedule, velocity = Schedule(optimizer, factor=rate_factor(net.config)), {}
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        total(net.training_losses(batch(seed=step), step)).backward()
        lr, before = schedule.set(step), {k: p.detach().clone() for k, p in net.named_parameters()}
        assert lr == pytest.approx(.01*(1-step/net.config.steps_of_rate)**.9)
        optimizer.step()
        for k, p in net.named_parameters():
            if p.grad is None:
                assert torch.equal(p, before[k])
                continue
            gradient = p.grad+5e-4*before[k]
            velocity[k] = gradient if step == 0 else 5e-4*velocity[k]+gradient
            torch.testing.assert_close(p.detach(), before[k]-lr*velocity[k], atol=1e-7, rtol=1e-5)

def test_published_schedule():
    c = Config()
    assert (c.steps_of_rate, replace(c, total_steps="actual").steps_of_rate) == (52_880, 33_050)
    assert .01*rate_factor(c)(33_049) == pytest.approx(.004137, abs=1e-6)
    sizes, consumed = [], 0
    for _ in range(13_222):
        sizes.append(c.images_per_step(consumed))
        consumed += sizes[-1]
    assert sizes[:13_220] == [8]*13_220 and sizes[13_220:] == [16, 16]
    assert c.term_weights(13_219)["transfer"] == 0 and c.term_weights(13_220)["transfer"] == 1
    assert {k: w for k, w in c.term_weights(0).items() if w} == {"cls": 1.}
    assert 10_582//8*10 == 13_220 and 13_220+10_582//16*30 == 33_050
    batches = iter(StatelessSampler(10, replace(c, start=2, batch_size=2, late_batch=4).images_per_step))
    assert [len(next(batches)) for _ in range(4)] == [2, 2, 4, 4]

def test_groups():
    (group,) = network().param_groups()
    assert group["lr"] == .01 and len(group["params"]) == 43
    apart = {g["name"]: (g["lr"], len(g["params"])) for g in network(head_mult=10.).param_groups()}
    assert apart == {"weights": (.01, 35), "head weights": (.1, 8)}
    seed_everything(0)
    biased = Network(replace(TINY, backbone="vgg_toy"), CLASSES).param_groups()
    assert {g["name"]: (g["lr"], g.get("weight_decay")) for g in biased} == \
        {"weights": (.01, None), "biases": (.02, 0.)}


# %% Passes
def test_only_partners_that_count_are_looked_at():
    "Losses and gradients are those of a step that looks at all partners; of five images four pairs enter"
    net, sample, sizes = network(pair_images=2), batch(4), []
    net.encoder.register_forward_hook(lambda m, given, out: sizes.append(tuple(given[0].shape)))
    total(net.training_losses(sample, 0)).backward()
    assert sizes == [(6, 3, 32, 32), (4, 3, 32, 32), (2, 3, 64, 32)]
    grads = {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
    class All(Step):
        "Looks at each group of images by itself, and at all partners"
        @property
        def both(self): return torch.cat([self.net.cam_seg(self.images), self.net.cam_seg(self.batch["input2"])])
        @property
        def cam2(self): return self.both[len(self.images):, 1:][:self.pairs]
    net.zero_grad(set_to_none=True)
    total(All(net, sample, 0).losses()).backward()
    for k, g in grads.items(): torch.testing.assert_close(dict(net.named_parameters())[k].grad, g, atol=1e-6, rtol=1e-4)

def test_terms_that_are_off_cost_nothing():
    net, sample, sizes = network(start=5), batch(), []
    net.encoder.register_forward_hook(lambda m, given, out: sizes.append(len(given[0])))
    assert list(net.training_losses(sample, 4)) == ["cls"] and sizes == [3]
    assert list(net.training_losses(sample, 5)) == list(net.loss_names) and sizes == [3, 5, 3, 2]
    without = network(w_transfer=0., w_seg_pair=0., w_seg=0.)
    without.encoder.register_forward_hook(lambda m, given, out: sizes.append(len(given[0])))
    assert list(without.training_losses(sample, 0)) == ["cls", "local_align", "global_align"] and sizes[4:] == [3, 3]

def test_dropout(monkeypatch):
    "A fifth of the channels in stages 6 and 7, other ones in each pass; labels are made of the pass that trains"
    net, seen = network(dropout=Config().dropout), []
    drop = nn.functional.dropout2d
    def noted(x, p, on):
        seen.append((p, on))
        return drop(x, p, on)
    monkeypatch.setattr(nn.functional, "dropout2d", noted)
    with torch.no_grad():
        step = Step(net, batch(), 0)
        assert not torch.equal(net.raw_cam(step.images), net.raw_cam(step.images))
        assert seen == [(.2, True)]*8
        assert step.maps.data_ptr() == step.both.data_ptr() and torch.equal(step.label, step.label_of(
            step.images, step.cam, step.image_labels))
        net.eval()
        assert torch.equal(net.raw_cam(step.images), net.raw_cam(step.images))

def test_gradients_flow_both_ways():
    "Nothing is held fixed in the comparisons of maps; labels and masks have no gradient"
    step = Step(network(margin=0.), batch(), 0)
    for x in (step.both, step.cam_erased, step.maps_stack): x.retain_grad()
    (step.local_align()+step.global_align()+step.transfer()).backward(retain_graph=True)
    assert all(x.grad.abs().sum() > 0 for x in (step.both, step.cam_erased, step.maps_stack))
    assert not (step.fg.requires_grad or step.label.requires_grad or step.label2.requires_grad)


# %% What nobody planned
@pytest.mark.parametrize("size,n", [((32, 32), 1), ((8, 8), 2), ((40, 24), 1), ((17, 33), 2)])
def test_odd_sizes(size, n):
    net = network(pair_images=4)
    sample = {k: v[..., :size[0], :size[1]] if v.ndim == 4 else v for k, v in batch(n, 40).items()}
    terms = net.training_losses(sample, 0)
    assert all(torch.isfinite(v) for _, v in terms.values())
    total(terms).backward()
    assert net.eval().segmentation(sample["input"]).shape == (n, 4, *size)

def test_no_class_and_one_class():
    net, sample = network(), batch()
    sample["image_labels"][0] = 0
    sample["image_labels2"][:] = 0
    terms = net.training_losses(sample, 0)
    assert all(torch.isfinite(v) for _, v in terms.values())
    assert (Step(net, sample, 0).label[0] == 0).all()
    seed_everything(0)
    alone = Network(TINY, CLASSES[:2], width_div=16).train()
    one = {k: v[:, :1] if v.ndim == 2 else v for k, v in batch().items()}
    assert all(torch.isfinite(v) for _, v in alone.training_losses(one, 0).values())

def test_empty_means():
    "Published, a mean over no pixels is not a number; the default is a zero that has a gradient"
    sample = batch(1)
    def terms(safe):
        step = Step(network(safe_empty=safe), sample, 0)
        step.label, step.label2 = torch.full((1, 32, 32), 255), torch.full((1, 32, 32), 255)
        return step.losses()
    assert terms(False)["seg"][1].isnan() and terms(False)["seg_pair"][1].isnan()
    safe = terms(True)
    assert safe["seg_pair"][1] == 0
    total(safe).backward()

def test_samples_are_pairs_that_share_a_class():
    data = open_dataset("shapes:n=20")
    samples = TrainingSet(data, PairTransform(64, (60, 80)), parts=(), partner=one_class_partner)
    sample = next(training_batches(samples, 20))
    assert sample["input"].shape == sample["input2"].shape == (20, 3, 64, 64)
    assert ((sample["image_labels"]*sample["image_labels2"]).sum(1) > 0).all()

@pytest.mark.parametrize("setting,says", [
    ({"momentum": 1.}, "below 1"), ({"total_steps": "all"}, "one of reference, actual"), ({"start": -1}, "0 or more"),
    ({"long_side": (5, 4)}, "two whole numbers"), ({"cam_merge": "sum"}, "one of pair, views"),
    ({"low_thresh": .5}, "no higher than high_thresh"), ({"crf": "no"}, "CRF preset")])
def test_wrong_settings(setting, says):
    with pytest.raises(UserError, match=says): replace(Config(), **setting).check()

def test_presets_are_settings():
    for preset in ktse.PRESETS.values(): replace(Config(), **preset).check()
