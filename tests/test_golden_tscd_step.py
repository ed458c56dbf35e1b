"""Golden vectors of a whole TSCD step, of its validation and of its inference (area `tscd`): sizes, options and
weights come from the files."""
import numpy as np
import pytest
import torch
from golden_files import cases, golden
from test_golden_tscd import network_like
from test_golden_tsd_cam import close, load, params
from torch.nn import functional as F

from wsss_nb.cam.core import cam_to_label, valid_cam
from wsss_nb.data.transforms import normalise
from wsss_nb.scores.confusion import ConfusionMatrix, image_f1
from wsss_nb.methods.tscd import PRESETS, Config, Network, Step
from wsss_nb.ground.tensors import resize
from wsss_nb.run.loop import Schedule
from wsss_nb.run.settings import resolve_config


def method_like(z, monkeypatch, **changes):
    "TSCD with the options and tensors of a file, without chance in training"
    parts = network_like(z)
    num_classes, hidden = parts.decoder.linear_pred.weight.shape[:2]
    monkeypatch.setattr("wsss_nb.methods.core.create_backbone", lambda *_, **__: parts.encoder)
    net = Network(Config(hidden=hidden, drop_path=0., **changes), tuple(map(str, range(num_classes))))
    net.load_state_dict(params(z))
    return net


def step_of(z, monkeypatch, **changes):
    "Return network, what one step after the warm-up looks at, and the terms that it computes"
    monkeypatch.setattr(torch.nn.functional, "dropout2d", lambda x, *_: x)
    images = torch.stack([normalise(i.permute(1, 2, 0).numpy(), grey_levels=True) for i in z["in/image_u8"]])
    net = method_like(z, monkeypatch, crop_size=images.shape[-1], radius=int(z["opt/radius"]),
                      view_scale=float(z["opt/scale_factor"]), seg_start=int(z["opt/cam_iters"]),
                      corr_samples=z["in/coords1"].shape[1], **changes)
    net.requires_grad_(True).train()  # the reference freezes the norms by a rate of 0, so that they have gradients
    batch, step = {"input": images, "box": z["in/img_box"], "image_labels": z["in/cls_labels"]}, int(z["opt/n_iter"])
    places = [(z[f"in/coords{k}"]+1)/2 for k in (1, 2)]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: places.pop(0))
    seen = Step(net, batch, step)
    return net, seen, seen.losses()


@pytest.mark.parametrize("path", golden("tscd", "train_step"))
def test_step(path, monkeypatch):
    z = load(path)
    net, seen, terms = step_of(z, monkeypatch)
    assert list(net.config.weights(int(z["opt/cam_iters"])).values()) == [1., 0, 0, 0, 0, 0]
    names = {"cls": "cls_loss", "seg": "seg_loss", "reg": "reg_loss", "aff": "aux_loss", "corr": "loss_corr",
             "er": "loss_er"}
    for k, name in names.items(): close(terms[k][1], z[f"out/{name}"].squeeze(), 1e-4)
    assert not terms["er"][1].requires_grad
    total = sum(w*v for w, v in terms.values())
    close(total, z["out/loss"].squeeze(), 1e-4)
    small, y = z["out/cams_valid_small"], seen.image_labels
    close(F.adaptive_avg_pool2d(valid_cam(seen.cams, y), small.shape[-2:]), small, 2e-4)
    close(seen.cams2, z["out/cams2"], 2e-4)
    close(seen.out["affinity"], z["out/attn_pred"], 2e-4)
    close(seen.out["cls_logits"], z["out/cls"], 2e-4)
    def agree(a, key): assert (a.long() == z[f"out/{key}"].long()).float().mean() >= .999, key
    c = net.config
    agree(cam_to_label(seen.cams, y, low_thresh=c.low_thresh, high_thresh=c.high_thresh, box=seen.batch["box"]),
          "pseudo_label")
    agree(seen.label, "refined_label")
    agree(seen.logits.argmax(1), "seg_argmax")
    norm = net.decoder.linear_fuse.bn
    assert norm.num_batches_tracked == z["out/bn_num_batches"]
    for k in ("mean", "var"): close(getattr(norm, f"running_{k}"), z[f"out/bn_running_{k}"], 1e-4, 1e-4)
    total.backward()
    named, grads = (dict(net.named_parameters()),
                    {k.removeprefix("grad/"): v for k, v in z.items() if k.startswith("grad/")})
    assert grads.keys() == named.keys()
    largest = max(g.abs().max().item() for g in grads.values())
    for k, g in grads.items(): assert (named[k].grad-g).abs().max() < 1e-3*largest, k


