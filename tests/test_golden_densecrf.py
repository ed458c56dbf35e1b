"""Golden vectors of the dense CRF (area `densecrf`), by the compiled lattice and by its twin in tensors.

Sizes, options and cases come from the files."""
import re

import numpy as np
import pytest
import torch
from golden_files import golden

from wsss_nb.refine.lattice import extension, grid_features, image_features
from wsss_nb.refine.meanfield import (CRF, NORMALIZATIONS, Kernel, Term, mesh_features, unary_from_labels,
                                      unary_from_softmax)

needs_extension = pytest.mark.skipif(extension() is None, reason="the extension was not built")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=needs_extension)])


def load(path): return {k: torch.as_tensor(v) for k, v in np.load(path).items()}
def off(a, b):
    return float((a-b).abs().max()/b.abs().max().clamp(min=1e-30))   # largest error, of the largest magnitude
def plain(x): return x if x.ndim else float(x)                                   # a number, vector or matrix
def sigma(x):
    return tuple(x.tolist()) if x.ndim else float(x)                   # one standard deviation, or one per axis


def same_labels(label, q, expected):
    "Equal wherever the two most probable classes of `q` (K,N) are told apart by more than rounding"
    top = q.topk(2, dim=0).values
    assert torch.equal(*(x.flatten()[top[0]-top[1] > 1e-3].long() for x in (label, expected)))


def terms_of(z):
    "Return the terms that a file has options for, Gaussian first"
    kind = int(z.get("opt/normalization", 3))
    terms = ([Term(plain(z["opt/gauss_compat"]), sigma(z["opt/gauss_sxy"]), None, None, kind)]
             if "opt/gauss_sxy" in z else [])
    return (terms
            + ([Term(plain(z["opt/bilat_compat"]), sigma(z["opt/bilat_sxy"]), sigma(z["opt/bilat_srgb"]), None, kind)]
               if "opt/bilat_sxy" in z else []))


@pytest.mark.parametrize("path", golden("densecrf", "unary"))
def test_unary(path):
    z = load(path)
    def close(a, key): assert (a-z[f"out/{key}"]).abs().max() <= 1e-6, key
    close(unary_from_softmax(z["in/prob"]), "softmax_default")
    close(unary_from_softmax(z["in/prob"], scale=float(z["opt/scale"])), "softmax_scale")
    close(unary_from_softmax(z["in/prob"], clip=float(z["opt/clip"])), "softmax_clip")
    close(unary_from_softmax(z["in/prob64"], clip=None), "softmax64_noclip")
    n, gt = int(z["opt/n_labels"]), float(z["opt/gt_prob"])
    close(unary_from_labels(z["in/labels"], n, gt, zero_unsure=False), "labels")
    close(unary_from_labels(z["in/labels_unsure"], n, gt), "labels_zero_unsure")


@each_backend
@pytest.mark.parametrize("path", golden("densecrf", "kernel"))
def test_kernel(path, backend):
    z = load(path)
    image = z.get("in/image")
    size = tuple(image.shape[:2]) if image is not None else tuple(z["opt/hw"].tolist())
    srgb = sigma(z["opt/srgb"]) if "opt/srgb" in z else None
    features = (grid_features(size, sigma(z["opt/sxy"])) if srgb is None
                else image_features(image.permute(2, 0, 1)[None], srgb, sigma(z["opt/sxy"]))[0])
    assert torch.allclose(features.T, z["in/features"], atol=1e-6)
    for name in [k.removeprefix("out/apply_") for k in z if k.startswith("out/apply_") and "transpose" not in k]:
        kind = {"NO_NORMALIZATION": "none"}.get(name, name.removeprefix("NORMALIZE_").lower())
        crf = CRF(size, [Term(1., sigma(z["opt/sxy"]), srgb, None, kind),
                         Term(1., features=features, normalization=NORMALIZATIONS.index(kind))], image, backend=backend)
        kernel = Kernel(features, kind, backend=backend)
        assert kernel.lattice.num_vertices == z["out/M"] and crf.num_vertices == [z["out/M"]]*2
        assert off(kernel.raw, z["out/raw_filter_of_ones"]) <= 1e-5
        for transpose in (False, True):
            expected = z[f"out/apply_{'transpose_'*transpose}{name}"]
            assert off(kernel(z["in/Q"], transpose), expected) <= 1e-5, (name, transpose)
            for i in (0, 1): assert off(crf.apply(i, z["in/Q"], transpose), expected) <= 1e-5, (name, transpose, i)


@each_backend
@pytest.mark.parametrize("path", golden("densecrf", "infer"))
def test_infer(path, backend):
    z = load(path)
    K, H, W = z["in/prob"].shape
    unary, crf = unary_from_softmax(z["in/prob"]), CRF((H, W), terms_of(z), z["in/image"], backend=backend)
    named = {int(m[1]): v.reshape(K, -1) for k, v in z.items() if (m := re.fullmatch(r"out/Q_(\d+)", k))}
    assert named
    for t, expected in named.items():
        assert ((crf.infer(unary, t)-expected).abs().max() <= (1e-5 if t <= 1 and "opt/normalization" not in z
                                                               else 1e-4)), t
    for t, q in enumerate(crf.rounds(unary, int(z["opt/n_iter"]))):
        if t in named: assert (q-named[t]).abs().max() <= 1e-4, t
        if "out/kl" in z: assert abs(crf.kl(unary, q)-float(z["out/kl"][t])) <= 1e-4*abs(float(z["out/kl"][t])), t
    last = int(z["opt/n_iter"])
    same_labels(crf.labels(unary, last), named.get(last, q), z["out/label"])


@each_backend
@pytest.mark.parametrize("path", golden("densecrf", "label_crf"))
def test_label_crf(path, backend):
    z = load(path)
    H, W = z["in/labels"].shape
    unary = unary_from_labels(z["in/labels"], int(z["opt/n_labels"]), float(z["opt/gt_prob"]),
                              bool(z.get("opt/zero_unsure", True)))
    assert (unary-z["out/unary"]).abs().max() <= 1e-6
    crf = CRF((H, W), terms_of(z), z["in/image"], backend=backend)
    q = crf.infer(unary, int(z["opt/n_iter"]))
    assert (q-z["out/Q"].reshape(q.shape)).abs().max() <= 1e-4
    same_labels(crf.labels(unary, int(z["opt/n_iter"])), z["out/Q"].flatten(1), z["out/label"])


@each_backend
@pytest.mark.parametrize("path", golden("densecrf", "generic"))
def test_generic(path, backend):
    z = load(path)
    features = mesh_features(z["in/image"], z["opt/sdims"], z["opt/schan"])
    assert (features-z["out/features"]).abs().max() <= 1e-6*z["out/features"].abs().max().clamp(min=1)
    term = Term(plain(z["opt/compat"]), features=features.T, normalization=int(z.get("opt/normalization", 3)))
    q = CRF(z["in/image"].shape[:2], [term], z["in/image"],
            backend=backend).infer(unary_from_softmax(z["in/prob"]), int(z["opt/n_iter"]))
    assert (q-z["out/Q"].reshape(q.shape)).abs().max() <= 1e-4
