"""Golden vectors of the lattice and the energy loss (area `bilateral`), by the compiled lattice and by its twin in
tensors. Sizes, options and cases come from the files."""
import numpy as np
import pytest
import torch
from golden_files import golden

from wsss_nb.losses.energy import DenseEnergyLoss, dense_energy, plain_energy_loss
from wsss_nb.refine.lattice import TorchLattice, bilateral_filter, build_lattice, extension, image_features

needs_extension = pytest.mark.skipif(extension() is None, reason="the extension was not built")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs_extension)])


def load(path): return {k: torch.as_tensor(v) for k, v in np.load(path).items()}
def off(a, b):
    return float((a-b).abs().max()/b.abs().max().clamp(min=1e-30))   # largest error, of the largest magnitude


def features_of(z):
    if "in/features" in z: return z["in/features"]
    f = image_features(z["in/image"][None].float(), float(z["opt/sigma_rgb"]), float(z["opt/sigma_xy"]))[0]
    assert torch.equal(f, z["out/features"])
    return f


def vertices(lattice, backend):
    "Return vertex keys (M,d), corners (N,D), weights (N,D), neighbours (D,M,2) with -1 for none"
    if backend == "torch":
        nb = lattice.neighbours[..., :-1].transpose(1, 2)
        return lattice.vertex_keys(), lattice.ids.T, lattice.weights.T, torch.where(nb == lattice.num_vertices, -1, nb)
    part, = lattice.parts
    return tuple(torch.as_tensor(np.asarray(a())) for a in (part.vertex_keys, part.offset, part.barycentric,
                                                            part.neighbours))


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "lattice"))
def test_lattice(path, backend):
    z = load(path)
    f = features_of(z)
    lattice = build_lattice(f[None], backend=backend)
    assert lattice.num_vertices == z["out/M"]
    keys, corners, weights, neighbours = vertices(lattice, backend)
    expected = z["out/vertex_keys"].long()
    number = {tuple(k): i for i, k in enumerate(keys.tolist())}
    assert number.keys() == {tuple(k) for k in expected.tolist()}
    # our number of each vertex of the file
    ours = torch.tensor([number[tuple(k)] for k in expected.tolist()])
    theirs = torch.cat([ours.argsort(), torch.tensor([-1])])
    assert torch.equal(theirs[corners.long()], z["out/offset"].long())
    assert torch.equal(theirs[neighbours.long()][:, ours], z["out/neighbors"].long())
    assert torch.equal(weights, z["out/barycentric"])
    filtered = lattice.filter(z["in/values"][None])[0]
    assert off(filtered, z["out/filtered"]) <= 1e-5
    assert torch.equal(filtered, TorchLattice(f[None]).filter(z["in/values"][None])[0])


@pytest.mark.parametrize("path", golden("bilateral", "lattice"))
def test_same_bits_on_a_cpu(path):
    "The twin does the operations of the published code in its order, sorted sums too"
    z = load(path)
    for deterministic in (False, True):
        assert torch.equal(TorchLattice(features_of(z)[None],
                                        deterministic=deterministic).filter(z["in/values"][None])[0], z["out/filtered"])


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "filter_batch"))
def test_filter_batch(path, backend):
    z = load(path)
    filtered = bilateral_filter(z["in/images"], z["in/segmentations"], float(z["opt/sigma_rgb"]),
                                float(z["opt/sigma_xy"]), backend=backend)
    assert off(filtered, z["out/filtered"]) <= 1e-5


def relative(a, b): return abs(float(a)-float(b))/max(abs(float(b)), 1e-30)

def with_grad(leaf, fn, grad_output=1.):
    "Return the value of `fn` at `leaf` and the gradient of grad_output times it"
    leaf = leaf.clone().requires_grad_()
    value = fn(leaf)
    (grad_output*value).backward()
    return value.detach(), leaf.grad


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "energy_function"))
def test_energy_function(path, backend):
    z = load(path)
    images, rois, unlabelled = z["in/images"], z["in/rois"].float(), z["in/unlabel_region"] > 0
    srgb, sxy = float(z["opt/sigma_rgb"]), float(z["opt/sigma_xy"])
    value, grad = with_grad(z["in/segmentations"],
                            lambda p: dense_energy(images, p, rois, unlabelled, srgb, sxy, backend=backend),
                            float(z.get("opt/grad_output", 1)))
    if rois.any(): assert relative(value, z["out/loss"]) <= 1e-5 and off(grad, z["grad/segmentations"]) <= 1e-5
    else: assert value == 0 and not grad.any()
    filtered = bilateral_filter(images, z["in/segmentations"]*rois[:, None], srgb, sxy, backend=backend)
    if "out/AS_ungated" in z: assert off(filtered, z["out/AS_ungated"]) <= 1e-5 if rois.any() else not filtered.any()
    if "out/gate" in z:
        # what `value` is made of
        expected = -(filtered*z["in/segmentations"]*(rois*z["out/gate"])[:, None]).sum(dtype=torch.float64)/len(images)
        assert abs(expected-value) <= 1e-5*abs(expected)


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "energy_layer"))
def test_energy_layer(path, backend):
    z = load(path)
    loss = DenseEnergyLoss(*(float(z[f"opt/{k}"]) for k in ("weight", "sigma_rgb", "sigma_xy", "scale_factor")),
                           backend=backend,
                           recompute_scale_factor=bool(z.get("opt/recompute_scale_factor", False)))
    value, grad = with_grad(z["in/logits"], lambda x: loss(z["in/image_normalised"], x, z["in/label"],
                                                           z.get("in/img_box")), float(z.get("opt/grad_output", 1)))
    assert relative(value, z["out/loss"]) <= 1e-5
    assert off(grad, z["grad/logits"]) <= 1e-4


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "plain_crf_loss"))
def test_plain_loss(path, backend):
    z = load(path)
    weight, srgb, sxy, factor = (float(z[f"opt/{k}"]) for k in ("weight", "sigma_rgb", "sigma_xy", "scale_factor"))
    options = dict(recompute_scale_factor=bool(z.get("opt/recompute_scale_factor", False)), backend=backend)
    value, grad = with_grad(z["in/segmentations"],
                            lambda p: plain_energy_loss(z["in/images"], p, z["in/rois"], weight, srgb, sxy, factor,
                                                        **options), float(z.get("opt/grad_output", 1)))
    assert relative(value, z["out/loss"]) <= 1e-5
    assert off(grad, z["grad/segmentations"]) <= 1e-5
