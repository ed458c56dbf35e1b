"""Golden vectors of IRN (area `irn`): sizes, options and case counts come from the files.

Its CRF on hard labels is in test_golden_crf_of_methods."""
import re

import numpy as np
import pytest
import torch
from golden_files import cases, golden

from wsss_nb.backbones.resnet import ResNet
from wsss_nb.cam.strided import image_pairs, merge_pair, merge_strided, padded_size, scaled_size, strided_size
from wsss_nb.data.pieces import centre_box, cut_box, rescale_rounded, top_left_box
from wsss_nb.labels.confidence import confidence_image, confident, label_of_scores, walk_scores
from wsss_nb.losses.inter_pixel import (
    inter_pixel_losses,
    pair_displacement,
    pair_labels,
    plain_inter_pixel_losses,
    reduce_label,
)
from wsss_nb.methods.resnet_cam import ResNetCAM, load_resnet_cam
from wsss_nb.networks.irnet import IRNet, irnet_state, load_irnet, pair_boundary
from wsss_nb.refine.paths import (
    boundary_walk,
    dense_affinity,
    dense_transition,
    path_affinity,
    path_ends,
    path_index,
    search_paths,
)
from wsss_nb.scores.confusion import ConfusionMatrix


def load(path): return {k: torch.as_tensor(v) if v.dtype.kind != "U" else v for k, v in np.load(path).items()}

def close(a, b, atol=0., rtol=0.):
    assert a.shape == b.shape
    torch.testing.assert_close(a.detach().double(), b.double(), atol=atol, rtol=rtol)

def within(a, b, share):
    "Absolute error at most `share` of the largest magnitude of the array"
    close(a, b, atol=share*b.abs().max().item())

def tensors(z, kind): return {k.removeprefix(f"{kind}/"): v for k, v in z.items() if k.startswith(f"{kind}/")}


# %% CAMs at two sizes
@pytest.mark.parametrize("path", golden("irn", "merge_cams"))
def test_merge_cams(path):
    z = load(path)
    for i in cases(z, "in/size"):
        keys = z[f"in/label{i}"].nonzero()[:, 0]
        assert keys.tolist() == z[f"out/keys{i}"].tolist()
        maps = [z[f"in/cam{i}_s{n}"] for n in range(len(z["opt/scales"]))]
        small, high = merge_strided(maps, z[f"in/size{i}"].tolist(), keys)
        close(small, z[f"out/cam{i}"], 1e-5)
        close(high, z[f"out/high_res{i}"], 1e-5)


@pytest.mark.parametrize("path", golden("irn", "msf_views"))
def test_views(path):
    z = load(path)
    image, scales = z["in/rgb"].numpy(), z["opt/scales"].tolist()
    pairs = list(image_pairs(image, scales))
    assert [list(p.shape[2:]) for p in pairs] == z["out/sizes_hw"].tolist()
    assert [list(scaled_size(image.shape[:2], s)) for s in scales] == z["out/sizes_hw"].tolist()
    (half,) = [p for p, s in zip(pairs, scales) if s == .5]
    close(half, z["out/half_scale"], 1/255/.224+1e-6)  # a grey level
    close(half, z["out/half_scale"], 1e-6)             # the same Pillow: no level at all


# %% Paths and the walk
@pytest.mark.parametrize("path", golden("irn", "search_paths"))
def test_search_paths(path):
    z = np.load(path)
    radii = sorted({int(m[1]) for k in z if (m := re.fullmatch(r"out/r(\d+)/dst", k))})
    assert radii
    for r in radii:
        np.testing.assert_array_equal(path_ends(r), z[f"out/r{r}/dst"])
        groups = search_paths(r)
        assert [g.shape[1] for g in groups] == z[f"out/r{r}/path_lengths"].tolist()
        assert [len(g) for g in groups] == z[f"out/r{r}/paths_per_length"].tolist()
        for g in groups: np.testing.assert_array_equal(g, z[f"out/r{r}/paths_len{g.shape[1]}"])


@pytest.mark.parametrize("path", golden("irn", "path_index"))
def test_path_index(path):
    z = load(path)
    source, ends, paths = path_index(z["opt/size"].tolist(), int(z["opt/radius"]))
    assert torch.equal(source, z["out/src"]) and torch.equal(ends, z["out/dst"])
    for i in cases(z, "out/path"): assert torch.equal(paths[int(i)], z[f"out/path{i}"])
    assert len(paths) == len(cases(z, "out/path"))


@pytest.mark.parametrize("path", [p for p in golden("irn", "affinity") if "label" not in p.id])
def test_affinity(path):
    z = load(path)
    radius, edge = int(z["opt/radius"]), z["in/edge"].clone().requires_grad_()
    sparse = path_affinity(edge, radius)
    close(sparse.flatten(2), z["out/sparse"], 1e-6)
    (sparse.flatten(2)*z["in/w"]).sum().backward()
    within(edge.grad, z["grad/edge"], 1e-6)
    dense = dense_affinity(sparse[0].detach(), tuple(edge.shape[1:]), radius)
    assert torch.equal(dense, dense.T)
    within(dense.sum(1), z["out/dense_rows_sum"], 1e-6)
    n = len(z["out/dense_block"])
    close(dense[:n, :n], z["out/dense_block"], 1e-6)


