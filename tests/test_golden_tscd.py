"Golden vectors of TSCD's and AFA's parts (area `tscd`): sizes, options and weights come from the files."
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load, params

from wsss_nb.backbones.core import load_matching
from wsss_nb.backbones.mit import MiT, attention_logits, build_backbone
from wsss_nb.core import IGNORE_INDEX
from wsss_nb.losses.affinity import affinity_loss
from wsss_nb.refine.affinity import label_on_grid, near_pairs, pairwise_affinity_label
from wsss_nb.refine.walk import near_affinity, random_walk


@pytest.mark.parametrize("path", golden("tscd", "mit_encoder"))
def test_encoder(path):
    z = load(path)
    names = {"widths": "embed_dims", "heads": "num_heads", "depths": "depths", "reductions": "sr_ratios", "stride": "stride"}
    encoder = MiT(**{k: z[f"opt/{v}"].tolist() for k, v in names.items()}, aux_layer=-1).eval()
    assert not load_matching(encoder, params(z))
    blocks = cases(z, "out/attn")
    assert len(blocks) == sum(encoder.depths)
    out = encoder(z["in/x"], attention=range(len(blocks)))
    for s in range(1, 5): close(out[f"stage{s}"], z[f"out/x{s}"], 2e-5)
    for i, pair in zip(blocks, out["attention"]): close(attention_logits(*pair), z[f"out/attn{i}"], 2e-4)


@pytest.mark.parametrize("path", golden("tscd", "affinity"))
def test_affinity(path):
    z = load(path)
    grid, radius, pred = (int(z["opt/h"]), int(z["opt/w"])), int(z["opt/radius"]), z["in/attn_pred"].clone().requires_grad_()
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
