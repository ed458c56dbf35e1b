"""The dense CRF beside the package that published numbers were made with, where it is installed: random images,
sizes, parameters, compatibilities, normalisations."""
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsss_nb.refine.crf import CRF_PRESETS, NORMALIZATIONS, crf_guide, crf_settings, dense_crf, label_crf
from wsss_nb.refine.lattice import extension
from wsss_nb.refine.meanfield import mesh_features, unary_from_labels, unary_from_softmax

utils = pytest.importorskip("pydensecrf.utils", reason="the extra `crf` is not installed")
needs_extension = pytest.mark.skipif(extension() is None, reason="the extension was not built")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("lattice", marks=needs_extension)])


def scene(rng):
    "A smooth image with some noise, uint8, and smooth probabilities"
    H, W, K = rng.randint(5, 48), rng.randint(5, 48), rng.choice([2, 3, 5, 21])
    def smooth(n, k): return F.interpolate(torch.tensor(rng.randn(1, n, k, k)), size=(H, W), mode="bilinear")[0]
    image = (128+60*rng.choice([.1, 1.])*smooth(3, 5).permute(1, 2, 0).numpy()
             + rng.choice([0, 3, 12])*rng.randn(H, W, 3)).clip(0, 255).astype(np.uint8)
    return image, (2*smooth(K, 4)).softmax(0).float().numpy()


def close(a, b):
    "Equal to rounding; the few pixels that are on the edge between two classes may magnify it"
    off = np.abs(a-b)
    return np.quantile(off, .99) <= 2e-5 and off.max() <= 1e-3


def compat(rng, K):
    "A Potts weight, a vector or a matrix of costs"
    kind = rng.randint(4)
    return (float(rng.randint(0, 10)) if kind < 2 else (-6*rng.rand(K)).astype(np.float32) if kind == 2
            else -(rng.rand(K, K)+4*np.eye(K)).astype(np.float32))


@each_backend
@pytest.mark.parametrize("seed", range(12))
def test_probabilities(seed, backend):
    rng = np.random.RandomState(seed)
    image, probs = scene(rng)
    s = dict(iters=int(rng.randint(0, 8)), pos_xy_std=tuple(rng.uniform(.5, 5, 2)), pos_w=compat(rng, len(probs)),
             bi_xy_std=tuple(rng.uniform(5, 90, 2)), bi_rgb_std=tuple(rng.uniform(2, 17, 3)),
             bi_w=compat(rng, len(probs)), normalization=NORMALIZATIONS[1+seed % 3],
             crf_image=("raw", "mean_wrapped")[seed % 2], channels=("rgb", "bgr")[seed//2 % 2])
    q, peer = (dense_crf(image, probs, backend=b, **s) for b in (backend, "pydensecrf"))
    assert close(q, peer)
    margin = np.sort(peer, 0)[-1]-np.sort(peer, 0)[-2]
    assert (q.argmax(0) == peer.argmax(0))[margin > 1e-3].all()
    assert (dense_crf(image, probs, backend=backend, as_labels=True, **s) == q.argmax(0)).all()


@each_backend
@pytest.mark.parametrize("preset", CRF_PRESETS)
def test_presets(preset, backend):
    image, probs = scene(np.random.RandomState(99))
    assert close(dense_crf(image, probs, preset=preset, backend=backend),
                 dense_crf(image, probs, preset=preset, backend="pydensecrf"))


@each_backend
def test_without_normalisation(backend):
    "Sums over hundreds of pixels times a weight: rounding is felt"
    image, probs = scene(np.random.RandomState(5))
    options = dict(iters=3, pos_w=.1, bi_w=.05, normalization="none")
    assert (np.abs(dense_crf(image, probs, backend=backend,
                             **options)-dense_crf(image, probs, backend="pydensecrf", **options)).max() <= 1e-3)


@each_backend
def test_labels(backend):
    image, probs = scene(np.random.RandomState(3))
    labels = probs.argmax(0).astype(np.uint8)
    cleaned = label_crf(image, labels, backend=backend)
    assert (cleaned == label_crf(image, labels, backend="pydensecrf")).mean() >= .999 and (cleaned != labels).any()


def test_unaries_and_features():
    rng = np.random.RandomState(0)
    image, probs = scene(rng)
    for options in ({}, {"scale": .7}, {"clip": 1e-3}, {"clip": None}):
        assert (np.abs(unary_from_softmax(probs, **options).numpy()-utils.unary_from_softmax(probs, **options)).max()
                <= 2e-6)
    labels = rng.randint(0, 5, image.shape[:2])
    for n, unsure in ((4, True), (5, False)):
        ours, theirs = unary_from_labels(labels, n, .6, unsure).numpy(), utils.unary_from_labels(labels, n, .6, unsure)
        assert np.abs(ours-theirs).max() <= 1e-6
    def differ(ours, theirs): return np.abs(ours.numpy()-theirs).max()
    bilateral, gaussian = utils.create_pairwise_bilateral, utils.create_pairwise_gaussian
    xy, rgb = (40., 30.), (10., 11., 12.)
    assert differ(mesh_features(image, xy, rgb), bilateral(xy, rgb, image, chdim=2)) <= 1e-6*255
    sxy = (3., 2., 1.)
    assert differ(mesh_features(np.zeros((4, 5, 6)), sxy, (), None), gaussian(sxy, (4, 5, 6))) <= 1e-6
    planes = image.transpose(2, 0, 1)
    assert differ(mesh_features(planes, xy, rgb, 0), bilateral(xy, rgb, planes, chdim=0)) <= 1e-6*255
    guide = crf_guide(image, "mean_wrapped").numpy()
    assert differ(mesh_features(image[..., 0], xy, (9.,), None), bilateral(xy, (9.,), image[..., 0])) <= 1e-6*255
    if np.array([-1.]).astype(np.uint8)[0] == 255:
        # the cast as x86 does it
        assert (guide
                == (image.astype(np.float32)-np.array((122.675, 116.669, 104.008), np.float32)).astype(np.uint8)).all()
    assert crf_settings("psa", 2.).bi_xy_std == (40., 40.)
