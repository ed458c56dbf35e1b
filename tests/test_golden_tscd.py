"Golden vectors of TSCD's and AFA's parts (area `tscd`): sizes, options and weights come from the files."
import numpy as np
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load, params

from wsss_nb.backbones.core import load_matching
from wsss_nb.backbones.mit import MiT, attention_logits, build_backbone
from wsss_nb.cam.core import valid_cam
from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.losses.affinity import affinity_loss
from wsss_nb.labels.pseudo import refine_in_box, walk_pseudo_label
from wsss_nb.refine.affinity import label_on_grid, near_pairs, pairwise_affinity_label
from wsss_nb.refine.walk import near_affinity, random_walk
from wsss_nb.networks.segformer import AllMLP, SegFormerNet, multi_scale_cam_affinity
from wsss_nb.ground.tensors import resize


def network_like(z, **options):
    """The whole network of a file (its README: strides 4,2,2,1, key reduction 8,4,2,1, MLP ratio 4), without chance
    in training"""
    state = params(z)
    def size(name): return state[name].shape[0]
    widths = [size(f"encoder.norm{s}.weight") for s in range(1, 5)]
    depths = [1+max(int(k.split(".")[2]) for k in state if k.startswith(f"encoder.block{s}.")) for s in range(1, 5)]
    net = SegFormerNet(MiT(widths, depths, drop_path=0), size("classifier.weight"),
                       size("decoder.linear_fuse.conv.weight"), **options)
    net.load_state_dict(state)
    return net.eval()


@pytest.mark.parametrize("path", golden("tscd", "mit_encoder"))
def test_encoder(path):
    z = load(path)
    names = {"widths": "embed_dims", "heads": "num_heads", "depths": "depths", "reductions": "sr_ratios",
             "stride": "stride"}
    encoder = MiT(**{k: z[f"opt/{v}"].tolist() for k, v in names.items()}, aux_layer=-1).eval()
    assert not load_matching(encoder, params(z))
    blocks = cases(z, "out/attn")
    assert len(blocks) == sum(encoder.depths)
    out = encoder(z["in/x"], attention=range(len(blocks)))
    for s in range(1, 5): close(out[f"stage{s}"], z[f"out/x{s}"], 2e-5)
    for i, pair in zip(blocks, out["attention"], strict=True): close(attention_logits(*pair), z[f"out/attn{i}"], 2e-4)


@pytest.mark.parametrize("path", golden("tscd", "affinity"))
def test_affinity(path):
    z = load(path)
    grid, radius, pred = ((int(z["opt/h"]), int(z["opt/w"])), int(z["opt/radius"]),
                          z["in/attn_pred"].clone().requires_grad_())
    near = near_pairs(grid, radius)
    assert torch.equal(near, z["out/mask"].bool())
    small = label_on_grid(z["in/label"].long(), grid)
    target = pairwise_affinity_label(small, near, self_pairs=True)
    assert torch.equal(target, z["out/aff_label"].long())
    assert torch.equal(pairwise_affinity_label(small, self_pairs=True), z["out/aff_label_nomask"].long())
    for name, kind in (("pos", 1), ("neg", 0)): assert (target == kind).sum()+1 == z[f"out/{name}_count"]
    loss = affinity_loss(pred, target)
    loss.backward()
    close(loss, z["out/loss"], 2e-6)
    close(pred.grad, z["grad/attn_pred"], 2e-6)
    pred.grad = None
    loss = affinity_loss(pred, torch.full_like(target, IGNORE_INDEX))
    loss.backward()
    close(loss, z["out/loss_allignore"], 2e-6)
    close(pred.grad.abs().max(), z["out/grad_allignore_absmax"], 2e-6)
    cam, y, bg = z["in/cam"], z["in/cls_labels"], float(z["opt/bkg_score"])
    dense, sparse = z["in/attn_pred"], near_affinity(z["in/attn_pred"], grid, radius)
    close(random_walk(cam, dense, y, bg, near), z["out/rw_with_bkg"], 2e-6)
    close(random_walk(cam, sparse, y, bg), z["out/rw_with_bkg"], 2e-6)
    close(random_walk(cam, dense, y, bg), z["out/rw_with_bkg_nomask"], 2e-6)
    close(random_walk(cam, near_affinity(dense, grid, max(grid)), y, bg), z["out/rw_with_bkg_nomask"], 2e-6)
    close(random_walk(cam, dense, near=near), z["out/rw_plain"], 2e-6)
    close(random_walk(cam, sparse), z["out/rw_plain"], 2e-6)


@pytest.mark.parametrize("path", golden("tscd", "segformer_head"))
def test_head(path, monkeypatch):
    z = load(path)
    p, stages = params(z), [z[f"in/c{s}"].clone().requires_grad_() for s in range(1, 5)]
    head = AllMLP([c.shape[1] for c in stages], p["linear_pred.weight"].shape[0], p["linear_fuse.conv.weight"].shape[0])
    head.load_state_dict(p)
    close(head.eval()(stages), z["out/seg_eval"], 2e-5)
    monkeypatch.setattr(torch.nn.functional, "dropout2d", lambda x, *_: x)
    y = head.train()(stages)
    (y*z["in/grad_out"]).sum().backward()
    close(y, z["out/seg_train_nodrop"], 2e-5)
    for s, c in enumerate(stages, 1): close(c.grad, z[f"grad/c{s}"], 2e-5)
    for k in ("running_mean", "running_var"): close(getattr(head.linear_fuse.bn, k), z[f"out/{k}"], 2e-5)
    grads = {k.removeprefix("grad/").removeprefix("param/"): v for k, v in z.items() if k.startswith("grad/")
             and k.removeprefix("grad/").removeprefix("param/") in p}
    assert grads.keys() == dict(head.named_parameters()).keys()
    largest = max(g.abs().max().item() for g in grads.values())
    for k, v in head.named_parameters(): close(v.grad, grads[k], 1e-4 if k.endswith("proj.bias") else 1e-5*largest)


