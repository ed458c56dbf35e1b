"""Golden vectors of CPDGL's network, memory, losses, schedule and whole steps (area `cpdgl`): sizes, options and
case counts come from the files."""
import re

import pytest
import torch
from golden_files import cases, golden
from test_golden_toco import option
from test_golden_tsd_cam import close, load, params, vit_like

from wsss_nb.backbones.core import current_name, load_matching
from wsss_nb.cam.core import cam_to_label
from wsss_nb.losses.contrast import patch_contrast_loss
from wsss_nb.losses.prototype import local_contrast_loss, prototype_contrast_loss
from wsss_nb.losses.segment import balanced_seg_loss
from wsss_nb.networks.memory import MemoryNet, gathered, move_prototypes
from wsss_nb.methods.cpdgl import PRESETS, Config, Network, Step, tagged_places
from wsss_nb.methods.step import patch_labels
from wsss_nb.networks.single_stage import SingleStageNet
from wsss_nb.networks.projection import ProjectionHead
from wsss_nb.refine.affinity import pairwise_affinity_label
from wsss_nb.networks.decoders import ASPP
from wsss_nb.run.loop import Schedule
from wsss_nb.run.schedules import lr_factor

UNUSED = re.compile(r"encoder(_k)?\.head\.|proj_head(_t)?\.last_layer\.")  # in the checkpoints, read by nothing


def scaled(a, b, tol): close(a.detach(), b, tol*max(b.abs().max().item(), 1e-30))   # `tol` of the largest magnitude
def encoder_of(z, prefix="encoder."):
    return vit_like({k.removeprefix(prefix): v for k, v in params(z).items() if k.startswith(prefix)},
                    int(z["opt/patch"]), int(z["opt/heads"]), int(z.get("opt/aux_layer", -3)))
def gradients(z, named, tol, suffix=""):
    "Compare the gradients that a file holds, names ending in `suffix`"
    grads = {current_name(k.removeprefix("grad/").removesuffix(suffix)): v for k, v in z.items()
             if k.startswith("grad/") and k.endswith(suffix)}
    grads = {k: g for k, g in grads.items() if k in named}
    assert grads
    for k, g in grads.items(): scaled(torch.zeros_like(g) if named[k].grad is None else named[k].grad, g, tol)

def gradients_of(module, z):
    "Compare those that the file holds, some at least, absolutely"
    known = {k: v for k, v in module.named_parameters() if f"grad/{k}" in z}
    assert known
    for k, v in known.items(): close(v.grad, z[f"grad/{k}"], 1e-5)


# %% Network
@pytest.mark.parametrize("path", golden("cpdgl", "vit_backbone"))
def test_vit(path):
    z = load(path)
    vit = vit_like(params(z), int(z["opt/patch"]), int(z["opt/heads"]), int(z["opt/aux"]))
    for i in cases(z, "in/x"):
        vit.zero_grad()
        out = vit(x := z[f"in/x{i}"].clone().requires_grad_())
        flat = {"cls": out["cls_token"], "patch": out["last"].flatten(2).transpose(1, 2),
                "aux": out["aux"].flatten(2).transpose(1, 2)}
        for k, v in flat.items(): scaled(v, z[f"out/{k}{i}"], 1e-5)
        sum((v*z[f"in/g{k}{i}"]).sum() for k, v in flat.items()).backward()
        scaled(x.grad, z[f"grad/x{i}"], 1e-4)
        gradients(z, dict(vit.named_parameters()), 1e-4, i)


@pytest.mark.parametrize("path", golden("cpdgl", "network_heads"))
def test_network(path):
    z = load(path)
    p = {k: v for k, v in params(z).items() if not UNUSED.match(k)}
    net = SingleStageNet(encoder_of(z), len(p["classifier.weight"]), decoder="aspp")
    net.load_state_dict(p)
    out = net(z["in/x"])
    for k, name in {"cls": "cls_logits", "seg": "seg_logits", "x4": "last", "cls_aux": "aux_cls_logits"}.items():
        scaled(out[name], z[f"out/{k}"], 1e-5)
    for k, layer in (("cam_only", "last"), ("cam_only_aux", "aux")):
        scaled(net.raw_cam(z["in/x"], layer), z[f"out/{k}"], 1e-5)
    sum((out[name]*z[f"in/g{k}"]).sum() for k, name in {"cls": "cls_logits", "seg": "seg_logits",
                                                        "cls_aux": "aux_cls_logits"}.items()).backward()
    gradients(z, dict(net.named_parameters()), 1e-4)


