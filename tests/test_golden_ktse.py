"""Golden vectors of KTSE's classifier (area `ktse`): sizes, options and case counts come from the files.

Its CRF is in test_golden_crf_of_methods."""
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from golden_files import cases, golden

from torch.nn import functional as F

from wsss_nb.backbones.core import create_backbone, load_matching, read_weights
from wsss_nb.backbones.wide_resnet import WideBlock, WideBottleneck, published_name
from wsss_nb.cam.views import summed_views
from wsss_nb.data.pair_transforms import bordered_crop, original_levels, resize_long
from wsss_nb.data.segment_transforms import network_input
from wsss_nb.losses.erasing import (
    erased, foreground, global_align_loss, local_align_loss, peak_normalised, stacked, transfer_loss)
from wsss_nb.losses.own_labels import label_losses, own_label_losses
from wsss_nb.methods.ktse import SWEEP, Config, Network, Step, map_label, published_state, seed_sweep, sgd
from wsss_nb.networks.gated_pyramid import GatedPyramid, GatedPyramidNet, SignedGate, agreement, pooled
from wsss_nb.refine.par import DIRECTIONS, KERNELS, neighbours, par
from wsss_nb.run.loop import Schedule
from wsss_nb.run.schedules import lr_factor


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def close(a, b, atol=0., rtol=0.):
    assert a.shape == b.shape
    torch.testing.assert_close(a.detach().double(), torch.as_tensor(b).double(), atol=atol, rtol=rtol)

def within(a, b, share):
    "Absolute error at most `share` of the largest magnitude of the array"
    close(a, b, atol=share*b.abs().max().item())

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% Backbone
@pytest.mark.parametrize("path", golden("ktse", "resblock"))
def test_blocks(path):
    z = load(path)
    def option(name): return z[f"opt/{name}"].item()
    params = tensors(z, "param")
    if "conv_branch2b2.weight" in params:
        block = WideBottleneck(option("in_channels"), option("out_channels"), option("stride"), option("dilation"),
                               option("dropout"))
    else:
        block = WideBlock(option("in_channels"), option("mid_channels"), option("out_channels"), option("stride"),
                          option("first_dilation"), option("dilation"))
    block.load_state_dict(params)
    with torch.no_grad():
        close(block.eval()(z["in/x"]), z["out/y"], atol=1e-5)
        close(block.bn_branch2a(z["in/x"]).relu(), z["out/pre"], atol=1e-5)


@pytest.mark.parametrize("path", golden("ktse", "mxnet_params"))
def test_imagenet_file(path, tmp_path):
    "Every layout gives the same tensors, and they fill a network whose widths are theirs"
    z = np.load(path)
    expected, file = {k[4:]: z[k] for k in z if k.startswith("out/")}, tmp_path/"net.params"
    layouts = [k for k in z if k.startswith("in/file")]
    assert layouts
    for layout in layouts:
        file.write_bytes(z[layout].tobytes())
        found = {published_name(k): v.numpy() for k, v in read_weights(file).items()}
        assert found.pop(None, None) is not None and found.keys() == expected.keys()
        for k, v in expected.items():
            assert found[k].dtype == v.dtype
            np.testing.assert_array_equal(found[k], v)
    conv1a, stages = len(expected["conv1a.weight"]), range(2, 8)
    def out(s): return len(expected.get(f"b{s}.conv_branch2b2.weight", expected.get(f"b{s}.conv_branch2b1.weight")))
    net = create_backbone("wide_resnet38", init=file, widths=(conv1a, *map(out, stages)))
    for k, v in expected.items(): np.testing.assert_array_equal(net.state_dict()[k], v)


# %% Head and network
def our_name(name):
    "Return what a tensor of a published checkpoint is called here"
    if name.startswith("gconv"): return f"pyramid.{name}"
    return name if name.startswith(("fc8", "fc9")) else f"encoder.{name}"

def gated_net(params, num_fg, width_div):
    "Return a network with the tensors of a published checkpoint, all but the norm that nobody uses"
    net = GatedPyramidNet(create_backbone("wide_resnet38", width_div=width_div), num_fg, len(params["fc8.weight"]))
    state = published_state(params)
    assert state.keys() == {our_name(k) for k in params if not k.startswith("bn8.")} == net.state_dict().keys()
    assert not load_matching(net, state)
    return net.eval()

@pytest.mark.parametrize("path", golden("ktse", "gated_conv"))
def test_gate(path):
    z = load(path)
    gate, x, y = SignedGate(z["in/x"].shape[1]), z["in/x"].requires_grad_(), z["in/y"].requires_grad_()
    gate.load_state_dict(tensors(z, "param"))
    out = gate(x, y)
    (out*z["in/w"]).sum().backward()
    for ours, name in ((out, "out/y"), (x.grad, "grad/x"), (y.grad, "grad/y")): close(ours, z[name], atol=1e-5)