@pytest.mark.parametrize("path", golden("irn", "transition"))
def test_transition(path):
    z = load(path)
    found = dense_transition(z["in/affinity"], float(z["opt/beta"]), int(z["opt/exp_times"]))
    close(found, z["out/transition"], 2e-4)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("path", golden("irn", "propagate"))
def test_propagate(path, dense):
    z = load(path)
    options = {"out/rw": [int(z[f"opt/{k}"]) for k in ("radius", "beta", "exp_times")]}
    other = re.compile(r"out/rw_radius(\d+)_beta(\d+)_exp(\d+)")
    options |= {k: list(map(int, m.groups())) for k in z if (m := other.fullmatch(k))}
    assert options.keys() == {k for k in z if k.startswith("out/")}
    for k, (radius, beta, times) in options.items():
        within(boundary_walk(z["in/x"], z["in/edge"], radius, beta, times, dense=dense)[:, None], z[k], 5e-4)


# %% Network
def tiny_resnet(p):
    "ResNet with the sizes of published tensors"
    name = "resnet50.layer{}.0.conv1.weight"
    blocks = tuple(len({k.split(".")[2] for k in p if k.startswith(f"resnet50.layer{i}.")}) for i in (1, 2, 3, 4))
    widths = tuple(p[name.format(i)].shape[0] for i in (1, 2, 3, 4))
    return ResNet(blocks, widths, p["resnet50.conv1.weight"].shape[0], 16, "none")

def tiny_irnet(p):
    "IRNet with the sizes of published tensors, and their values"
    net = IRNet(tiny_resnet(p), p["fc_dp7.0.weight"].shape[0])
    assert not load_irnet(net, p)
    return net


@pytest.mark.parametrize("path", golden("irn", "irnet_tiny"))
def test_irnet(path):
    z = load(path)
    p, pair, side = tensors(z, "param"), z["in/pair"], int(z["opt/crop_size"])
    net = tiny_irnet(p).eval()
    assert irnet_state(net).keys() >= p.keys()
    boundary, field = pair_boundary(net, pair, side)
    close(boundary[None], z["out/edge"], 1e-4)
    close(field, z["out/displacement"], 1e-4)
    padded = torch.nn.functional.pad(pair, (0, side-pair.shape[3], 0, side-pair.shape[2]))
    with torch.no_grad():
        edge, field = net(padded)
        features = net.encoder(padded)
    close(edge, z["out/edge_logits_padded"], 1e-4)
    close(field, z["out/displacement_padded"], 1e-4)
    for i in cases(z, "out/stage"): close(features[net.features[int(i)-1]], z[f"out/stage{i}"], 1e-4)


@pytest.mark.parametrize("path", golden("irn", "resnet50_cam_tiny"))
def test_classifier(path):
    z = load(path)
    p, x, y = tensors(z, "param"), z["in/x"], z["in/label"]
    net = ResNetCAM(tiny_resnet(p), p["classifier.weight"].shape[0])
    assert not load_resnet_cam(net, p)
    close(net.train()(x), z["out/logits"], 1e-4)
    ((weight, loss),) = net.training_losses({"input": x, "image_labels": y}, 0).values()
    close(weight*loss, z["out/loss"], 1e-4)
    loss.backward()
    close(merge_pair(net.cam_maps(x), "before"), z["out/cam"], 1e-4)
    grads = {k.replace("resnet50.", "encoder."): g for k, g in tensors(z, "grad/param").items()}
    named = dict(net.named_parameters())
    for k, g in grads.items(): within(named[k].grad, g, 1e-3)
    learning = {k.split(".")[1] for k, v in named.items() if v.grad is not None}
    assert learning == {"layer3", "layer4", "weight"}


# %% Losses
@pytest.mark.parametrize("path", golden("irn", "affinity_labels"))
def test_pair_labels(path):
    z = load(path)
    reduced = reduce_label(z["in/label"], z["out/reduced"].shape[1:])
    assert torch.equal(reduced, z["out/reduced"])
    for kind, name in zip(pair_labels(reduced, int(z["opt/radius"])), ("bg_pos", "fg_pos", "neg")):
        assert torch.equal(kind.flatten(2).float(), z[f"out/{name}"])


@pytest.mark.parametrize("path", golden("irn", "pair_displacement"))
def test_pair_displacement(path):
    z = load(path)
    field = z["in/disp"].clone().requires_grad_()
    pair = pair_displacement(field, int(z["opt/radius"]))
    close(pair.flatten(3), z["out/pair"], 1e-6)
    pair.abs().mean().backward()
    close(field.grad, z["grad/disp"], 1e-6)


