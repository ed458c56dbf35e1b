"""Golden vectors of ToCo's own parts and of a whole step (area `tsd_cam`): sizes, options and case counts come from
the files."""
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load, params, vit_like

from wsss_nb.cam.core import roi_mask
from wsss_nb.data.transforms import denormalise
from wsss_nb.losses.contrast import class_contrast_loss, patch_contrast_loss
from wsss_nb.methods.toco import Config, Network, Step
from wsss_nb.methods.step import patch_labels
from wsss_nb.networks.projection import ProjectionHead, ProjectionNet
from wsss_nb.refine.affinity import pairwise_affinity_label


def head_sizes(p):
    "Return width inside, on the sphere, out, of a head with these tensors"
    return p["mlp.0.weight"].shape[0], *p["last_layer.weight_v"].shape[::-1]


def encoder_of(z):
    return vit_like({k.removeprefix("encoder."): v for k, v in params(z).items() if k.startswith("encoder.")},
                    int(z["opt/patch"]), int(z["opt/heads"]), int(z["opt/aux_layer"]))


def own(state):
    "Return the tensors of a checkpoint that a network has: all but the unused head of ImageNet"
    return {k: v for k, v in state.items() if not k.startswith("encoder.head.")}


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_ptc"))
def test_patch_contrast(path):
    z = load(path)
    for i in cases(z, "in/x"):
        x, mask = z[f"in/x{i}"].clone().requires_grad_(), z[f"in/mask{i}"].long()
        assert torch.equal(pairwise_affinity_label(z[f"in/label{i}"]), mask)
        loss = patch_contrast_loss(x, mask)
        loss.backward()
        close(loss, z[f"out/loss{i}"], 1e-6)
        close(x.grad, z[f"grad/x{i}"], 1e-6)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_ctc_loss"))
def test_class_contrast(path):
    z = load(path)
    for i in cases(z, "in/student"):
        inputs = {k: z[f"in/{k}{i}"].clone().requires_grad_() for k in ("student", "teacher")}
        assert z[f"in/flags{i}"].shape[1] == z[f"opt/ncrops{i}"]
        loss = class_contrast_loss(**inputs, flags=z[f"in/flags{i}"], temperature=float(z[f"opt/temp{i}"]))
        loss.backward()
        close(loss, z[f"out/loss{i}"], rtol=1e-5)
        for k, v in inputs.items(): close(v.grad, g := z[f"grad/{k}{i}"], max(1e-5*g.abs().max().item(), 1e-8))


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_ctc_head"))
def test_projection_head(path):
    z = load(path)
    p, x = params(z), z["in/x"].clone().requires_grad_()
    head = ProjectionHead(x.shape[-1], *head_sizes(p), num_layers=int(z["opt/nlayers"]))
    head.load_state_dict(p)
    y = head(x)
    (y*z["in/cot"]).sum().backward()
    close(y, z["out/y"], 1e-5)
    close(x.grad, z["grad/x"], 1e-5)
    for k, v in head.named_parameters():
        if f"grad/{k}" in z: close(v.grad, z[f"grad/{k}"], 1e-5)
        else: assert not v.requires_grad, k


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_network"))
def test_network(path):
    z = load(path)
    p = own(params(z))
    sizes = dict(zip(("proj_hidden", "proj_bottleneck", "proj_dim"),
                     head_sizes({k.removeprefix("proj_head."): v for k, v in p.items()})))
    net = ProjectionNet(encoder_of(z), int(z["opt/num_classes"])-1, p["decoder.conv6.weight"].shape[0],
                        momentum=float(z["opt/momentum"]), **sizes)
    net.load_state_dict(p)
    crops = torch.stack([z[f"in/local{i}"] for i in cases(z, "in/local")])
    out = net(z["in/x"], view2=z["in/global1"], crops=crops)
    names = {"cls": "cls_logits", "seg": "seg_logits", "fmap": "last", "cls_aux": "aux_cls_logits", "proj_t": "teacher",
             "proj_s": "student"}
    for k, name in names.items(): close(out[name], z[f"out/{k}"], 1e-4)
    for k, layer in (("cam", "last"), ("cam_aux", "aux")):
        close(net.cam_of(out, layer), z[f"out/{k}"], 1e-4)
        close(net.raw_cam(z["in/x"], layer), z[f"out/{k}"], 1e-4)
    state, ema = net.state_dict(), [k for k in z if k.startswith("out/ema/")]
    assert ema
    for k in ema: close(state[k.removeprefix("out/ema/")], z[k], 1e-6)
    sum((out[names[k]]*z[f"in/cot_{k}"]).sum() for k in ("cls", "seg", "cls_aux", "proj_s")).backward()
    named = dict(net.named_parameters())
    for k in [k for k in z if k.startswith("grad/")]: close(named[k.removeprefix("grad/")].grad, z[k], 1e-4, 1e-5)