@pytest.mark.parametrize("path", golden("ktse", "gpp_head"))
def test_head(path):
    z = load(path)
    cam = z["in/cam"].requires_grad_()
    pyramid = GatedPyramid(cam.shape[1])
    pyramid.load_state_dict(tensors(z, "param"))
    for k in z:
        if k.startswith("out/pool"): close(pooled(cam, int(k.removeprefix("out/pool"))), z[k], atol=1e-5)
    gpp = pyramid(cam)
    logits = agreement(cam, gpp)
    loss = F.binary_cross_entropy_with_logits(logits, z["in/label"])
    loss.backward()
    for ours, name in ((gpp, "out/gpp"), (logits, "out/logits"), (loss, "out/loss_cls"), (cam.grad, "grad/cam")):
        close(ours, z[name], atol=1e-5)

@pytest.mark.parametrize("path", golden("ktse", "net_gpp_tiny"))
def test_network(path):
    z = load(path)
    net = gated_net(tensors(z, "param"), z["out/logits"].shape[1], int(z["opt/width_div"]))
    with torch.no_grad(): out, features = net(z["in/x"]), net.encoder(z["in/x"])
    for name, ours in {"cam": out["cam"], "logits": out["cls_logits"], "gpp": out["gpp"], "cam_seg": out["cam_seg"],
                       "stage2": features["stage2"], "stage4": features["stage4"]}.items():
        close(ours, z[f"out/{name}"], atol=1e-4)


# %% Erasing
@pytest.mark.parametrize("path", golden("ktse", "erase_masks"))
def test_erase_masks(path):
    z = load(path)
    cam, y, thresh, size = z["in/cam"], z["in/label"], float(z["opt/th"]), tuple(z["in/img"].shape[-2:])
    close(peak_normalised(cam), z["out/cam_norm"], atol=1e-5)
    low, full = foreground(cam, y), foreground(cam, y, size)
    for fg, name in ((low, "low"), (full, "full")):
        close(fg, z[f"out/fg_{name}"], atol=1e-5)
        sure = (z[f"out/fg_{name}"]-thresh).abs() > 1e-5
        assert torch.equal((fg < thresh)[sure], z[f"out/keep_{name}"][sure])
    sure = ((z["out/fg_full"]-thresh).abs() > 1e-5).expand_as(z["in/img"])
    close(erased(z["in/img"], full, thresh)[sure], z["out/erased"][sure], atol=1e-5)

def rel(a, b, share): within(a, torch.as_tensor(b), share)

@pytest.mark.parametrize("path", golden("ktse", "loss_local_align"))
def test_local_align(path):
    z = load(path)
    a, b = z["in/cam"].requires_grad_(), z["in/cam_erased"].requires_grad_()
    loss = local_align_loss(a, b, z["in/keep_low"], z["in/label"])
    loss.backward()
    for ours, name in ((loss, "out/loss"), (a.grad, "grad/cam"), (b.grad, "grad/cam_erased")): rel(ours, z[name], 1e-6)

@pytest.mark.parametrize("path", golden("ktse", "loss_global_align"))
def test_global_align(path):
    z = load(path)
    a, b = z["in/cam"].requires_grad_(), z["in/cam_erased"].requires_grad_()
    loss = global_align_loss(a, b, z["in/label"])
    loss.backward()
    for ours, name in ((loss, "out/loss"), (a.grad, "grad/cam"), (b.grad, "grad/cam_erased")): rel(ours, z[name], 1e-6)
    close((z["out/anchor"]-z["out/positive"]).abs().mean(), z["out/loss"], rtol=1e-6)

@pytest.mark.parametrize("path", golden("ktse", "loss_kt"))
def test_transfer(path):
    z = load(path)
    a, b, pair = (z[f"in/{k}"].requires_grad_() for k in ("cam1", "cam2", "cam_pair"))
    union = torch.maximum(z["in/label1"], z["in/label2"])
    assert torch.equal(union, z["out/label_pair"])
    loss = transfer_loss(stacked(a, b), pair, union)
    loss.backward()
    rel(loss, z["out/loss"], 1e-6)
    for x, name in ((a, "cam1"), (b, "cam2"), (pair, "cam_pair")): rel(x.grad, z[f"grad/{name}"], 1e-6)


# %% Losses on labels
W_FG, W_GAP = Config().fg_weight, Config().gap_weight

