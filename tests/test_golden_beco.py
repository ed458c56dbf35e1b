"""Golden vectors of BECO (area `beco`): sizes, options and case counts come from the files.

Its CRF is in test_golden_crf_of_methods."""
import numpy as np
import pytest
import torch
from golden_files import cases, golden
from torchvision.transforms import RandomResizedCrop

from wsss_nb.backbones.resnet import ResNet, initial_name
from wsss_nb.data.mixing import (COLOUR, _tables, boundary_band, change_colours, change_tensor_colours, choose_classes,
                                 colour_batch, cut_area, mix_pairs, pair_order)
from wsss_nb.data.transforms import IMAGENET_STD, draw_area, normalise, resize_to
from wsss_nb.ground.tensors import resize
from wsss_nb.losses.cotraining import cotraining_loss
from wsss_nb.methods.beco import Config, Network, online_label
from wsss_nb.networks.deeplab import DeepLab
from wsss_nb.networks.deeplab_plus import DeepLabPlus, name_from_beco, name_in_beco
from wsss_nb.run.schedules import poly_factor
from wsss_nb.scores.confusion import ConfusionMatrix, watched_scores

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
GREY = 1/255/min(IMAGENET_STD)  # one grey level of a normalised image, at most


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def near(a, b, atol): assert a.shape == b.shape and (a.double()-b.double()).abs().max() <= atol, (a-b).abs().max()

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% Networks
def narrow(div): return dict(widths=tuple(n//div for n in (64, 128, 256, 512)), stem=64//div)

def tiny_v2(z, classes=20+1):
    "DeepLab-v2 with the sizes of a file"
    encoder = ResNet(BLOCKS[int(z["opt/depth"])], **narrow(int(z["opt/width_div"])), output_stride=8, dilation="all")
    return DeepLab(encoder, classes, scales=(), zero_bias=True)

def tiny_v3(z, classes=20+1):
    "DeepLab-v3+ with the sizes of a file"
    div = int(z["opt/width_div"])
    encoder = ResNet(BLOCKS[int(z["opt/depth"])], **narrow(div), output_stride=16, dilation="all", deep=True,
                     multi_grid=(1, 2, 4))
    return DeepLabPlus(encoder, classes, 256//div, 48//div)

def filled(net, p, prefix=""):
    "Load published tensors, all of them and no others; the way back gives their names again"
    state = {name_from_beco(k): v for k, v in p.items() if k.startswith(prefix)}
    net.load_state_dict(state)
    assert {name_in_beco(k) for k in state} == {k for k in p if k.startswith(prefix)}
    return net.eval()

def hold(net, names):
    "Let the modules with these names note what they give; return the notes"
    seen = {}
    for key, name in names.items():
        net.get_submodule(name).register_forward_hook(lambda m, args, out, key=key: seen.update({key: out}))
    return seen

def at_image_size(x, logits): return resize(logits, x.shape[-2:])[:, :, ::4, ::4]


@pytest.mark.parametrize("path", golden("beco", "deeplabv2_tiny"))
def test_deeplab_v2(path):
    z = load(path)
    net = filled(tiny_v2(z), tensors(z, "param"))
    seen = hold(net, {"layer2": "encoder.layer2", "layer4": "encoder.layer4"})
    with torch.no_grad(): logits = net(z["in/x"])
    for k in seen: near(seen[k], z[f"out/{k}"], 1e-4)
    near(logits, z["out/pre_logits"], 1e-4)
    near(at_image_size(z["in/x"], logits), z["out/logits"], 1e-4)


@pytest.mark.parametrize("path", golden("beco", "deeplabv3plus_tiny"))
def test_deeplab_v3_plus(path):
    z = load(path)
    net = filled(tiny_v3(z), tensors(z, "param"))
    seen = hold(net, {"stem": "encoder.maxpool", "layer1": "encoder.layer1", "layer4": "encoder.layer4",
                      "aspp": "decoder.aspp", "lowlevel": "decoder.projector", "embeddings": "decoder.pre_classifier"})
    with torch.no_grad(): logits = net(z["in/x"])
    assert len(seen) == 6
    for k in seen: near(seen[k], z[f"out/{k}"], 1e-4)
    near(logits, z["out/pre_logits"], 1e-4)
    near(at_image_size(z["in/x"], logits), z["out/logits"], 1e-4)


def test_order_of_the_low_level():
    "The file has a low level of zeros, so that it does not say where in the sum it stands: in front (BECO 3.3)"
    torch.manual_seed(0)
    net = DeepLabPlus(ResNet((1, 1, 1, 1), (2, 2, 2, 2), 4, 16, deep=True), 3, width=6, low_width=2).eval()
    seen = {}
    net.decoder.pre_classifier.register_forward_pre_hook(lambda m, args: seen.update(joined=args[0]))
    hook = hold(net, {"low": "decoder.projector", "deep": "decoder.aspp"})
    with torch.no_grad(): net(torch.randn(2, 3, 64, 48))
    near(seen["joined"][:, :2], hook["low"], 0)
    near(seen["joined"][:, 2:], resize(hook["deep"], hook["low"].shape[-2:]), 0)
    assert hook["low"].abs().sum() > 0


@pytest.mark.parametrize("make,rates", [
    (lambda: ResNet(BLOCKS[50], (2, 2, 2, 2), 4, 8, "all"), {1: [1]*3, 2: [1]*4, 3: [2]*6, 4: [4]*3}),
    (lambda: ResNet(BLOCKS[101], (2, 2, 2, 2), 4, 16, "all", deep=True, multi_grid=(1, 2, 4)),
     {1: [1]*3, 2: [1]*4, 3: [1]*23, 4: [2, 4, 8]})])
def test_dilations_in_training(make, rates):
    "Maps of train_step are smaller than the dilations: whether they act is measured on a larger one, in training mode"
    net = make().train()
    for layer, expected in rates.items():
        for block, rate in zip(getattr(net, f"layer{layer}"), expected, strict=True):
            assert block.conv2.dilation == block.conv2.padding == (rate, rate)
            x = torch.zeros(1, block.conv2.in_channels, 65, 65)
            x[..., 32, 32] = 1
            with torch.no_grad(): reached = block.conv2(x)[0].abs().sum(0).nonzero()[:, 0].unique().tolist()
            if block.conv2.stride == (1, 1): assert reached == [32-rate, 32, 32+rate]


def test_rates_of_aspp_in_training():
    torch.manual_seed(0)
    v2 = DeepLab(ResNet((1, 1, 1, 1), (2, 2, 2, 2), 4, 8, "all"), 3, scales=()).train()
    x = torch.zeros(1, 8, 97, 97)
    x[..., 48, 48] = 1
    with torch.no_grad(): answer = (v2.decoder(x)-v2.decoder(torch.zeros_like(x)))[0].abs().sum(0)
    assert answer[48].nonzero()[:, 0].tolist() == [48+d for d in (-24, -18, -12, -6, 0, 6, 12, 18, 24)]
    v3 = DeepLabPlus(ResNet((1, 1, 1, 1), (2, 2, 2, 2), 4, 16, "all", deep=True), 3, 4, 2)
    assert [m.convs[0].dilation[0] for m in v3.decoder.aspp.convs[1:4]] == [6, 12, 18]


@pytest.mark.parametrize("path", golden("beco", "pretrain_names"))
def test_names_of_imagenet_files(path):
    z = np.load(path)
    for kind in ("torchvision", "mmcls"):
        for theirs, expected in zip(z[f"in/{kind}"].tolist(), z[f"out/{kind}"].tolist(), strict=True):
            ours = initial_name(theirs)
            if expected.startswith("fc.") or not expected: assert ours == expected
            else: assert f"backbone.{expected}" == name_in_beco(f"encoder.{ours}")


# %% Mixing
@pytest.mark.parametrize("path", golden("beco", "boundary"))
def test_boundary(path):
    z = load(path)
    found = 0
    for i in cases(z, "in/mask"):
        for key in (k for k in z if k.startswith(f"out/boundary{i}_size")):
            found += 1
            edge, inside = boundary_band(z[f"in/mask{i}"][None] > 0, int(key.rpartition("size")[2]))
            assert torch.equal(edge.long(), z[key])
            assert torch.equal(inside.long(), z[key.replace("boundary", "inside")])
    assert found

def recorded(z):
    "Return the function that chooses what the file recorded"
    classes = z["in/classes"]
    chosen = torch.zeros(classes.shape, dtype=torch.bool)
    for row, found in zip(chosen, classes): row[found[found >= 0]] = True
    return lambda searched: chosen

@pytest.mark.parametrize("path", [*golden("beco", "mix_warmup"), *golden("beco", "mix_online")])
def test_mixing(path):
    z = load(path)
    online = (z["in/label_online"], z["in/mask_online"][:, 0]) if "in/label_online" in z else None
    out = mix_pairs(z["in/img"], z["in/label"], z["in/mask"][:, 0], z["in/draws"], recorded(z), float(z["opt/p"]),
                    online, int(z["opt/size"]))
    assert torch.equal(out["images"], z["out/img"])
    for k in ("label", "mask", "boundary"): assert torch.equal(out[k].long(), z[f"out/{k}"]), k
    if "out/inside" in z:
        assert torch.equal(boundary_band(out["paste"], int(z["opt/size"]))[1].long(), z["out/inside"])

@pytest.mark.parametrize("path", [*golden("beco", "mix_warmup"), *golden("beco", "mix_online")])
def test_recorded_classes_are_candidates(path):
    "What the published code chose, ours could choose: half of the classes, rounded up, background never"
    z = load(path)
    if not z["opt/ignore_bg"]: pytest.skip("ours never pastes background")
    n = z["in/classes"].shape[1]
    label = z["in/label"]
    if "in/label_online" in z: label = torch.where(z["in/mask_online"][:, 0] > 0, z["in/label_online"], 255)
    partner = pair_order(len(label)).view(-1, 2).flip(1).reshape(-1)
    chosen = recorded(z)(None)
    for k, row in enumerate(chosen):
        if float(z["in/draws"][k]) >= float(z["opt/p"]): continue
        ours = choose_classes(label[partner[k:k+1]], (~row).double()[None])  # small keys for what they took
        assert torch.equal(ours[0], row) and ours.shape == (1, n)


# %% Geometry and colours
class Torch:
    "torch's generator under the names of NumPy's"
    def __init__(self, seed): self.generator = torch.Generator().manual_seed(seed)
    def uniform(self, low, high): return np.float32(torch.empty(1).uniform_(low, high, generator=self.generator).item())
    def randint(self, n): return int(torch.randint(n, (1,), generator=self.generator))

@pytest.mark.parametrize("path", golden("beco", "crop_params"))
def test_crop_boxes(path):
    z = np.load(path)
    area, ratio = z["opt/scale"].tolist(), np.float32(z["opt/ratio"])
    for k, ((w, h), boxes) in enumerate(zip(z["in/sizes_wh"].tolist(), z["out/boxes"].tolist(), strict=True)):
        rng = Torch(int(z["opt/seed"])+k)
        for box in boxes: assert list(draw_area((h, w), rng, area, ratio)) == box

@pytest.mark.parametrize("size", [(375, 500), (500, 333), (60, 500), (500, 61), (1, 9)])
def test_crop_boxes_are_those_of_torchvision(size):
    image = torch.zeros(3, *size)
    for seed in range(200):
        torch.manual_seed(seed)
        theirs = RandomResizedCrop.get_params(image, [.5, .75], [3/4, 4/3])
        assert draw_area(size, Torch(seed), (.5, .75), np.float32((3/4, 4/3))) == tuple(theirs)

@pytest.mark.parametrize("path", golden("beco", "paired_transform"))
def test_pieces(path):
    z = np.load(path)
    trust = (z["in/mask_png"][..., 0] > 127).astype(np.uint8)
    image, label, trust = cut_area(z["in/rgb"], z["in/label"], trust, z["opt/box"].tolist(), int(z["opt/size"]),
                                   bool(z["opt/flip"]))
    near(normalise(image), torch.from_numpy(z["out/img"]), 1.01*GREY)
    np.testing.assert_array_equal(label, z["out/label"])
    np.testing.assert_array_equal(trust[None], z["out/mask"])

@pytest.mark.parametrize("path", golden("beco", "val_transform"))
def test_squares_for_validation(path):
    z = np.load(path)
    image, label = (resize_to(z[f"in/{k}"], (int(z["opt/size"]),)*2) for k in ("rgb", "label"))
    near(normalise(image), torch.from_numpy(z["out/img"]), 1.01*GREY)
    np.testing.assert_array_equal(label, z["out/label"])

def colours(image, draws, device):
    "Return an image with other colours by OpenCV, or by arithmetic on tensors"
    if device == "OpenCV": return change_colours(image, draws)
    return change_tensor_colours(torch.from_numpy(image.transpose(2, 0, 1).copy()), draws).permute(1, 2, 0).numpy()

@pytest.mark.parametrize("device", ["OpenCV", "tensors"])
@pytest.mark.parametrize("path", golden("beco", "colour_augment"))
def test_colours(path, device):
    "A draw u means the change (2u-1) times the largest; what is not asked for is drawn as none"
    z = np.load(path)
    def drawn(name, change): return (change/COLOUR[name]+1)/2
    light = [drawn("contrast", float(z["opt/contrast_alpha"])-1), drawn("brightness", float(z["opt/brightness_beta"]))]
    turn = [drawn(k, v) for k, v in zip(("hue", "saturation", "value"), z["opt/hue_sat_val"].tolist())]
    none = [.5]*3
    draws = {"hsv": [0, .5, .5, *turn, 1, 1, 1], "gray": [1, .5, .5, *none, 0, 1, 1],
             "blur3": [1, .5, .5, *none, 1, 0, 0], "blur5": [1, .5, .5, *none, 1, 0, 1]}
    for name, d in draws.items():
        off = colours(z["in/rgb"], d, device).astype(int)-z[f"out/{name}"]
        assert abs(off).max() <= 1, name
    lit = _tables([*light, *none])[0][z["in/rgb"]].astype(int)
    assert abs(lit-z["out/brightness_contrast"]).max() <= 1

@pytest.mark.parametrize("path", golden("beco", "colour_augment"))
def test_round_trip(path):
    z = load(path)
    x = z["in/normalised"][None]
    near(colour_batch(x, torch.ones(1, 9))[0], z["out/round_trip"], 1.01*GREY)


# %% Losses and online labels
def weights_of(z): return [tuple(float(z[f"opt/w_{kind}{k}"]) for k in (1, 2)) for kind in ("boundary", "cot")]

@pytest.mark.parametrize("path", golden("beco", "loss"))
def test_loss(path):
    z = load(path)
    logits = [z[f"in/logits{k}"].clone().requires_grad_() for k in (1, 2)]
    loss, parts, _ = cotraining_loss(logits, z["in/label"], z["in/mask"], z["in/boundary"], *weights_of(z))
    loss.backward()
    near(loss, z["out/loss"], 1e-5*z["out/loss"].abs())
    for name, column in (("ce1", 0), ("cot1", 1)):
        if f"out/{name}" in z: near(parts[0, column], z[f"out/{name}"], 1e-5*z[f"out/{name}"].abs())
    for k, leaf in zip((1, 2), logits):
        expected = z[f"grad/logits{k}"]
        near(leaf.grad, expected, 1e-5*expected.abs().max())


@pytest.mark.parametrize("path", golden("beco", "online_label"))
def test_online_label(path):
    z = load(path)
    logits, threshold = [z["in/logits1"], z["in/logits2"]], float(z["opt/threshold"])
    label, sure = online_label(logits, logits[0].shape[-2:])
    near(sure, z["out/conf"], 1e-5)
    top = torch.stack(logits).mean(0).softmax(1).topk(2, dim=1).values
    clear = top[:, 0]-top[:, 1] > 1e-5
    assert torch.equal(label.long()[clear], z["out/label"][clear]) and clear.float().mean() > .99
    away = (sure-threshold).abs() > 1e-5
    assert torch.equal((sure > threshold).long()[away], z["out/mask"][:, 0][away]) and away.float().mean() > .99


# %% A whole step, and the answer
class Two(Network):
    "Two networks with the sizes of a file"
    def __init__(self, z, config):
        torch.nn.Module.__init__(self)
        self.config, self.classes = config, tuple(range(20+1))
        for k in (1, 2): self.add_module(f"network{k}", tiny_v2(z))

def filled_pair(z, config): return filled(Two(z, config), tensors(z, "param"))

@pytest.mark.parametrize("path", golden("beco", "train_step"))
def test_train_step(path, monkeypatch):
    "Gradients of the backbone are ill-conditioned: see the README beside the file"
    z = load(path)
    config = Config(mix_prob=float(z["opt/p"]), threshold=float(z["opt/threshold"]), warmup=0, colour=False)
    net = filled_pair(z, config).train()
    order = pair_order(len(z["in/img"]))
    mix = torch.empty(len(order), dtype=torch.float64)
    mix[order] = z["in/draws"]    # recorded in the order of what comes out; a sample brings its own
    monkeypatch.setattr("wsss_nb.methods.beco.choose_classes", lambda searched, keys: recorded(z)(searched))
    batch = {"input": z["in/img"], "label": z["in/label"], "trust": z["in/mask"][:, 0], "mix": mix, "epoch": 0,
             "keys": torch.zeros(len(order), 20+1)}
    label, trust = net.online(z["in/img"], torch.ones(len(order), dtype=torch.bool))
    assert torch.equal(label.long(), z["out/label_online"]) and torch.equal(trust.long(), z["out/mask_online"][:, 0])
    made = net.mixed(batch)
    for k, name in (("label", "mixed_label"), ("mask", "mixed_mask"), ("boundary", "boundary")):
        assert torch.equal(made[k].long(), z[f"out/{name}"]), k
    terms = net.training_losses(batch, 0)
    loss = sum(w*v for w, v in terms.values())
    near(loss, z["out/loss"], 1e-4*z["out/loss"].abs())
    loss.backward()
    near(net.network1.encoder.layer1[0].bn1.running_mean, z["out/running_mean1_after"], 1e-5)
    named = dict(net.named_parameters())
    grads = tensors(z, "grad/param")
    assert grads
    for k, expected in grads.items():
        ours = named[name_from_beco(k)].grad
        if "backbone" not in k: near(ours, expected, 5e-3*expected.abs().max())
        else:
            near(ours, expected, .1*expected.abs().max())
            assert torch.cosine_similarity(ours.flatten(), expected.flatten(), dim=0) >= .998


@pytest.mark.parametrize("path", golden("beco", "test_msc"))
def test_multi_scale(path):
    z = load(path)
    net = filled_pair(z, Config(infer_scales=tuple(z["opt/scales"].tolist()), infer_size=0))
    with torch.no_grad():
        near(net.seg_logits(z["in/x"]), z["out/pre_logits_single"], 1e-4)
        near(net.multi_scale(z["in/x"])[0], z["out/pre_logits_msc"], 1e-4)


# %% Scores and rates
@pytest.mark.parametrize("path", golden("beco", "metrics"))
def test_metrics(path):
    z = np.load(path)
    matrix = ConfusionMatrix(len(z["out/hist"])).add(z["in/pred"], z["in/gt"])
    np.testing.assert_array_equal(matrix.counts, z["out/hist"])
    watched = watched_scores(matrix)
    for ours, theirs in {"iou": "train_iou", "miou": "train_miou", "pixel_accuracy": "overall_acc",
                         "mean_accuracy": "mean_class_acc", "mean_precision": "mean_pred_acc"}.items():
        np.testing.assert_allclose(watched[ours], z[f"out/{theirs}"], atol=1e-6)
    for ours, theirs in {"iou": "final_iou", "miou": "final_miou", "weighted_iou": "final_fwiou"}.items():
        np.testing.assert_allclose(getattr(matrix, ours), z[f"out/{theirs}"], atol=1e-6)


@pytest.mark.parametrize("path", golden("beco", "poly_lr"))
def test_rate(path):
    z = np.load(path)
    lr, steps = float(z["opt/lr"]), int(z["opt/max_iters"])
    factors = [poly_factor(t, steps, power=float(z["opt/power"]), floor=float(z["opt/min_lr"])/lr)
               for t in range(steps)]
    np.testing.assert_allclose(lr*np.array(factors), z["out/lr"], atol=1e-9)