# %% A whole step
STEP = {"high_thresh": "high_thre", "low_thresh": "low_thre", "bg_thresh": "bkg_thre", "cam_scales": "cam_scales",
        "aux_layer": "aux_layer", "local_size": "local_crop_size",
        "temperature": "temp", "momentum": "momentum", "energy_weight": "energy_weight",
        "energy_sigma_rgb": "energy_sigma_rgb", "energy_sigma_xy": "energy_sigma_xy",
        "energy_scale": "energy_scale_factor", "refine_dilations": "refine_dilations",
        "refine_iters": "refine_num_iter", "w_ptc": "w_ptc", "w_ctc": "w_ctc", "w_seg": "w_seg", "w_reg": "w_reg"}


def option(v): return tuple(v.tolist()) if v.ndim else v.item()


def method_like(z, monkeypatch, **changes):
    "ToCo with the options and tensors of a file"
    p = own(params(z))
    sizes = dict(zip(("proj_hidden", "proj_bottleneck", "proj_dim"),
                     head_sizes({k.removeprefix("proj_head."): v for k, v in p.items()})))
    config = Config(**{k: option(z[f"opt/{v}"]) for k, v in STEP.items()} | sizes, num_crops=int(z["opt/ncrops"])-2,
                    hidden=p["decoder.conv6.weight"].shape[0],
                    crop_size=z["in/inputs"].shape[-1], **changes)
    config.check()
    monkeypatch.setattr("wsss_nb.methods.core.create_backbone", lambda *_, **__: encoder_of(z))
    net = Network(config, tuple(map(str, range(int(z["opt/num_classes"])))))
    net.load_state_dict(p)
    batch = {"input": z["in/inputs"], "view2": z["in/global2"], "local": z["in/local_image"], "box": z["in/img_box"],
             "image_labels": z["in/cls_label"]}
    heads = [z[f"in/perm_head{i}"] for i in cases(z, "in/perm_head")]
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: heads.pop(0))
    return net, batch


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_step"))
def test_step_intermediates(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    c = net.config
    seen = Step(net, batch, c.seg_start+1, dict.fromkeys(c.weights(0), 1.))
    close(denormalise(batch["input"]).float()/255, z["out/inputs_denorm"], 1e-6)
    out, cams = seen.out, seen.cams
    for k, name in {"cls": "cls_logits", "segs": "seg_logits", "fmap": "last", "cls_aux": "aux_cls_logits"}.items():
        close(out[name], z[f"out/{k}"], 1e-4)
    layers = {"last": "cams", "aux": "cams_aux"}
    every = net.cams(batch["input"], layers=tuple(layers), raw={layer: net.cam_of(out, layer) for layer in layers})
    present = batch["image_labels"].bool()
    for layer, name in layers.items():
        close(every[layer], z[f"out/{name}"], 1e-4)
        close(cams[layer][present], z[f"out/{name}"][present], 1e-4)
    crops, flags = seen.crops
    def agree(a, key): assert (a.long() == z[f"out/{key}"].long()).float().mean() >= .999, key
    agree(roi_mask(cams["aux"], batch["image_labels"], c.low_thresh, c.high_thresh), "roi_mask")
    assert torch.equal(crops, z["out/local_crops"]) and torch.equal(flags, z["out/flags"].long())
    agree(seen.label, "refined_label")
    label = patch_labels(batch, cams["aux"], out["last"].shape[-2:], c)
    agree(label, "pseudo_label_aux")
    agree(pairwise_affinity_label(label), "aff_mask")
    tokens = net.project(out["view_tokens"], crops)
    for k, name in {"proj_t": "teacher", "proj_s": "student"}.items(): close(tokens[name], z[f"out/{k}"], 1e-4)
    for k in [k for k in z if k.startswith("out/ema/")]:
        close(net.state_dict()[k.removeprefix("out/ema/")], z[k], 1e-6)


@pytest.mark.parametrize("phase", ["warmup", "main"])
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_step"))
def test_step(path, phase, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    encodings = []
    net.encoder.register_forward_pre_hook(lambda m, x: encodings.append(len(x[0])*torch.is_grad_enabled()))
    terms = net.training_losses(batch, net.config.seg_start + (phase == "main"))
    B, n = len(batch["input"]), net.config.num_crops
    # whole views once, each size once
    assert [e for e in encodings if e] == [2*B, n*B] and len(encodings) == 2+len({1, *net.config.cam_scales})
    names = {"cls": "cls", "aux": "cls_aux", "ptc": "ptc", "ctc": "ctc", "seg": "seg", "reg": "reg"}
    assert list(terms) == list(names)[:4 if phase == "warmup" else 6]
    for name, (_, value) in terms.items():
        close(value, z[f"out/loss_{names[name]}"].squeeze(), 1e-4 if name != "reg" else 0, rtol=1e-4)
    total = sum(w*v for w, v in terms.values())
    close(total, z[f"out/total_{phase}"].squeeze(), 1e-4)
    for k in [k for k in z if k.startswith("out/ema/")]:
        close(net.state_dict()[k.removeprefix("out/ema/")], z[k], 1e-6)
    total.backward()
    named, grads = (dict(net.named_parameters()), {k.removeprefix(f"grad/{phase}/"): v for k, v in z.items()
                                                   if k.startswith(f"grad/{phase}/")})
    assert grads
    for k, g in grads.items(): close(named[k].grad, g, 1e-3*g.abs().max().item())
    if phase == "main": assert {k for k, v in named.items() if v.grad is not None} == {*grads}