@pytest.mark.parametrize("path", golden("ktse", "loss_seg"))
def test_own_labels(path):
    "All files of this beginning, those of the pair among them"
    z = load(path)
    scores = z["in/scores"].requires_grad_()
    if "in/label" not in z:
        background, objects = label_losses(scores, z["in/pseudo"])
        loss, gap = background+W_FG*objects, None
        if z["out/loss"].isnan():
            assert loss.isnan()
            safe = sum(label_losses(scores, z["in/pseudo"], safe_empty=True))
            safe.backward()
            assert safe == 0 and scores.grad.abs().max() == 0
            return
    else:
        background, objects, gap = own_label_losses(scores, z["in/pseudo"], z["in/label"], z["in/fg_full"])
        loss = background+W_FG*objects+W_GAP*gap
    loss.backward()
    rel(loss, z["out/loss"], 1e-5)
    rel(scores.grad, z["grad/scores"], 1e-5)
    for ours, name in ((background, "bg"), (objects, "fg_single"), (gap, "gap_multi")):
        if f"out/{name}" in z and ours: rel(ours.reshape(z[f"out/{name}"].shape), z[f"out/{name}"], 1e-5)


# %% Pseudo labels
@pytest.mark.parametrize("path", golden("ktse", "par"))
def test_par(path):
    z = load(path)
    dilations, images = z["opt/dilations"].tolist(), z["in/img"]
    assert (float(z["opt/w1"]), float(z["opt/w2"])) == (KERNELS["par"]["sharpness"], KERNELS["par"]["position_weight"])
    close(par(images, z["in/masks"], dilations, int(z["opt/num_iter"])), z["out/masks"], atol=2e-6)
    H, W = images.shape[-2:]
    for name, (i, j) in {"neighbours_first_px": (0, 0), "neighbours_centre": (H//2, W//2)}.items():
        ours = torch.stack([v[0, :, i, j] for v in neighbours(images, dilations)], dim=1)
        assert torch.equal(ours, z[f"out/{name}"])
    close(torch.tensor([d*(y*y+x*x)**.5 for d in dilations for y, x in DIRECTIONS]), z["out/pos"], atol=1e-5)

@pytest.mark.parametrize("path", golden("ktse", "normalise"))
def test_normalise(path):
    "Exact; the reference hands on its channels in reverse order"
    z = np.load(path)
    ours = torch.stack([network_input(x) for x in z["in/rgb"]])
    np.testing.assert_array_equal(ours.numpy(), z["out/normalised"])
    levels = original_levels(ours).flip(1)
    np.testing.assert_array_equal(levels.numpy(), z["out/denorm_u8"])
    np.testing.assert_array_equal((levels/255).numpy(), z["out/denorm"])

@pytest.mark.parametrize("path", golden("ktse", "pseudo_label"))
def test_pseudo_label(path):
    z = load(path)
    ours = map_label(z["in/img"], z["in/cam"], z["in/label"], float(z["opt/bkg_low"]), float(z["opt/bkg_high"]),
                     down_scale=int(z["opt/down_scale"]))
    assert (ours == z["out/pseudo"].long()).float().mean() >= .995


# %% Data and optimiser
@pytest.mark.parametrize("path", golden("ktse", "augment"))
def test_augment(path):
    z = np.load(path)
    resized = resize_long(z["in/rgb"], int(z["opt/target_long"]))
    assert resized.shape == z["out/resized"].shape
    assert np.abs(resized.astype(int)-z["out/resized"].astype(int)).max() <= 1
    def place(what): return int(z[f"opt/{what}_top"]), int(z[f"opt/{what}_left"])
    crop = bordered_crop(z["out/resized"], int(z["opt/cropsize"]), place("container"), place("image"))
    np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), z["out/crop"], atol=1e-6)