@pytest.mark.parametrize("path", golden("cpdgl", "aspp_decoder"))
def test_decoder(path):
    z = load(path)
    p, x = params(z), z["in/x"].clone().requires_grad_()
    decoder = ASPP(x.shape[1], len(p["c0.bias"]), option(z["opt/atrous_rates"]))
    decoder.load_state_dict(p)
    (decoder(x)*z["in/g"]).sum().backward()
    close(decoder(x), z["out/y"], 1e-5)
    close(x.grad, z["grad/x"], 1e-5)
    grads = {current_name(k.removeprefix("grad/")): g for k, g in z.items() if k.startswith("grad/c")}
    assert grads
    for k, g in grads.items(): close(decoder.get_parameter(k).grad, g, 1e-5)


@pytest.mark.parametrize("path", golden("cpdgl", "proj_head"))
def test_projection_head(path):
    z = load(path)
    p, x = {k: v for k, v in params(z).items() if not k.startswith("last_layer")}, z["in/x"].clone().requires_grad_()
    head = ProjectionHead(x.shape[1], p["mlp.0.weight"].shape[0], z["out/y"].shape[1], None)
    head.load_state_dict(p)
    (head(x)*z["in/g"]).sum().backward()
    close(head(x), z["out/y"], 1e-5)
    close(x.grad, z["grad/x"], 1e-5)
    gradients_of(head, z)


# %% Memory
@pytest.mark.parametrize("gather", ["true", "ones"])
@pytest.mark.parametrize("path", golden("cpdgl", "reservoir"))
def test_reservoir(path, gather):
    z = load(path)
    p = ({k: v for k, v in params(z).items() if not UNUSED.match(k)}
         | {k.removeprefix("state/").removesuffix("0"): v for k, v in z.items() if k.startswith("state/")})
    net = MemoryNet(encoder_of(z), len(p["prototypes"]), 8, proj_hidden=p["proj_head.mlp.0.weight"].shape[0],
                    momentum=float(z["opt/momentum"]), queue_len=int(z["opt/moco_queue"]))
    missing = net.load_state_dict(p, strict=False)
    assert not missing.unexpected_keys
    assert all(k.startswith(("classifier", "aux_classifier", "decoder")) for k in missing.missing_keys)
    n, steps = int(z["opt/ncrops"])-2, cases(z, "in/flags")
    for s in steps:
        crops, key_crops = (torch.stack([z[f"in/local_{k}{i}{s}"] for i in range(n)], dim=1) for k in "qk")
        tokens, tags = (net(z[f"in/global0{s}"], view2=z[f"in/global1{s}"])["view_tokens"],
                        z[f"in/flags{s}"][:, 0].long())
        q = net.student_rows(tokens, crops)
        net.follow_student()
        columns, column_tags = net.remember(net.key_rows(tokens, key_crops), tags, gather)
        def out(k): return z[f"out/{gather}_{k}{s}"]
        close(q, out("q"), 1e-5)
        close(columns[:len(q)], out("keys"), 1e-5)
        close(torch.cat([q, columns]), out("feats_all"), 1e-5)
        assert torch.equal(torch.cat([tags, column_tags]), out("flags_all")[:, 0].long())
        assert torch.equal(net.queue_ptr, out("ptr"))
    (q*z["in/gq_last"]).sum().backward()
    gradients(z, dict(net.named_parameters()), 1e-5)
    after = {k.removeprefix(f"out/{gather}_after_"): v for k, v in z.items() if k.startswith(f"out/{gather}_after_")}
    assert after or gather == "ones"
    for k, v in after.items(): close(net.state_dict()[k], v, 1e-6)


