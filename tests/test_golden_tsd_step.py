"Golden vectors of a whole step of TSD-CAM (area `tsd_cam`): sizes, options and weights come from the file."
import pytest
import torch
from golden_files import golden
from test_golden_toco import STEP, encoder_of, option, own
from test_golden_tsd_cam import close, load, params

from wsss_nb.data.transforms import denormalise
from wsss_nb.losses.correlation import shrink
from wsss_nb.methods.step import patch_labels, pseudo_label
from wsss_nb.methods.tsd_cam import PRESETS, Config, Network, Step
from wsss_nb.refine.affinity import pairwise_affinity_label
from wsss_nb.ground.tensors import enlarge

OPTIONS = ({k: v for k, v in STEP.items() if k in Config.__dataclass_fields__}
           | {"view_scale": "scale_factor", "corr_samples": "feature_samples", "w_corr": "w_corr", "w_er": "w_er"})
# of a term -> of its value in a file
NAMES = {"cls": "cls", "aux": "cls_aux", "ptc": "ptc", "seg": "seg", "reg": "reg", "corr": "corr", "er": "er"}
OF_SCRIPT = {k: v for k, v in PRESETS["script"].items() if k.startswith("w_")}


def method_like(z, monkeypatch, **changes):
    "TSD-CAM with the options and tensors of a file; projection heads are not carried"
    p = {k: v for k, v in own(params(z)).items() if not k.startswith("proj_head")}
    config = Config(**{k: option(z[f"opt/{v}"]) for k, v in OPTIONS.items()}
                    | {"hidden": p["decoder.conv6.weight"].shape[0], "crop_size": min(z["in/inputs"].shape[-2:])}
                    | changes)
    config.check()
    monkeypatch.setattr("wsss_nb.methods.core.create_backbone", lambda *_, **__: encoder_of(z))
    net = Network(config, tuple(map(str, range(int(z["opt/num_classes"])))))
    net.load_state_dict(p)
    batch = {"input": z["in/inputs"], "box": z["in/img_box"], "image_labels": z["in/cls_label"]}
    places, real = [z["in/rand1"], z["in/rand2"]], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: places.pop(0) if places and size == tuple(places[0].shape)
                        else real(*size, **kw))
    return net, batch


def counting(net, *left_out):
    "Return the terms that have a weight when all have begun, in order"
    return [k for k in NAMES if k not in left_out and net.config.weights(net.config.corr_start+1)[k]]


def backward(terms):
    "Return the total, after the way back"
    total = sum(w*v for w, v in terms.values())
    total.backward()
    return total