@pytest.mark.parametrize("path", golden("ktse", "poly_sgd"))
def test_optimiser(path):
    z = load(path)
    weights = [z["in/w0"].clone().requires_grad_(), z["in/w1"].clone().requires_grad_()]
    groups = [{"params": [w], "lr": float(lr), "weight_decay": float(d)}
              for w, lr, d in zip(weights, z["opt/base_lr"], z["opt/weight_decay"], strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=float(z["opt/momentum_effective"]))
    schedule = Schedule(optimizer, factor=partial(lr_factor, max_iter=int(z["opt/max_step"]), warmup_iter=0,
                                                  power=float(z["opt/poly_power"])))
    for step, grads in enumerate(z["in/grads"]):
        schedule.set(step)
        np.testing.assert_allclose([g["lr"] for g in optimizer.param_groups], z["out/lr"][step], rtol=1e-9)
        for w, g in zip(weights, grads.split([len(w) for w in weights])): w.grad = g
        optimizer.step()
        close(torch.cat(weights), z["out/w"][step], atol=1e-6)


# %% A whole step
def step_of(z, **change):
    "Return the network of a recorded step and its batch"
    num_fg = z["in/label1"].shape[1]
    late = int(z["opt/epoch"]) >= int(z["opt/stage_epoch"])
    config = Config(lr=float(z["opt/lr"]), weight_decay=float(z["opt/weight_decay"]),
                    pair_images=int(z["opt/num_pair"]),
                    width=len(z["param/fc8.weight"]), start=0 if late else 10**9, dropout=0., safe_empty=False)
    config = replace(config, **change)
    width_div = int(z["opt/width_div"])
    net = Network(config, tuple(map(str, range(num_fg+1))), width_div=width_div)
    load_matching(net, published_state(tensors(z, "param")))
    batch = {"input": z["in/img1"], "input2": z["in/img2"], "image_labels": z["in/label1"],
             "image_labels2": z["in/label2"]}
    return net.train(), batch

NAMES = {"cls": "loss_cls", "local_align": "loss_local_align", "global_align": "loss_global_align",
         "transfer": "loss_kt", "seg": "seg_total", "seg_pair": "loss_seg_two"}

@pytest.mark.parametrize("path", golden("ktse", "train_step"))
def test_step(path):
    "Losses, gradients, and the weights after the first step of a fresh optimiser"
    z = load(path)
    net, batch = step_of(z)
    step = Step(net, batch, int(z["opt/global_step"]))
    terms = step.losses()
    assert terms.keys() == NAMES.keys()
    for k, (_, v) in terms.items(): close(v, z[f"out/{NAMES[k]}"], rtol=1e-4)
    background, objects, gap = step.own_terms
    close(objects, z["out/loss_seg_fg"], rtol=1e-4)
    close(gap, z["out/loss_inter"], rtol=1e-4)
    assert (step.label == z["out/pseudo1"]).float().mean() >= .995
    total = sum(w*v for w, v in terms.values())
    close(total, z["out/loss_total"], rtol=1e-4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    total.backward()
    named = dict(net.named_parameters())
    for k, g in tensors(z, "grad/param").items(): within(named[our_name(k)].grad, g, 2e-3)
    optimizer = sgd(net.config)(net.param_groups(), weight_decay=net.config.weight_decay)
    rate = Schedule(optimizer, factor=partial(lr_factor, max_iter=int(z["opt/max_step"]), warmup_iter=0))
    np.testing.assert_allclose(rate.set(int(z["opt/global_step"])), float(z["opt/lr_used"]), rtol=1e-6)
    optimizer.step()
    for k, v in tensors(z, "out/after").items():
        moved = (v-z[f"param/{k}"]).abs().max().item()
        close(net.state_dict()[our_name(k)], v, atol=2e-3*moved)
    still = {k for k, v in net.state_dict().items() if torch.equal(v, before[k])}
    assert still == {k for k in before if k.split(".")[1].partition("_")[0] in ("conv1a", "b2") or ".bn" in k}


# %% Seeds
@pytest.mark.parametrize("path", golden("ktse", "msf_cam"))
def test_views(path):
    z = load(path)
    net = gated_net(tensors(z, "param"), len(z["in/label"]), int(z["opt/width_div"]))
    keys, sizes, image = z["in/label"].nonzero()[:, 0], [], z["in/rgb"].numpy()
    def look(pair):
        sizes.extend([list(pair.shape[-2:])]*2)
        return net.cam_seg(pair)[:, 1:]
    cams = summed_views(look, image, keys.tolist(), z["opt/scales"].tolist())
    assert sizes == z["out/sizes_hw"].tolist() and keys.tolist() == z["out/keys"].tolist()
    close(cams, z["out/cams"], atol=1e-3)

@pytest.mark.parametrize("path", golden("ktse", "seed_sweep"))
def test_sweep(path):
    z = np.load(path)
    which = cases(z, "in/cams")
    cams, masks = [(z[f"in/keys{i}"], z[f"in/cams{i}"]) for i in which], [z[f"in/gt{i}"] for i in which]
    n = z["out/iou_percent"].shape[1]
    np.testing.assert_allclose(SWEEP, z["opt/thresholds"], atol=1e-12)
    found = seed_sweep(cams, masks, n)
    np.testing.assert_allclose([100*m for _, m in found["curve"]], z["out/miou_percent"], atol=1e-6)
    best = int(z["out/miou_percent"].argmax())
    assert found["bg_thresh"] == SWEEP[best] and found["note"] == "this used ground truth"
    np.testing.assert_allclose(found["iou"]*100, z["out/iou_percent"][best], atol=1e-6)
    for t, row in zip(z["opt/thresholds"], z["out/iou_percent"], strict=True):
        np.testing.assert_allclose(seed_sweep(cams, masks, n, [t])["iou"]*100, row, atol=1e-6)
