"Golden vectors of ToCo's own parts and of a whole step (area `tsd_cam`): sizes, options and case counts come from the files."
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load, params, vit_like

from wsss_nb.losses.contrast import class_contrast_loss, patch_contrast_loss
from wsss_nb.projection import ProjectionHead, ProjectionNet
from wsss_nb.refine.affinity import pairwise_affinity_label


def head_sizes(p):
    "Return width inside, on the sphere, out, of a head with these tensors"
    return p["mlp.0.weight"].shape[0], *p["last_layer.weight_v"].shape[::-1]


def encoder_of(z):
    return vit_like({k.removeprefix("encoder."): v for k, v in params(z).items() if k.startswith("encoder.")}, int(z["opt/patch"]), int(z["opt/heads"]), int(z["opt/aux_layer"]))


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
    sizes = dict(zip(("proj_hidden", "proj_bottleneck", "proj_dim"), head_sizes({k.removeprefix("proj_head."): v for k, v in p.items()})))
    net = ProjectionNet(encoder_of(z), int(z["opt/num_classes"])-1, p["decoder.conv6.weight"].shape[0], momentum=float(z["opt/momentum"]), **sizes)
    net.load_state_dict(p)
    crops = torch.stack([z[f"in/local{i}"] for i in cases(z, "in/local")])
    out = net(z["in/x"], view2=z["in/global1"], crops=crops)
    names = {"cls": "cls_logits", "seg": "seg_logits", "fmap": "last", "cls_aux": "aux_cls_logits", "proj_t": "teacher", "proj_s": "student"}
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
