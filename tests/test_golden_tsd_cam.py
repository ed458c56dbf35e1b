"Golden vectors of ToCo's components (area `tsd_cam`): sizes, options and case counts come from the files."
import numpy as np
import pytest
import torch
from golden_files import cases, golden

from wsss_nb.backbones.vit import build_vit
from wsss_nb.cam.core import cam_to_label, ignore_outside, roi_mask, valid_cam
from wsss_nb.cam.multiscale import multi_scale_cam
from wsss_nb.labels.crops import crop_candidates, uncertain_crops
from wsss_nb.losses.segment import balanced_seg_loss
from wsss_nb.networks.single_stage import SingleStageNet
from wsss_nb.labels.pseudo import make_pseudo_label
from wsss_nb.refine.affinity import pairwise_affinity_label
from wsss_nb.refine.par import par
from wsss_nb.networks.decoders import LargeFOV, multi_scale_logits
from wsss_nb.ground.tensors import resize
from wsss_nb.run.loop import Schedule
from wsss_nb.run.schedules import lr_factor


def load(path): return {k: torch.as_tensor(v) for k, v in np.load(path).items()}
def params(z): return {k.removeprefix("param/"): v for k, v in z.items() if k.startswith("param/")}
def close(a, b, atol=0., rtol=0.):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), atol=atol, rtol=rtol, equal_nan=True)


def vit_like(weights, patch, heads, aux_layer):
    "A ViT with the dimensions that the tensors have"
    dim, grid = weights["cls_token"].shape[-1], round((weights["pos_embed"].shape[1]-1)**.5)
    depth = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks."))
    vit = build_vit(grid*patch, patch, dim, depth, heads, weights["blocks.0.mlp.fc1.weight"].shape[0]/dim, aux_layer)
    unused = vit.load_init(weights)
    assert all(k.startswith("head.") for k in unused), unused
    return vit.eval()