@pytest.mark.parametrize("path", golden("tscd", "train_step"))
def test_update(path, monkeypatch):
    z = load(path)
    net, _, terms = step_of(z, monkeypatch)
    sum(w*v for w, v in terms.values()).backward()
    frozen = {k for k, p in net.encoder.named_parameters() if "norm" in k}
    for k, p in net.encoder.named_parameters(): p.requires_grad_(k not in frozen)   # as `Network` leaves them
    optimizer = torch.optim.AdamW(net.param_groups(), betas=(.9, .999), eps=1e-8, weight_decay=net.config.weight_decay)
    Schedule(optimizer, 20_000, net.config.warmup_iter, power=net.config.lr_power).set(3000)
    rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
    close(torch.tensor([rates["encoder"], 0, rates["heads"], rates["decoder"]]), z["out/lr"], rtol=1e-5)
    optimizer.step()
    for k in [k for k in z if k.startswith("out/after_step/")]:
        name = k.removeprefix("out/after_step/")
        part = "encoder" if name.startswith("encoder.") else "decoder" if name.startswith("decoder.") else "heads"
        off, rate = (net.state_dict()[name]-z[k]).abs(), rates[part]
        if "norm" in name: rate = 0
        assert (off <= 1e-5).float().mean() >= .99 and off.max() <= max(2.1*rate, 1e-8), (name, off.max())


@pytest.mark.parametrize("path", golden("tscd", "checkpoint_layout"))
def test_groups(path):
    z = dict(np.load(path))
    net = Network(Config(backbone=str(z["opt/backbone"]), hidden=int(z["opt/embedding_dim"])),
                  tuple(map(str, range(int(z["opt/num_classes"])))))
    group_of = {id(p): g["name"] for g in net.param_groups() for p in g["params"]}
    names = {0: "encoder", 2: "heads", 3: "decoder"}
    for name, group in zip(z["out/names"], z["out/param_group"], strict=True):
        p = dict(net.named_parameters()).get(str(name))
        if group == -1: assert p is None
        elif group == 1: assert not p.requires_grad and id(p) not in group_of
        else: assert group_of[id(p)] == names[int(group)], name


@pytest.mark.parametrize("path", golden("tscd", "validate"))
def test_validation(path, monkeypatch):
    z = load(path)
    net = method_like(z, monkeypatch, radius=int(z["opt/radius"]), cam_scales=tuple(z["opt/scales"].tolist()),
                      bg_thresh=float(z["opt/bkg_score_cam"]), walk_thresh=float(z["opt/bkg_score_ref"])).eval()
    matrices, f1 = {k: ConfusionMatrix(len(net.classes)) for k in ("seg", "cam", "ref")}, []
    for i in cases(z, "in/x"):
        x, y, mask = z[f"in/x{i}"], z["in/cls_labels"][int(i)][None], z[f"in/label{i}"][0]
        with torch.no_grad():
            out, cam = net(x), net.cam(x, y)
            labels = {"seg": resize(out["seg_logits"], mask.shape).argmax(1),
                      "cam": cam_to_label(cam, y, net.config.bg_thresh),
                      "ref": net.random_walk_seed(x, cam, y, mask.shape)}
        f1.append(image_f1((out["cls_logits"][0] > 0).numpy(), y[0].numpy()))
        for k, label in labels.items():
            assert (label[0] == z[f"out/{k}_pred{i}"].long()).float().mean() >= .998, k
            matrices[k].add(label[0].numpy(), mask.numpy())
    for k, m in matrices.items():
        close(torch.tensor([m.miou, m.pixel_accuracy]), [z[f"out/{k}_miou"], z[f"out/{k}_pAcc"]], 2e-3)
    close(torch.tensor(sum(f1)/len(f1)), z["out/cls_score"], 1e-6)


@pytest.mark.parametrize("path", golden("tscd", "inference_msc_flip"))
def test_inference(path, monkeypatch):
    z = load(path)
    scales, size = tuple(z["opt/scales"].tolist()), tuple(z["opt/label_hw"].tolist())
    net = method_like(z, monkeypatch, infer_size=int(z["opt/resize_long"]), infer_scales=scales).eval()
    x = z["in/x"]
    r = int(z["opt/resize_long"])/max(x.shape[-2:])
    small = resize(x, tuple(int(n*r) for n in x.shape[-2:]))
    with torch.no_grad():
        one = net.seg_logits(small)
        close(one, z["out/segs"], 2e-4)
        many = net.segmentation(x, one.shape[-2:])
        close(many, z["out/msc_segs"], 2e-4)
        for logits, key in ((resize(one, size), "pred"), (net.segmentation(x, size), "msc_pred")):
            assert (logits.argmax(1)[0] == z[f"out/{key}"].long()).float().mean() >= .998, key


def test_presets():
    "Each preset is one that can be resolved, and says what the published recipes say"
    made = {name: resolve_config(Config(), PRESETS, name) for name in PRESETS}
    assert ((made["voc"].crop_size, made["voc-320"].crop_size, made["coco"].iters, made["coco"].seg_start)
            == (512, 320, 80_000, 5000))
    afa = made["afa"]
    assert ((afa.refine, afa.symmetric_affinity, afa.seg_corners, afa.walk_start, afa.w_corr, afa.w_er,
             afa.refine_iters, afa.affinity_target) == ("par", True, False, 6000, 0, 0, 10, "cam"))
    assert ((made["afa-coco"].refine_iters, made["afa-coco"].walk_start, made["afa-coco"].affinity_target)
            == (15, 15_000, "seg"))