@pytest.mark.parametrize("gather", ["true", "ones"])
@pytest.mark.parametrize("path", golden("cpdgl", "prototypes"))
def test_prototypes(path, gather):
    z = load(path)
    prototypes = z["state/prototypes0"].clone()
    assert len(cases(z, "in/embeds")) == int(z["opt/steps"])
    for i in cases(z, "in/embeds"):
        move_prototypes(prototypes, gathered(z[f"in/embeds{i}"], gather), gathered(z[f"in/label_idx{i}"], gather),
                        float(z["opt/proto_m"]))
        close(prototypes, z[f"out/{gather}_gather_prototypes{i}"], 1e-6)


# %% Losses
def contrast_cases(z):
    return [k.removeprefix("in/").removesuffix("_out_q") for k in z if k.startswith("in/") and k.endswith("_out_q")]

@pytest.mark.parametrize("path", golden("cpdgl", "lcl_mean") + golden("cpdgl", "lcl_sum"))
def test_local_contrast(path):
    z, form = load(path), path.stem.split("_")[1]
    options = dict(form=form, temperature=float(z["opt/temperature"]),
                   base_temperature=float(z["opt/base_temperature"]))
    assert contrast_cases(z)
    for c in contrast_cases(z):
        q, tags = z[f"in/{c}_out_q"].clone().requires_grad_(), z[f"in/{c}_flags"][:, 0]
        before = tags.clone()
        loss, revised = local_contrast_loss(q, tags, z[f"in/{c}_q_all"][len(q):],
                                            z[f"in/{c}_q_flags"][len(q):, 0], **options)
        loss.backward()
        close(loss, z[f"out/{c}_loss"], rtol=1e-5)
        scaled(q.grad, z[f"grad/{c}_out_q"], 1e-4)
        assert torch.equal(revised, z[f"out/{c}_flags_revised"][:, 0]) and torch.equal(tags, before)


@pytest.mark.parametrize("path", golden("cpdgl", "pcl_restricted") + golden("cpdgl", "pcl_margin"))
def test_prototype_contrast(path):
    z, form = load(path), path.stem.split("_")[1]
    margins = {k.removeprefix("opt/margin"): float(z[k]) for k in z if k.startswith("opt/margin")} or {"": 0.}
    compared = 0
    for c in contrast_cases(z):
        for name, margin in margins.items():
            suffix = f"_margin{name}" if name else ""
            if f"out/{c}_loss{suffix}" not in z: continue
            q = z[f"in/{c}_out_q"].clone().requires_grad_()
            loss = prototype_contrast_loss(q, z[f"in/{c}_flags"], z[f"in/{c}_prototypes"], form,
                                           float(z["opt/temperature"]), margin, float(z["opt/base_temperature"]))
            loss.backward()
            close(loss, z[f"out/{c}_loss{suffix}"], 1e-6, 1e-5)
            scaled(q.grad, z[f"grad/{c}_out_q{suffix}"], 1e-4)
            compared += 1
    assert compared == sum(re.fullmatch(r"out/\w+_loss\w*", k) is not None for k in z)


@pytest.mark.parametrize("path", golden("cpdgl", "seg_loss"))
def test_seg_loss(path):
    z = load(path)
    names = [k.removeprefix("in/").removesuffix("_logits") for k in z if k.startswith("in/") and k.endswith("_logits")]
    assert names
    for c in names:
        logits = z[f"in/{c}_logits"].clone().requires_grad_()
        loss = balanced_seg_loss(logits, z[f"in/{c}_label"].long())
        loss.backward()
        close(loss, z[f"out/{c}_loss"], 1e-6)
        close(logits.grad, z[f"grad/{c}_logits"], 1e-6)


@pytest.mark.parametrize("path", golden("cpdgl", "aff_ptc"))
def test_patch_contrast(path):
    z = load(path)
    features, pairs = z["in/feat"].clone().requires_grad_(), pairwise_affinity_label(z["in/label"].long())
    assert torch.equal(pairs, z["out/aff_mask"].long())
    loss = patch_contrast_loss(features, pairs)
    loss.backward()
    close(loss, z["out/loss"], 1e-6)
    scaled(features.grad, z["grad/feat"], 1e-5)