@pytest.mark.parametrize("losses", [inter_pixel_losses, plain_inter_pixel_losses])
@pytest.mark.parametrize("path", golden("irn", "irn_loss"))
def test_losses(path, losses):
    z = load(path)
    p, radius = tensors(z, "param"), int(z["opt/radius"])
    np.testing.assert_array_equal(path_ends(radius).T, z["out/disp_target"])
    net = tiny_irnet(p)
    edge, field = net.train()(z["in/img"])
    boundary, labels = edge[:, 0].sigmoid(), reduce_label(z["in/label"], edge.shape[2:])
    terms = losses(boundary, field, labels, radius)
    names = {"pos": "pos_aff", "neg": "neg_aff", "dp_fg": "dp_fg", "dp_bg": "dp_bg"}
    for k, v in terms.items(): close(v, z[f"out/{names[k]}"], rtol=1e-5)
    total = sum(terms.values())/2
    close(total, z["out/total"], rtol=1e-5)
    first = -(path_affinity(boundary, radius)[0, :len(z["out/pos_map_first"])]+1e-5).log().flatten(1)
    within(first, z["out/pos_map_first"], 1e-5)
    total.backward()
    grads, named = tensors(z, "grad/param"), dict(net.named_parameters())
    assert grads.keys() == {k for k in named if not k.startswith("encoder")}
    for k, g in grads.items(): within(named[k].grad, g, 1e-3)
    assert all(v.grad is None for k, v in named.items() if k not in grads)


# %% Labels, masks, pieces, scores
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("path", golden("irn", "sem_seg_label"))
def test_walk_labels(path, dense):
    z = load(path)
    beta, times, radius = (int(z[f"opt/{k}"]) for k in ("beta", "exp_times", "radius"))
    for i in cases(z, "in/size"):
        walked = boundary_walk(z[f"in/cam{i}"], z[f"in/edge{i}"], radius, beta, times, dense)
        scores = walk_scores(walked, z[f"in/size{i}"].tolist(), float(z["opt/bg_thres"]))
        close(scores, z[f"out/score{i}"], 1e-4)
        assert z[f"out/score_keys{i}"].tolist() == [0, *(z[f"in/keys{i}"]+1).tolist()]
        label = label_of_scores(scores, z[f"in/keys{i}"].tolist())
        assert (label == z[f"out/label{i}"].numpy()).mean() >= .995


@pytest.mark.parametrize("path", golden("irn", "gen_mask"))
def test_masks(path):
    z = load(path)
    fraction = float(z["opt/fraction"])
    for i in cases(z, "out/png"):
        found = confidence_image(confident(z[f"in/score{i}"], z[f"in/pred{i}"].numpy(), fraction), rgb=True)
        np.testing.assert_array_equal(found, z[f"out/png{i}"].numpy())
    flat = confident(z["in/score_flat"], z["in/pred_flat"].numpy(), fraction)
    assert flat.sum() == z["out/count_flat"] and flat.ravel()[:int(z["out/count_flat"])].all()


@pytest.mark.parametrize("path", golden("irn", "geometry"))
def test_geometry(path):
    z = np.load(path)
    image, sizes = z["in/rgb"], z["in/sizes"].tolist()
    label = np.ascontiguousarray(image[..., 0])
    assert [list(strided_size(s)) for s in sizes] == z["out/strided4"].tolist()
    assert [list(padded_size(s)) for s in sizes] == z["out/strided_up16"].tolist()
    seen = 0
    for k in z:
        if m := re.fullmatch(r"out/rescale_([\d.]+)(_nearest)?", k):
            found = rescale_rounded(label if m[2] else image, float(m[1]))
        elif m := re.fullmatch(r"out/(top_left|center)_(\d+)", k):
            side, box = int(m[2]), {"top_left": top_left_box, "center": centre_box}[m[1]]
            found = cut_box(image, box(image.shape, side), side)
        else: continue
        np.testing.assert_array_equal(found, z[k])
        seen += 1
    assert seen >= 4
    side, box = int(z["opt/random_crop_size"]), z["opt/box"].tolist()
    np.testing.assert_array_equal(cut_box(image, box, side), z["out/random_crop_img"])
    np.testing.assert_array_equal(cut_box(label, box, side, 255), z["out/random_crop_label"])


@pytest.mark.parametrize("path", golden("irn", "miou"))
def test_miou(path):
    """Truth -1 or 255 does not count. The mean here is over classes that occur or were predicted

    The kit's `miou` is over those that occur; on a whole split the two are the same."""
    z = np.load(path)
    matrix = ConfusionMatrix(len(z["out/confusion"]))
    for pred, truth in zip(z["in/pred"], z["in/gt"]): matrix.add(pred, np.where(truth < 0, 255, truth))
    np.testing.assert_array_equal(matrix.counts, z["out/confusion"])
    np.testing.assert_allclose(matrix.iou, z["out/iou"], atol=1e-6)
    np.testing.assert_allclose(np.nanmean(matrix.iou), z["out/miou"], atol=1e-6)
