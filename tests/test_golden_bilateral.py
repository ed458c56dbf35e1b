"Golden vectors of the lattice and the energy loss (area `bilateral`), by the compiled lattice and by its twin in tensors. Sizes, options and cases come from the files."
import numpy as np
import pytest
import torch
from golden_files import golden

from wsss_nb.refine.lattice import TorchLattice, bilateral_filter, build_lattice, extension, image_features

each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=pytest.mark.skipif(extension() is None, reason="the extension was not built"))])


def load(path): return {k: torch.as_tensor(v) for k, v in np.load(path).items()}
def off(a, b): return float((a-b).abs().max()/b.abs().max().clamp(min=1e-30))   # largest error, of the largest magnitude


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
    return tuple(torch.as_tensor(np.asarray(a())) for a in (part.vertex_keys, part.offset, part.barycentric, part.neighbours))


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
    ours = torch.tensor([number[tuple(k)] for k in expected.tolist()])             # our number of each vertex of the file
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
        assert torch.equal(TorchLattice(features_of(z)[None], deterministic=deterministic).filter(z["in/values"][None])[0], z["out/filtered"])


@each_backend
@pytest.mark.parametrize("path", golden("bilateral", "filter_batch"))
def test_filter_batch(path, backend):
    z = load(path)
    filtered = bilateral_filter(z["in/images"], z["in/segmentations"], float(z["opt/sigma_rgb"]), float(z["opt/sigma_xy"]), backend=backend)
    assert off(filtered, z["out/filtered"]) <= 1e-5