def check_grads(net, z, kind):
    named, grads = (dict(net.named_parameters()), {k.removeprefix(f"grad/{kind}/"): v for k, v in z.items()
                                                   if k.startswith(f"grad/{kind}/")})
    assert grads
    for k, g in grads.items(): close(named[k].grad, g, 1e-3*g.abs().max().item())
    return {k for k, v in named.items() if v.grad is not None}, grads


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_step_intermediates(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    c = net.config
    seen = Step(net, batch, c.corr_start+1)
    first, second = seen.pair
    close(denormalise(batch["input"]).float()/255, z["out/inputs_denorm"], 1e-6)
    for k, name in {"cls": "cls_logits", "cls_aux": "aux_cls_logits", "segs": "seg_logits", "fmap": "last"}.items():
        close(seen.out[name], z[f"out/{k}"], 1e-4)
    close(seen.logits, z["out/segs_up"], 1e-4)
    close(seen.cams["last"], z["out/cams"], 1e-4)
    present = batch["image_labels"].bool()
    close(seen.cams["aux"][present], z["out/cams_aux"][present], 1e-4)
    close(shrink(batch["input"], c.view_scale), z["out/img2"], 1e-5)
    close(shrink(first, c.view_scale), z["out/cams1"], 1e-4)
    close(second, z["out/cams2"], 1e-4)
    segs2 = net.decoder(seen.out2["last"])
    close(segs2, z["out/segs2"], 1e-4)
    close(seen.logits2, z["out/segs2_up"], 1e-4)
    assert torch.equal(seen.logits2, enlarge(segs2, z["out/segs2_up"].shape[-2:]))
    def agree(a, key): assert (a.long() == z[f"out/{key}"].long()).float().mean() >= .999, key
    agree(seen.label, "refined_label")
    agree(pseudo_label(batch, seen.cams["aux"], c), "refined_label_from_aux")
    label = patch_labels(batch, seen.cams["aux"], seen.out["last"].shape[-2:], c)
    agree(label, "pseudo_label_aux")
    agree(pairwise_affinity_label(label), "aff_mask")
    assert not any(x.requires_grad for x in (*seen.cams.values(), second)) and seen.logits2.requires_grad


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_full(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    passes = []
    net.encoder.register_forward_pre_hook(lambda m, x: passes.append((len(x[0]), torch.is_grad_enabled())))
    terms = net.training_losses(batch, net.config.corr_start+1)
    B, others = len(batch["input"]), len({1, *net.config.cam_scales})-1
    # each view: itself, its mirror, the other sizes
    assert passes == [(B, True), (B, False), *[(2*B, False)]*others]*2
    assert list(terms) == counting(net) and ("er" not in terms or not terms["er"][1].requires_grad)
    for name, (_, value) in terms.items():
        close(value, z[f"out/loss_{NAMES[name]}"].squeeze(), 1e-4 if name != "reg" else 0, rtol=1e-4)
    close(backward(terms), z["out/total_full"].squeeze(), 1e-4)
    has_grad, grads = check_grads(net, z, "full")
    assert has_grad == {*grads}


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_script(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch, **OF_SCRIPT)
    terms = net.training_losses(batch, net.config.corr_start+1)
    assert list(terms) == ["cls", "aux", "seg"]
    close(backward(terms), z["out/total_script"].squeeze(), 1e-4)
    check_grads(net, z, "script")
    net.zero_grad()
    w, seg = net.training_losses(batch, net.config.corr_start+1)["seg"]
    (w*seg).backward()
    # the decoder learns from this term and no other
    g = z["grad/script/decoder.conv8.weight"]
    close(net.decoder.conv8.weight.grad, g, 1e-3*g.abs().max().item())


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_correlation_alone(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    terms = net.training_losses(batch, net.config.corr_start+1)
    terms["corr"][1].backward()
    check_grads(net, z, "corr_only")
    for k in ("decoder.conv8.weight", "encoder.norm.weight"): assert net.get_parameter(k).grad.abs().max() > 0
    assert net.classifier.weight.grad is None and net.aux_classifier.weight.grad is None
    # the same term where it is the only one that segments
    alone, _ = method_like(z, monkeypatch, w_seg=0., w_reg=0., w_ptc=0., w_er=0.)
    only = alone.training_losses(batch, alone.config.corr_start+1)
    assert list(only) == ["cls", "aux", "corr"]
    close(only["corr"][1], z["out/loss_corr"], 1e-4)


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_taught_by_the_auxiliary_cam(path, monkeypatch):
    "COCO, the phase in the middle"
    z = load(path)
    net, batch = method_like(z, monkeypatch, seg_start=10, corr_start=20, ptc_warmup=False)
    passes = []
    net.encoder.register_forward_pre_hook(lambda m, x: passes.append(len(x[0])))
    assert list(net.training_losses(batch, 10)) == ["cls", "aux"] and len(passes) == 1
    terms = net.training_losses(batch, 11)
    assert list(terms) == counting(net, "ptc", "corr", "er")
    close(terms["seg"][1], z["out/loss_seg_from_aux"], 1e-4)
    assert list(net.training_losses(batch, 21)) == counting(net)


@pytest.mark.parametrize("path", golden("tsd_cam", "tsd_step"))
def test_warmup_and_options(path, monkeypatch):
    z = load(path)
    net, batch = method_like(z, monkeypatch)
    early = net.training_losses(batch, net.config.seg_start)
    assert list(early) == counting(net, "seg", "reg", "corr", "er")
    for name in early: close(early[name][1], z[f"out/loss_{NAMES[name]}"], 1e-4)
    for changes in ({"mask_corr_cams": True}, {"er_grad": True}, {"w_er": 0.}):
        changed, _ = method_like(z, monkeypatch, **changes)
        terms = changed.training_losses(batch, changed.config.corr_start+1)
        for name in counting(changed, "corr", "er"):
            close(terms[name][1], z[f"out/loss_{NAMES[name]}"].squeeze(), 1e-4 if name != "reg" else 0, rtol=1e-4)
        corr = terms["corr"][1]
        if "mask_corr_cams" in changes and (batch["image_labels"] == 0).any():
            assert (corr-z["out/loss_corr"]).abs() > 1e-4
        else: close(corr, z["out/loss_corr"], 1e-4)
        assert ("er" in terms) == bool(changed.config.w_er)
        assert ("er" not in terms or terms["er"][1].requires_grad == changed.config.er_grad)