# %% Schedule
NAMES = ("cls", "aux", "ptc", "pcl", "lcl", "seg", "reg")   # the columns of the files
WEIGHTS = {"w_ptc": "w_ptc", "w_pcl": "w_lig", "w_lcl": "w_lil", "w_seg": "w_seg", "w_reg": "w_reg"}
STARTS = ("ptc_start", "contrast_start", "seg_start", "ramp")
def weights_of(config, step): return [config.weights(step)[k] for k in NAMES]


@pytest.mark.parametrize("path", golden("cpdgl", "schedule"))
def test_schedule(path):
    z = load(path)
    own = {k: float(z[f"opt/{v}"]) for k, v in WEIGHTS.items()}
    coco = {k: v for k, v in PRESETS["coco"].items() if k in STARTS}
    for steps, key, options in (("in/iters", "cpdgl", {}), ("in/iters", "base_voc", {"ramp": "step"}),
                                ("in/iters_coco", "base_coco", coco)):
        for step, expected in zip(z[steps].tolist(), z[f"out/weights_{key}"], strict=True):
            close(torch.tensor(weights_of(Config(**own | options), step)), expected, 1e-6)
    max_iter, warmup, ratio, power = (int(z["opt/max_iter"]), int(z["opt/warmup_iter"]), float(z["opt/warmup_ratio"]),
                                      float(z["opt/power"]))
    lr = [float(z["opt/lr"])*lr_factor(step, max_iter, warmup, ratio, power) for step in z["in/lr_steps"].tolist()]
    close(torch.tensor([[x, 10*x] for x in lr], dtype=torch.float64), z["out/lr"], rtol=1e-9)
    w = torch.nn.Parameter(z["param/w0"].clone())
    optimizer = torch.optim.AdamW([w], lr=float(z["opt/traj_lr"]), betas=option(z["opt/betas"]), eps=1e-8,
                                  weight_decay=float(z["opt/weight_decay"]))
    schedule = Schedule(optimizer, int(z["opt/traj_max_iter"]), int(z["opt/traj_warmup_iter"]), ratio, power)
    for step, (g, expected) in enumerate(zip(z["in/grads"], z["out/w_traj"], strict=True)):
        schedule.set(step)
        w.grad = g.clone()
        optimizer.step()
        close(w.detach(), expected, 1e-6)


# %% Whole steps
STEP = {"local_size": "local_crop_size", "tag_share": "tag_threshold", "momentum": "momentum",
        "queue_len": "moco_queue", "proto_from": "update_prototype", "proto_momentum": "proto_m",
        "final_from": "cam2mask",
        "pcl_temperature": "temp_lig", "lcl_temperature": "temp_lil", "low_thresh": "low_thre",
        "high_thresh": "high_thre", "bg_thresh": "bkg_thre", "cam_scales": "cam_scales",
        "aux_layer": "aux_layer"} | WEIGHTS
FORMS = {"base": {}, "released": {k: v for k, v in PRESETS["released"].items()
                                  if k in ("pcl_form", "lcl_form", "reg_filter")}}
VIEWS = {"input": "inputs", "view2": "w_image", "local": "s_image", "box": "img_box", "image_labels": "cls_label"}


def method_like(z, form, monkeypatch):
    "CPDGL with options, tensors and memory of a file, and its batch"
    p, images = (params(z) | {k.removeprefix("state/"): v for k, v in z.items() if k.startswith("state/")},
                 z["in/inputs"])
    config = Config(**{k: option(z[f"opt/{v}"]) for k, v in STEP.items()}, num_crops=int(z["opt/ncrops"])-2,
                    proj_hidden=p["proj_head.mlp.0.weight"].shape[0], batch_size=len(images),
                    crop_size=min(images.shape[-2:]), **FORMS[form])
    config.check()
    monkeypatch.setattr("wsss_nb.methods.core.create_backbone", lambda *_, **__: encoder_of(z))
    net = Network(config, tuple(map(str, range(int(z["opt/num_classes"])))))
    assert all(UNUSED.match(k) for k in load_matching(net, p))
    return net, {k: z[f"in/{v}"] for k, v in VIEWS.items()}