@pytest.mark.parametrize("path", golden("tscd", "tscd_model"))
def test_network(path):
    z = load(path)
    net, x = network_like(z), z["in/x"]
    with torch.no_grad():
        out = net(x, affinity=True)
        for k, name in {"cls_gmp": "cls_logits", "seg": "seg_logits", "attn_pred": "affinity"}.items():
            close(out[name], z[f"out/{k}"], 2e-4)
        close(network_like(z, pooling="avg")(x)["cls_logits"], z["out/cls_gap"], 2e-4)
        close(torch.cat([attention_logits(*p) for p in net.encoder(x, net.affinity_blocks)["attention"]], 1),
              z["out/attn_last2"], 2e-4)
        close(network_like(z, symmetric_affinity=True)(x, affinity=True)["affinity"], z["out/attn_pred_afa"], 2e-4)
        close(net.raw_cam(x), z["out/cam_s4"], 2e-4)
        for i in [k.removeprefix("opt/scales") for k in z if k.startswith("opt/scales")]:
            cam, affinity = multi_scale_cam_affinity(net.look, x, z[f"opt/scales{i}"].tolist())
            close(cam, z[f"out/ms_cam{i}"], 5e-5)
            if named_by_place(z[f"opt/scales{i}"]): close(affinity, z[f"out/ref_mat{i}"], 2e-4)


def named_by_place(scales):
    """Does the reference, which counts a first pass at scale 1 but looks for the largest in `scales`, return the
    affinity of the largest images?"""
    passes = [1, *(s for s in scales.tolist() if s != 1)]
    return passes[scales.argmax()] == max(passes)


@pytest.mark.parametrize("path", golden("tscd", "cam_fusion"))
def test_cam_fusion(path):
    z = load(path)
    sizes, answers = [], iter([(z[f"in/raw{i}"], z[f"in/aff{i}"]) for i in cases(z, "in/raw")])
    def stub(x, wanted):
        sizes.append(list(x.shape[-2:]))
        raw, affinity = next(answers)
        return raw, affinity if wanted else None
    images = torch.zeros(z["out/cam"].shape[0], 3, *z["opt/hw"].tolist())
    cam, affinity = multi_scale_cam_affinity(stub, images, z["opt/scales"].tolist())
    assert sizes == z["out/input_sizes"].tolist()
    close(cam, z["out/cam"], 1e-6)
    if named_by_place(z["opt/scales"]): assert torch.equal(affinity, z["out/ref_mat"])


@pytest.mark.parametrize("path", golden("tscd", "checkpoint_layout"))
def test_checkpoint_layout(path):
    z = dict(np.load(path))
    encoder = build_backbone(str(z["opt/backbone"]))
    net = SegFormerNet(encoder, int(z["opt/num_classes"])-1, int(z["opt/embedding_dim"]))
    state = net.state_dict()
    assert set(state) == set(z["out/names"])
    for name, shape in zip(z["out/names"], z["out/shapes"], strict=True):
        assert list(state[name].shape) == [n for n in shape if n >= 0], name
    assert sum(p.numel() for p in net.parameters()) == z["out/n_params"]
    blocks = [b for s in range(1, 5) for b in getattr(encoder, f"block{s}")]
    np.testing.assert_allclose([b.drop_rate for b in blocks], z["out/drop_path"], atol=1e-7)
    modules = dict(net.named_modules())
    for name, eps in zip(z["out/layernorm_names"], z["out/layernorm_eps"], strict=True):
        assert modules[str(name)].eps == pytest.approx(float(eps))


@pytest.mark.parametrize("path", golden("tscd", "afa_affinity_label_path"))
def test_walk_label(path):
    z = load(path)
    images, cam, y, box, affinity = (z[f"in/{k}"] for k in ("inputs_denorm", "cams", "cls_labels",
                                                            "img_box", "aff_mat"))
    # scores and rounds are of the README
    grid, radius, thresholds = (int(z["opt/infer_size"]),)*2, int(z["opt/radius"]), {"l": .35, "h": .55}
    small = resize(valid_cam(cam, y), grid)
    close(small, z["out/valid_cam_resized"], 2e-5)
    walked = {k: random_walk(small, affinity, y, t, near_pairs(grid, radius)) for k, t in thresholds.items()}
    for k in thresholds: close(walked[k], z[f"out/aff_cam_{k}_small"], 2e-5)
    refined = refine_in_box(images, resize(walked["l"], images.shape[-2:])[:, None], y, box)
    close(refined[:, 0], z["out/refined_cam_l"], 2e-5)
    label = walk_pseudo_label(images, cam, y, affinity, grid, radius, thresholds["l"], thresholds["h"], box)
    assert (label == z["out/refined_label"]).float().mean() >= .998