def network_like(z):
    "The whole network of a file; projection heads belong to other methods"
    state = params(z)
    encoder = vit_like({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")},
                       int(z["opt/patch"]), int(z["opt/heads"]), int(z.get("opt/aux_layer", -3)))
    net = SingleStageNet(encoder, int(z["opt/num_classes"])-1, state["decoder.conv6.weight"].shape[0])
    unexpected = net.load_state_dict({k: v for k, v in state.items()
                                      if not k.startswith(("proj_head", "encoder.head"))}, strict=True)
    assert not unexpected.missing_keys
    return net.eval()


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_vit"))
def test_vit(path):
    z = load(path)
    vit = vit_like(params(z), int(z["opt/patch"]), int(z["opt/heads"]), int(z["opt/aux_layer"]))
    for i in cases(z, "in/x"):
        x = z[f"in/x{i}"].clone().requires_grad_()
        out = vit(x)
        flat = {"cls": out["cls_token"], "patch": out["last"].flatten(2).transpose(1, 2),
                "aux": out["aux"].flatten(2).transpose(1, 2)}
        close(vit.tokens(x)[0], z[f"out/tokens{i}"], 1e-4)
        for k, v in flat.items(): close(v, z[f"out/{k}{i}"], 1e-4)
        if f"in/cot_cls{i}" not in z: continue
        sum((v*z[f"in/cot_{k}{i}"]).sum() for k, v in flat.items()).backward()
        close(x.grad, z[f"grad/x{i}"], 1e-4)
        named = dict(vit.named_parameters())
        for k in [k for k in z if k.startswith("grad/") and k != f"grad/x{i}"]:
            close(named[k.removeprefix("grad/")].grad, z[k], 1e-4, 1e-5)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_decoder"))
def test_decoder(path):
    z = load(path)
    p, x = params(z), z["in/x"].clone().requires_grad_()
    decoder = LargeFOV(x.shape[1], p["conv8.weight"].shape[0], p["conv6.weight"].shape[0])
    decoder.load_state_dict(p)
    y = decoder(x)
    (y*z["in/cot"]).sum().backward()
    close(y, z["out/y"], 1e-6, 1e-4)
    close(x.grad, z["grad/x"], 1e-5, 1e-4)
    for k, v in decoder.named_parameters(): close(v.grad, z[f"grad/{k}"], 1e-4, 1e-4)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_msc_cam"))
def test_msc_cam(path):
    z = load(path)
    net = network_like(z)
    for i in cases(z, "opt/scales"):
        for layer, name in (("last", "cam"), ("aux", "cam_aux")):
            close(multi_scale_cam(lambda x: net.raw_cam(x, layer), z["in/x"], z[f"opt/scales{i}"].tolist()),
                  z[f"out/{name}{i}"], 1e-4)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_labels"))
def test_labels(path):
    z = load(path)
    cam, y, box, small_box = z["in/cam"], z["in/cls_label"], z["in/img_box"], z["in/img_box_small"]
    bg, high, low = (float(z[f"opt/{k}_thre"]) for k in ("bkg", "high", "low"))
    def same(a, key): assert torch.equal(a.long(), z[f"out/{key}"].long()), key
    plain = cam_to_label(cam, y, bg)
    same(plain, "label_nobox")
    close(valid_cam(cam, y), z["out/valid_cam"], 1e-6)
    same(cam_to_label(cam, y, low_thresh=low, high_thresh=high, box=box), "label_ignore_mid")
    same(cam_to_label(cam, y, bg, box=box), "label_no_ignore_mid")
    same(ignore_outside(plain, box), "ignore_img_box")
    same(roi_mask(cam, y, low, high), "roi_mask")
    small = resize(cam, z["out/label_lowres_fullres_box"].shape[1:])
    for b, key, aff in ((box, "label_lowres_fullres_box", "aff_mask"),
                        (small_box, "label_lowres_small_box", "aff_mask_small_box")):
        label = cam_to_label(small, y, low_thresh=low, high_thresh=high, box=b)
        same(label, key)
        same(pairwise_affinity_label(label), aff)
    n = z["out/aff_mask_all_ignore"].shape[-1]
    same(pairwise_affinity_label(torch.full((1, 1, n), int(z["opt/ignore_index"]))), "aff_mask_all_ignore")


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_crop"))
def test_crop(path):
    z = load(path)
    n, size = int(z["opt/crop_num"]), int(z["opt/crop_size"])
    for i, roi in enumerate(z["in/roi_mask"]):
        assert len(crop_candidates(roi <= 1, size, n)) == z[f"out/num_candidates_{i}"]
    generator = torch.Generator().manual_seed(int(z["opt/torch_manual_seed"]))
    crops, flags = uncertain_crops(z["in/images"], z["in/roi_mask"], n, size, generator)
    assert torch.equal(crops, z["out/crops"])
    both_globals = torch.ones(len(flags), z["out/flags"].shape[1]-n, dtype=torch.long)
    assert torch.equal(torch.cat([both_globals, flags], 1), z["out/flags"].long())


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_seg_loss"))
def test_seg_loss(path):
    z = load(path)
    for i in cases(z, "in/logit"):
        label, expected = z[f"in/label{i}"].long(), z[f"out/loss{i}"]
        for empty_ok in (False, True):
            logits = z[f"in/logit{i}"].clone().requires_grad_()
            loss = balanced_seg_loss(logits, label, empty_ok=empty_ok)
            loss.backward()
            if not empty_ok: close(loss, expected, 1e-6)
            elif expected.isnan(): assert loss.isfinite()
            else: close(loss, expected, 1e-6)
            close(logits.grad, z[f"grad/logit{i}"], 1e-6)


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_par") + golden("tsd_cam", "tsd_aprm"))
def test_par(path):
    z, kernel = load(path), "aprm" if path.stem.startswith("tsd") else "par"
    for i in cases(z, "in/images"):
        dilations = z[f"opt/dilations{i}"].tolist() if i != "_flat" else (1, 2)
        num_iter = int(z[f"opt/num_iter{i}"]) if i != "_flat" else 2
        close(par(z[f"in/images{i}"], z[f"in/masks{i}"], dilations, num_iter, kernel), z[f"out/masks{i}"], 1e-5)
        if f"out/masks_iter1{i}" in z:
            close(par(z[f"in/images{i}"], z[f"in/masks{i}"], dilations, 1, kernel), z[f"out/masks_iter1{i}"], 1e-5)


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_refine"))
def test_refine(path):
    z = load(path)
    labels = {kernel: make_pseudo_label(z["in/images"], z["in/cams"], z["in/cls_labels"], float(z["opt/low_thre"]),
                                        float(z["opt/high_thre"]), z["in/img_box"],
                                        down_scale=int(z["opt/down_scale"]), dilations=z["opt/dilations"].tolist(),
                                        num_iter=int(z["opt/num_iter"]), kernel=kernel)
              for kernel in ("par", "aprm")}
    for kernel, label in labels.items():
        assert (label == z[f"out/label_{kernel}"].long()).float().mean() >= .999, kernel
    assert not labels["par"].equal(labels["aprm"])


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_infer"))
def test_infer(path):
    z = load(path)
    net, scales, side = network_like(z), z["opt/scales"].tolist(), int(z["opt/coco_resize"])
    for name, options in (("voc", {}), ("coco", {"fusion": "max-sum", "base_size": (side, side)})):
        logits = multi_scale_logits(net.seg_logits, z["in/x"], scales=scales, **options)
        close(logits, z[f"out/{name}_logits"], 1e-3)
        assert (logits.argmax(1) == z[f"out/{name}_pred"]).float().mean() >= .999


@pytest.mark.parametrize("path", golden("tsd_cam", "toco_optim"))
def test_optim(path):
    z = load(path)
    groups = cases(z, "in/p")
    weights = [torch.nn.Parameter(z[f"in/p{i}"].clone()) for i in groups]
    lr, mult = float(z["opt/lr"]), z["opt/lr_mult"].tolist()
    optimizer = torch.optim.AdamW([{"params": [w], "lr": lr*m} for w, m in zip(weights, mult)], betas=(.9, .999),
                                  eps=1e-8, weight_decay=float(z["opt/weight_decay"]))
    schedule = Schedule(optimizer, int(z["opt/max_iter"]), int(z["opt/warmup_iter"]), float(z["opt/warmup_ratio"]),
                        float(z["opt/power"]))
    for step, grads in enumerate(z["in/grads"]):
        schedule.set(step)
        close(torch.tensor([g["lr"] for g in optimizer.param_groups], dtype=torch.float64),
              z["out/lr_f64"][step], rtol=1e-6)
        for w, g in zip(weights, grads): w.grad = g.clone()
        optimizer.step()
        close(torch.stack([w.detach() for w in weights]), z["out/params"][step], rtol=1e-6, atol=1e-7)
    published = [6e-5*lr_factor(int(t), int(z["opt/real_max_iter"]), 1500, 1e-6, .9) for t in z["opt/real_steps"]]
    close(torch.tensor(published, dtype=torch.float64), z["out/real_lr_f64"], rtol=1e-6)
