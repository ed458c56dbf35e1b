"""Golden vectors of I2CRC (area `i2crc`): sizes, options and case counts come from the files.

Its CRF is in test_golden_crf_of_methods."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_files import golden
from torch.nn import functional as F

from wsss_nb.backbones.resnet import ResNet
from wsss_nb.backbones.vgg import VGG
from wsss_nb.data.saliency import resize_saliency
from wsss_nb.data.segment_transforms import SquareTransform, cut_piece
from wsss_nb.data.transforms import MEAN_RGB,colour_jitter,resize_to
from wsss_nb.networks.deeplab import DeepLab, multi_scale_loss, resize_label
from wsss_nb.scores.confusion import ConfusionMatrix
from wsss_nb.labels.rules import cam_bytes, pseudo_label, refine_label
from wsss_nb.losses.relation import center_loss, relation_losses
from wsss_nb.methods.i2crc import Classifier, Config, make_classifier
from wsss_nb.run.schedules import poly_factor
from wsss_nb.ground.tensors import resize


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def close(a, b, atol=0., rtol=0.):
    assert a.shape == b.shape
    torch.testing.assert_close(a.detach().double(), b.double(), atol=atol, rtol=rtol)

def within(a, b, share):
    "Absolute error at most `share` of the largest magnitude of the array"
    close(a, b, atol=share*b.abs().max().item())

def numbered(z, prefix):
    "Return the numbers i of the cases `prefix`i/..., in order, at least one"
    found = sorted(
        {
            int(k.removeprefix(prefix).split("/")[0])
            for k in z
            if k.startswith(prefix) and k.removeprefix(prefix).split("/")[0].isdigit()
        }
    )
    assert found, f"no case of {prefix}"
    return found

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% Relation losses
@pytest.mark.parametrize("path", golden("i2crc", "center_loss"))
def test_center_loss(path):
    z = load(path)
    maps = z["in/maps"].clone().requires_grad_()
    spread, center = center_loss(resize(maps, z["in/mask"].shape[-2:]), z["in/mask"].float())
    spread.mean().backward()
    close(spread.mean(), z["out/loss"], rtol=1e-5)
    close(center, z["out/center"], rtol=1e-5, atol=1e-5*z["out/center"].abs().max().item())
    within(maps.grad, z["grad/maps"], 1e-5)


WEIGHTS = {"fg": .01, "bg": .025, "dist": .1}
NAMES = {"fg": "center_fg", "bg": "center_bg", "dist": "distance"}

@pytest.mark.parametrize("path", golden("i2crc", "relation_losses"))
def test_relation_losses(path):
    z = load(path)
    leaf, y = z["in/class_maps"].clone().requires_grad_(), z["in/label"]
    terms, logits = relation_losses(leaf, z["in/saliency"], y), leaf.mean((-1, -2))
    close(logits, z["out/logits"], atol=1e-6)
    cls = F.multilabel_soft_margin_loss(logits, y)
    total = cls + sum(w*terms[k] for k, w in WEIGHTS.items())
    close(cls, z["out/loss_cls"], rtol=1e-5)
    close(total, z["out/loss_total"], rtol=1e-5)
    for k, name in NAMES.items():
        close(terms[k], z[f"out/loss_{name}"], rtol=1e-5, atol=1e-5*(not y.sum(1).eq(1).any()))
        (grad,) = torch.autograd.grad(terms[k], leaf, retain_graph=True)
        if f"grad/{name}" in z: within(grad, z[f"grad/{name}"], 1e-5)
        else: assert grad.abs().max() == 0
    within(torch.autograd.grad(total, leaf)[0], z["grad/total"], 1e-5)


# %% Segmentation network
def deeplab_like(p):
    "DeepLab with the sizes of published tensors, and the rule that turns their names into ours"
    widths = tuple(p[f"base.features.layer{i}.0.conv1.weight"].shape[0] for i in (1, 2, 3, 4))
    blocks = tuple(len({k.split(".")[3] for k in p if k.startswith(f"base.features.layer{i}.")}) for i in (1, 2, 3, 4))
    encoder = ResNet(blocks, widths, p["base.features.conv1.weight"].shape[0], 8, "first_plain")
    return DeepLab(encoder, p["base.classifier.conv2d_list.0.bias"].shape[0])

def our_name(name):
    return name.replace("base.features.", "encoder.").replace("base.classifier.conv2d_list.", "decoder.convs.")


@pytest.mark.parametrize("path", golden("i2crc", "deeplab_msc_small"))
def test_deeplab(path):
    z = load(path)
    p = tensors(z, "param")
    net = deeplab_like(p)
    net.load_state_dict({our_name(k): v for k, v in p.items()})
    with torch.no_grad():
        logits = net.eval()(z["in/image"])
        within(logits, z["out/eval_logits"], 1e-4)
        within(net(z["in/image_nonsquare"]), z["out/eval_logits_nonsquare"], 1e-4)
        probs = resize(logits, z["in/image"].shape[-2:]).softmax(1)
        top = probs.topk(2, dim=1).values
        sure = top[:, 0]-top[:, 1] > 1e-4
        assert torch.equal(probs.argmax(1)[sure], z["out/eval_pred"].long()[sure]) and sure.float().mean() > .99
    outputs = net.train().multi_scale(z["in/image"])
    losses = multi_scale_loss(outputs, z["in/label"])
    for i, o in enumerate(outputs):
        within(o, z[f"out/train_logits_{i}"], 1e-4)
        assert torch.equal(resize_label(z["in/label"], o.shape[-2:]), z[f"out/resized_label_{i}"])
    close(losses, z["out/loss_per_scale"], rtol=1e-5)
    loss = losses.sum()/int(z["opt/iter_size"])
    close(loss, z["out/loss"], rtol=1e-5)
    state = net.state_dict()
    for k, v in tensors(z, "out/buffer_after").items(): within(state[our_name(k)].float(), v.float(), 1e-5)
    loss.backward()
    grads, named = tensors(z, "grad"), dict(net.named_parameters())
    assert {our_name(k) for k in grads} == named.keys()
    largest = max(g.abs().max().item() for g in grads.values())
    for k, g in grads.items(): close(named[our_name(k)].grad, g, atol=1e-3*largest)


@pytest.mark.parametrize("path", golden("i2crc", "checkpoint_layout"))
def test_segmentation_layout(path):
    z = load(path)
    layout = dict(zip(z["out/segmentation_names"].tolist(), z["out/segmentation_shapes"].tolist()))
    ours = {k: "x".join(map(str, v.shape)) for k, v in DeepLab(ResNet((3, 4, 23, 3), dilation="first_plain"),
                                                               20+1).state_dict().items()}
    assert {our_name(k): v for k, v in layout.items()} == ours


# %% Label rules
@pytest.mark.parametrize("path", golden("i2crc", "cam_export"))
def test_cam_export(path):
    z = np.load(path)
    for i in numbered(z, "in/"):
        keys, size = np.flatnonzero(z[f"in/{i}/label"]), tuple(z[f"in/{i}/hw"].tolist())
        expected = {int(k.rsplit("_")[-1]): z[k] for k in z if k.startswith(f"out/{i}/cam_")}
        assert sorted(expected) == keys.tolist()
        for k, u in zip(keys, cam_bytes(z[f"in/{i}/class_maps"][keys], size), strict=True):
            np.testing.assert_array_equal(u, expected[k])


@pytest.mark.parametrize("path", golden("i2crc", "gen_gt"))
def test_pseudo_label(path):
    "A class whose CAM file is missing is left out"
    z = np.load(path)
    for i in numbered(z, "in/"):
        keys = sorted(k for k in z[f"in/{i}/labels"].tolist() if f"in/{i}/cam_{k}" in z)
        saliency = z[f"in/{i}/saliency"]
        cams = np.stack([z[f"in/{i}/cam_{k}"] for k in keys]) if keys else np.zeros((0, *saliency.shape), np.uint8)
        np.testing.assert_array_equal(pseudo_label(saliency, cams, keys), z[f"out/{i}/pseudo_label"])


@pytest.mark.parametrize("path", golden("i2crc", "label_refinement"))
def test_label_refinement(path):
    z = np.load(path)
    for i in numbered(z, "in/"):
        refined = refine_label(z[f"in/{i}/prediction"], z[f"in/{i}/initial_label"], z[f"in/{i}/labels"].tolist())
        np.testing.assert_array_equal(refined, z[f"out/{i}/refined_label"])


# %% Scores
@pytest.mark.parametrize("path", golden("i2crc", "miou"))
def test_miou(path):
    "Labels 255 of the ground truth do not count; IoU of a class in neither map is NaN"
    z = np.load(path)
    matrix = ConfusionMatrix(int(z["opt/n_classes"]))
    for i in numbered(z, "in/"): matrix.add(z[f"in/{i}/pred"], z[f"in/{i}/gt"])
    np.testing.assert_allclose(matrix.iou, z["out/class_iou"], atol=1e-9)
    for name, key in {"miou": "mean_iou", "pixel_accuracy": "pixel_accuracy", "mean_accuracy": "mean_accuracy",
                      "weighted_iou": "fw_iou"}.items():
        np.testing.assert_allclose(getattr(matrix, name), z[f"out/{key}"], atol=1e-9)


# %% Samples
class Recorded:
    "A stream that gives the recorded factors and order of a colour jitter"
    def __init__(self, z, order):
        self.z, self.order, self.factors = z, order, iter(("brightness", "contrast", "saturation", "hue"))
    def uniform(self, low, high): return float(self.z[f"opt/{(name := next(self.factors))}"])-(name != "hue")
    def permutation(self, n): return ["bcsh".index(k) for k in self.order]


@pytest.mark.parametrize("path", golden("i2crc", "data_prep"))
def test_data_prep(path):
    z = np.load(path)
    size = int(z["opt/input_size"])
    resized = resize_to(z["in/image"], (size, size))
    np.testing.assert_array_equal(resized, z["out/resized"])
    np.testing.assert_array_equal(resize_saliency(z["in/saliency"], z["out/saliency_256"].shape), z["out/saliency_256"])
    sample = SquareTransform(size, len(z["out/saliency_256"]),
                             jitter=())(z["in/image"], None, z["in/saliency"].astype(np.float32)/255)
    close(sample["input"], torch.from_numpy(z["out/tensor"]), atol=1e-6)
    np.testing.assert_array_equal((sample["saliency"].numpy()*255).round(), z["out/saliency_256"])
    np.testing.assert_array_equal(colour_jitter(resized, Recorded(z, z["opt/jitter_order"].tolist())),
                                  z["out/jittered"])
    for k in "bcsh": np.testing.assert_array_equal(colour_jitter(resized, Recorded(z, [k])), z[f"out/single_{k}"])


@pytest.mark.parametrize("path", golden("i2crc", "seg_augment"))
def test_seg_augment(path):
    z = np.load(path)
    np.testing.assert_allclose(MEAN_RGB[::-1], z["opt/mean_bgr"])
    assert set(z["opt/scales"].tolist()) >= {float(z[f"opt/{i}/scale"]) for i in numbered(z, "in/")}
    for i in numbered(z, "in/"):
        image, label = cut_piece(z[f"in/{i}/image_bgr"][..., ::-1], z[f"in/{i}/label"], int(z["opt/crop_size"]),
                                 float(z[f"opt/{i}/scale"]),
                                 (int(z[f"opt/{i}/start_h"]), int(z[f"opt/{i}/start_w"])),
                                 bool(z[f"opt/{i}/flip"]), "bgr")
        close(image, torch.from_numpy(z[f"out/{i}/image"]), atol=1e-2)
        np.testing.assert_array_equal(label.numpy(), z[f"out/{i}/label"])


# %% Rates
@pytest.mark.parametrize("path", golden("i2crc", "poly_lr"))
def test_poly_lr(path):
    z = np.load(path)
    lr, every, most, power = (z[f"opt/{k}"].item() for k in ("lr", "step_size", "iter_max", "power"))
    used = z["out/lr_used_at_iteration"]
    np.testing.assert_allclose([lr*poly_factor(step, most, every, power) for step in range(len(used))], used,
                               rtol=1e-9, atol=0)


# %% Classification network
def classifier_like(p, config=Config()):
    "Classifier with the sizes of published tensors"
    widths = tuple(p[f"features.{i}.weight"].shape[0] for i in (0, 5, 10, 17, 24))
    n, num_fg = p["extra_convs.0.weight"].shape[0], p["extra_convs.6.bias"].shape[0]
    return Classifier(VGG(widths), num_fg, replace(config, extra=n))

def our_part(name): return name.replace("features.", "encoder.features.", 1) if name.startswith("features.") else name


@pytest.mark.parametrize("path", golden("i2crc", "cls_network_small"))
def test_classifier(path):
    z = load(path)
    p = tensors(z, "param")
    net = classifier_like(p)
    net.load_state_dict({our_part(k): v for k, v in p.items()})
    maps = net(z["in/image"])
    close(maps, z["out/class_maps"], atol=1e-5)
    close(maps.mean((-1, -2)), z["out/logits"], atol=1e-5)
    batch = {"input": z["in/image"], "saliency": z["in/saliency"], "image_labels": z["in/label"],
             "has_saliency": torch.ones(len(z["in/image"]), dtype=torch.bool)}
    terms = net.training_losses(batch, 0)
    names = {"cls": "cls", **NAMES}
    assert {k: w for k, (w, _) in terms.items()} == {"cls": 1, **WEIGHTS}
    for k, (_, value) in terms.items(): close(value, z[f"out/loss_{names[k]}"], rtol=1e-5)
    total = sum(w*v for w, v in terms.values())
    close(total, z["out/loss_total"], rtol=1e-5)
    total.backward()
    named = dict(net.named_parameters())
    grads = tensors(z, "grad")
    assert {our_part(k) for k in grads} == named.keys()
    for k, g in grads.items(): within(named[our_part(k)].grad, g, 1e-4)
    ids = {id(v): k for k, v in named.items()}
    groups = net.param_groups()
    assert ([[ids[id(v)] for v in g["params"]] for g in groups]
            == [[our_part(k) for k in z[f"out/param_group_{i}"].tolist()] for i in range(4)])
    assert [round(g["lr"]/net.config.cls_lr) for g in groups] == [1, 2, 10, 20]


@pytest.mark.parametrize("path", golden("i2crc", "checkpoint_layout"))
def test_classification_layout(path):
    z = load(path)
    layout = dict(zip(z["out/classification_names"].tolist(), z["out/classification_shapes"].tolist()))
    ours = {k: "x".join(map(str, v.shape))
            for k, v in make_classifier(Config(), tuple(range(20+1))).state_dict().items()}
    assert {our_part(k.removeprefix("module.")): v for k, v in layout.items()} == ours