def same_memory(net, z, i):
    keys = {"prototypes": "prototypes", "queue": "queue", "queue_label_flag": "queue_flag", "queue_ptr": "queue_ptr"}
    for name, key in keys.items(): close(net.state_dict()[name], z[f"out/{key}{i}"], 2e-5)


each_step = pytest.mark.parametrize("path,form",
                                    [pytest.param(*p.values, form, id=p.id, marks=p.marks)
                                     for form, found in (("base", golden("cpdgl", "train_step_base")),
                                                         ("released", golden("cpdgl", "train_step_released")))
                                     for p in found])

@each_step
def test_step_intermediates(path, form, monkeypatch):
    "Every term and the memory after each step, the terms too whose weight is 0 there; maps and labels"
    z = load(path)
    names = {"cls": "cls_loss", "aux": "cls_loss_aux", "ptc": "ptc_loss", "pcl": "pcl_loss", "lcl": "lcl_loss",
             "seg": "seg_loss", "reg": "reg_loss"}
    for i, step in enumerate(z["in/iters"].tolist()):
        i = f"_{i}"
        net, batch = method_like(z, form, monkeypatch)
        filtered = net.config.reg_filter == "bilateral"
        look = Step(net, batch, step, dict.fromkeys(NAMES if filtered else NAMES[:-1], 1.))
        terms = look.losses()
        for k, name in names.items():
            expected = z[f"out/{name}{i}"]
            if k == "reg" and not filtered: assert expected == 0
            else: close(terms[k][1].detach(), expected, 2e-5*expected.abs().item())
        same_memory(net, z, i)
        scaled(look.rows, z[f"out/out_q{i}"], 2e-5)
        present = batch["image_labels"].bool()
        every = net.cams(batch["input"])
        for layer, name in (("last", "cams"), ("aux", "cams_aux")):
            close(look.cams[layer][present], z[f"out/{name}"][present], 5e-5)
            close(every[layer], z[f"out/{name}"], 5e-5)
        def agree(a, key): assert (a.long() == z[f"out/{key}"].long()).float().mean() >= .995, key
        agree(look.label, "refined_pseudo_label")
        agree(patch_labels(batch, look.cams["aux"], look.out["last"].shape[-2:], net.config), "pseudo_label_aux")
        cam, c = look.cams[look.crop_layer], net.config
        agree(cam_to_label(cam, batch["image_labels"], low_thresh=c.low_thresh, high_thresh=c.high_thresh,
                           box=batch["box"], unsure=-1), f"roi_mask{i}")
        for tags in (tagged_places(batch, cam, c)[1].flatten(), look.places[1]):
            assert torch.equal(tags, z[f"out/cls_flags_local{i}"][:, 0].long())
        assert torch.equal(look.tags, z[f"out/flags_revised{i}"][:, 0].long())


@each_step
def test_step(path, form, monkeypatch):
    "The weighted sum, its gradients, the passes that it takes, and what is remembered where a contrast counts"
    z = load(path)
    for i, step in enumerate(z["in/iters"].tolist()):
        i = f"_{i}"
        net, batch = method_like(z, form, monkeypatch)
        seen = []
        net.encoder.register_forward_pre_hook(lambda m, x: seen.append(len(x[0])*torch.is_grad_enabled()))
        terms = net.training_losses(batch, step)
        total = sum(w*v for w, v in terms.values())
        close(total.detach(), z[f"out/loss{i}"], 2e-4)
        total.backward()
        gradients(z, dict(net.named_parameters()), 2e-4, i)
        B, n = len(batch["input"]), net.config.num_crops
        # whole views at once, crops at once
        passes = [2*B, n*B] if "lcl" in terms else [2*B] if net.config.fills(step) else [B]
        assert [s for s in seen if s] == passes
        if "lcl" in terms: same_memory(net, z, i)
        else: close(net.prototypes, z[f"out/prototypes{i}"], 2e-5)
        label = batch["image_labels"]
        assert torch.equal(torch.where(label.sum(1) == 1, label.argmax(1)+1, -1), z["in/label_idx"])
