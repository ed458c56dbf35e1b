"""The compiled lattice alone: the published numbers, bad input, threads, memory, agreement with pydensecrf.

Sizes and options come from the files."""
import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import golden

ext = pytest.importorskip("wsss_nb._lattice",
                          reason="the extension is not compiled: pip install -e . with a C++ compiler")

each_threads = pytest.mark.parametrize("threads", (1, 2, 3, 7))

def load(path): return dict(np.load(path))
def close(a, b, of_max): assert np.abs(a-b).max() <= of_max*max(np.abs(b).max(), 1e-30)
def scalar_or_list(x): return x.astype(float).tolist()
def image_points(image, sigma_rgb, sigma_xy):
    "Features of an image (3,H,W) as the published filter computes them, (H*W,5)"
    y,x = np.indices(image.shape[1:]).astype(np.float32)
    return np.concatenate([np.stack([x, y])/np.float32(sigma_xy), image/np.float32(sigma_rgb)]).reshape(5, -1).T

# %% Lattice
@each_threads
@pytest.mark.parametrize("path", golden("bilateral", "lattice"))
def test_lattice(path, threads):
    z = load(path)
    features = (z["in/features"] if "in/features" in z
                else image_points(z["in/image"], z["opt/sigma_rgb"], z["opt/sigma_xy"]))
    if "out/features" in z: np.testing.assert_array_equal(features, z["out/features"])
    lattice = ext.Lattice(features, threads=threads)
    assert (lattice.num_points, lattice.dim, lattice.num_vertices) == (*features.shape, z["out/M"])
    np.testing.assert_array_equal(lattice.vertex_keys(), z["out/vertex_keys"])
    np.testing.assert_array_equal(lattice.offset(), z["out/offset"])
    np.testing.assert_array_equal(lattice.neighbours(), z["out/neighbors"])
    np.testing.assert_allclose(lattice.barycentric(), z["out/barycentric"], rtol=0, atol=1e-5)
    close(lattice.filter(z["in/values"], threads=threads), z["out/filtered"], 1e-5)

@each_threads
@pytest.mark.parametrize("path", golden("bilateral", "filter_batch"))
def test_filter_batch(path, threads):
    z = load(path)
    out = ext.bilateral_filter(z["in/images"], z["in/segmentations"], float(z["opt/sigma_rgb"]),
                               float(z["opt/sigma_xy"]), threads=threads)
    close(out, z["out/filtered"], 1e-5)

@pytest.mark.parametrize("d", range(1, 9))
def test_any_dimension(d):
    "Weights sum to one, vertices lie on the lattice, the transpose is the transpose; from a single point on"
    rng = np.random.RandomState(d)
    for n in (1, 2, 3, 5, 64, 131):
        lattice = ext.Lattice(rng.randn(n, d).astype(np.float32)*3, threads=2)
        keys = lattice.vertex_keys()
        assert np.unique(keys, axis=0).shape == keys.shape == (lattice.num_vertices, d)
        assert ((keys-keys[:,:1])%(d+1) == 0).all()
        np.testing.assert_allclose(lattice.barycentric().sum(1), 1, atol=1e-5)
        x,y = rng.rand(2, 3, n).astype(np.float32)
        np.testing.assert_allclose((lattice.filter(x)*y).sum(), (lattice.filter(y, reverse=True)*x).sum(), rtol=1e-4)

def test_wide_codes():
    """Points so far apart that keys do not fit the exact part of the hash table: still each vertex once, with the
    right neighbours"""
    rng = np.random.RandomState(0)
    features = (rng.randint(0, 2, (400, 8))*60+rng.rand(400, 8)).astype(np.float32)
    lattice = ext.Lattice(features)
    keys,neighbours = lattice.vertex_keys(),lattice.neighbours()
    ids = {tuple(k): i for i,k in enumerate(keys)}
    assert len(ids) == lattice.num_vertices
    for j in range(9):
        step = -np.ones(8, int)
        if j < 8: step[j] = 8
        for i,k in enumerate(keys):
            assert neighbours[j,i,0] == ids.get(tuple(k+step), -1)
            assert neighbours[j,i,1] == ids.get(tuple(k-step), -1)

def test_padding_rule():
    "Vertices of the padding point conduct the blur if the number of points is no multiple of 4"
    rng = np.random.RandomState(0)
    features = rng.rand(15, 5).astype(np.float32)
    assert ext.Lattice(features).num_vertices >= ext.Lattice(features, pad_to=0).num_vertices
    padded = ext.Lattice(np.concatenate([features, np.zeros((1, 5), np.float32)]), pad_to=0)
    x = rng.rand(2, 15).astype(np.float32)
    np.testing.assert_array_equal(ext.Lattice(features).filter(x), padded.filter(np.pad(x, ((0, 0), (0, 1))))[:,:15])
    np.testing.assert_array_equal(ext.Lattice(features[:12]).filter(x[:,:12]),
                                  ext.Lattice(features[:12], pad_to=0).filter(x[:,:12]))

@pytest.mark.parametrize("channels", (1, 2, 3, 4, 5, 8, 9, 16, 21, 24, 25, 31, 81))
def test_channels_do_not_mix(channels):
    "All channels together are each channel alone, whatever the rows are padded to"
    rng = np.random.RandomState(channels)
    lattice = ext.Lattice(rng.rand(203, 5).astype(np.float32)*4)
    x = rng.randn(channels, 203).astype(np.float32)
    np.testing.assert_array_equal(lattice.filter(x, threads=2), np.concatenate([lattice.filter(c[None]) for c in x]))

def test_constant_image():
    out = ext.bilateral_filter(np.full((1, 3, 12, 16), 200., np.float32), np.ones((1, 2, 12, 16), np.float32), 15., 50.)
    assert np.isfinite(out).all() and (out > 0).all()

# %% Energy
@each_threads
@pytest.mark.parametrize("path", golden("bilateral", "energy_function"))
def test_energy(path, threads):
    z = load(path)
    probs,rois = z["in/segmentations"],z["in/rois"]
    value,gated = ext.energy(z["in/images"], probs, rois, z["in/unlabel_region"].astype(bool),
                             float(z["opt/sigma_rgb"]), float(z["opt/sigma_xy"]), threads=threads)
    np.testing.assert_allclose(value, float(z["out/loss"][0]), rtol=1e-5)
    close(-2/len(probs)*gated*rois[:,None]*z["opt/grad_output"], z["grad/segmentations"], 1e-5)

def layer(z, images, probs, labels, rois, scale, recompute):
    "The loss layer around `ext.energy`, in a few lines: value and, by autograd, what it needs to go back"
    def resized(x, **kw): return F.interpolate(x, scale_factor=scale, recompute_scale_factor=recompute, **kw)
    small = resized(probs, mode="bilinear", align_corners=False)
    image,roi = resized(images, mode="nearest").numpy(),resized(rois[:,None], mode="nearest")[:,0].numpy()
    free = None if labels is None else resized(labels[:,None].float(), mode="nearest")[:,0].numpy() == 255
    value,gated = ext.energy(image, small.detach().numpy(), roi, free, float(z["opt/sigma_rgb"]),
                             float(z["opt/sigma_xy"])*scale)
    small.backward(torch.from_numpy(-2/len(probs)*gated*roi[:,None]))
    return value

@pytest.mark.parametrize("path", golden("bilateral", "energy_layer"))
def test_energy_layer(path):
    z = load(path)
    mean,std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    logits = torch.from_numpy(z["in/logits"]).requires_grad_()
    rois = torch.zeros(len(logits), *logits.shape[2:])
    for roi,(top,bottom,left,right) in zip(rois, z["in/img_box"]): roi[top:bottom,left:right] = 1
    value = layer(z, torch.from_numpy(z["in/image_normalised"])*std+mean, logits.softmax(1),
                  torch.from_numpy(z["in/label"]), rois,
                  float(z["opt/scale_factor"]), bool(z["opt/recompute_scale_factor"]) or None)
    np.testing.assert_allclose(value*z["opt/weight"], z["out/loss"][0], rtol=1e-5)
    close(logits.grad.numpy()*float(z["opt/weight"])*float(z["opt/grad_output"]), z["grad/logits"], 1e-4)

@pytest.mark.parametrize("path", golden("bilateral", "plain_crf_loss"))
def test_plain_loss(path):
    z = load(path)
    probs = torch.from_numpy(z["in/segmentations"]).requires_grad_()
    value = layer(z, torch.from_numpy(z["in/images"]), probs, None, torch.from_numpy(z["in/rois"]),
                  float(z["opt/scale_factor"]), None)
    np.testing.assert_allclose(value*z["opt/weight"], z["out/loss"][0], rtol=1e-5)
    close(probs.grad.numpy()*float(z["opt/weight"])*float(z.get("opt/grad_output", 1)), z["grad/segmentations"], 1e-5)

@each_threads
@pytest.mark.parametrize("shape", ((2, 5, 6, 10), (1, 21, 34, 140), (1, 1, 2, 2), (3, 81, 8, 64)))
def test_halve_softmax(shape, threads):
    torch.manual_seed(0)
    logits = (torch.randn(shape)*8).requires_grad_()
    halved = F.interpolate(logits.softmax(1), scale_factor=.5, mode="bilinear", align_corners=False)
    grad = torch.randn_like(halved)
    halved.backward(grad)
    np.testing.assert_allclose(ext.halve_softmax(logits.detach().numpy(), threads=threads), halved.detach().numpy(),
                               rtol=0, atol=5e-7)
    np.testing.assert_allclose(ext.halve_softmax_backward(logits.detach().numpy(), grad.numpy(), threads=threads),
                               logits.grad.numpy(), rtol=0, atol=5e-7)
    rois = np.random.RandomState(0).randint(0, 2, (shape[0], shape[2]//2, shape[3]//2)).astype(np.float32)
    masked = ext.halve_softmax_backward(logits.detach().numpy(), grad.numpy()*rois[:,None]*np.float32(-2),
                                        threads=threads)
    np.testing.assert_allclose(ext.halve_softmax_backward(logits.detach().numpy(), grad.numpy(), rois, -2.,
                                                          threads=threads), masked, rtol=0, atol=1e-6)

# %% CRF
def to_unary(p): return -np.log(np.clip(p, 1e-5, 1)).reshape(len(p), -1).astype(np.float32)
def terms_of(z):
    "The terms of a file, Gaussian first"
    terms,norm = [],dict(normalization=int(z.get("opt/normalization", 3)))
    def compat(x): return x.astype(np.float32) if x.ndim else float(x)
    if "opt/gauss_sxy" in z:
        terms.append(dict(kind="gaussian", sxy=scalar_or_list(z["opt/gauss_sxy"]), compat=compat(z["opt/gauss_compat"]))
                     | norm)
    if "opt/bilat_sxy" in z:
        terms.append(dict(kind="bilateral", sxy=scalar_or_list(z["opt/bilat_sxy"]),
                          srgb=scalar_or_list(z["opt/bilat_srgb"]), compat=compat(z["opt/bilat_compat"])) | norm)
    return terms

@each_threads
@pytest.mark.parametrize("path", golden("densecrf", "kernel"))
def test_kernel(path, threads):
    z = load(path)
    for i,kind in enumerate(("NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC")):
        term = dict(sxy=scalar_or_list(z["opt/sxy"]), compat=1., normalization=i)
        if "in/image" in z:
            crf = ext.CRF(*z["in/image"].shape[:2], [term | dict(kind="bilateral", srgb=scalar_or_list(z["opt/srgb"]))],
                          z["in/image"], threads=threads)
        else: crf = ext.CRF(*map(int, z["opt/hw"]), [term | dict(kind="gaussian")], threads=threads)
        by_points = ext.CRF(1, len(z["in/features"].T),
                            [dict(kind="features", features=z["in/features"].T, compat=1., normalization=i)],
                            threads=threads)
        if "out/M" in z: assert crf.num_vertices == by_points.num_vertices == [z["out/M"]]
        for c in (crf, by_points):
            close(c.apply(0, z["in/Q"], threads=threads), z[f"out/apply_{kind}"], 1e-5)
            close(c.apply(0, z["in/Q"], transpose=True, threads=threads), z[f"out/apply_transpose_{kind}"], 1e-5)
            if i == 0: close(c.apply(0, np.ones_like(z["in/Q"][:1])), z["out/raw_filter_of_ones"], 1e-5)

@each_threads
@pytest.mark.parametrize("path", golden("densecrf", "infer"))
def test_infer(path, threads):
    z = load(path)
    image,unary = z["in/image"],to_unary(z["in/prob"])
    crf = ext.CRF(*image.shape[:2], terms_of(z), image, threads=threads)
    for key in (k for k in z if k.startswith("out/Q_")):
        iters = int(key.rpartition("_")[2])
        np.testing.assert_allclose(crf.infer(unary, iters, threads=threads).reshape(z[key].shape), z[key], rtol=0,
                                   atol=1e-5 if iters <= 1 else 1e-4)
    labels = crf.infer(unary, int(z["opt/n_iter"]), threads=threads, labels=True)
    np.testing.assert_array_equal(labels.reshape(z["out/label"].shape), z["out/label"])

@pytest.mark.parametrize("path", golden("densecrf", "infer"))
def test_kl(path):
    "The divergence of the file from `apply`, as densecrf computes it"
    z = load(path)
    image,unary = z["in/image"],to_unary(z["in/prob"])
    terms = terms_of(z)
    crf = ext.CRF(*image.shape[:2], terms, image)
    for t,kl in enumerate(z["out/kl"]):
        q = crf.infer(unary, t).astype(np.float64)
        ours = (q*np.log(np.maximum(q, 1e-20))).sum()+(unary*q).sum()
        for i,term in enumerate(terms):
            o = crf.apply(i, q.astype(np.float32))
            ours += (q*(-term["compat"]*o if np.ndim(term["compat"]) == 0 else term["compat"][:,None]*o)).sum()
        np.testing.assert_allclose(ours, kl, rtol=1e-4)

@pytest.mark.parametrize("path", golden("densecrf", "generic"))
def test_generic(path):
    z = load(path)
    term = dict(kind="features", features=z["out/features"].T, compat=z["opt/compat"],
                normalization=int(z["opt/normalization"]))
    q = ext.CRF(*z["in/image"].shape[:2], [term]).infer(to_unary(z["in/prob"]), int(z["opt/n_iter"]))
    np.testing.assert_allclose(q.reshape(z["out/Q"].shape), z["out/Q"], rtol=0, atol=1e-4)

@each_threads
@pytest.mark.parametrize("path", golden("densecrf", "label_crf"))
def test_label_crf(path, threads):
    z = load(path)
    image = z["in/image"]
    q = ext.CRF(*image.shape[:2], terms_of(z), image).infer(z["out/unary"], int(z["opt/n_iter"]), threads=threads)
    np.testing.assert_allclose(q.reshape(z["out/Q"].shape), z["out/Q"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(q.argmax(0).reshape(z["out/label"].shape), z["out/label"])

@pytest.mark.parametrize("path", golden("densecrf", "unary"))
def test_unary_of_these_tests(path):
    "The other tests start from `to_unary`"
    z = load(path)
    np.testing.assert_allclose(to_unary(z["in/prob"]), z["out/softmax_default"], rtol=0, atol=1e-6)

def scene(height=61, width=83, classes=5, seed=0):
    rng = np.random.RandomState(seed)
    coarse = rng.rand(height//8+1, width//8+1, 3).repeat(8, 0).repeat(8, 1)[:height,:width]
    image = (coarse*200+rng.rand(height, width, 3)*30).astype(np.uint8)
    p = np.exp(rng.randn(classes, height, width)*2)
    return image,to_unary((p/p.sum(0)).astype(np.float32))
PAIR = [dict(kind="gaussian", sxy=3, compat=3), dict(kind="bilateral", sxy=(40, 40), srgb=13, compat=10.)]

def test_no_iterations_is_softmax():
    image,unary = scene()
    np.testing.assert_allclose(ext.CRF(61, 83, PAIR, image).infer(unary, 0),
                               torch.from_numpy(-unary).softmax(0), atol=1e-6)
    np.testing.assert_allclose(ext.CRF(61, 83, []).infer(unary, 5, threads=2),
                               torch.from_numpy(-unary).softmax(0), atol=1e-6)

@pytest.mark.parametrize("classes", (1, 2, 3, 4, 5, 8, 21, 24, 26, 81))
def test_forms_of_compat(classes):
    "Potts w is the vector -w is the matrix -w I, for narrow and wide rows; labels are the largest"
    image,unary = scene(classes=classes)
    def run(compat, **kw): return ext.CRF(61, 83, [t | dict(compat=compat) for t in PAIR], image).infer(unary, 3, **kw)
    q = run(2.)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(run(np.full(classes, -2., np.float32)), q, atol=1e-6)
    np.testing.assert_allclose(run(-2*np.eye(classes, dtype=np.float32)), q, atol=1e-5)
    labels,two = run(2., labels=True),np.sort(q, 0)[-2:]
    sure = two[-1]-two[0] > 1e-6 if classes > 1 else slice(None)
    np.testing.assert_array_equal(labels[sure], q.argmax(0)[sure])

@pytest.mark.parametrize("present", (1, 2, 6))
def test_equal_classes_share_a_channel(present):
    """Classes with the same unaries are worked out once.

    A vector as compat says the same without that, so it shows what comes out otherwise"""
    image,unary = scene(classes=9)
    unary[present:] = np.float32(11.5)
    crf,plain = (ext.CRF(61, 83, [t | dict(compat=c) for t in PAIR], image) for c in (3., np.full(9, -3., np.float32)))
    q = crf.infer(unary, 4, threads=2)
    np.testing.assert_allclose(q, plain.infer(unary, 4), atol=2e-6)
    np.testing.assert_array_equal(q[present:], q[-1:].repeat(9-present, 0))
    np.testing.assert_array_equal(crf.infer(unary, 4, labels=True), plain.infer(unary, 4, labels=True))

def test_remembered_kernels():
    "Gaussian kernels are kept by size, sigma, normalisation and padding; what is remembered changes nothing"
    image,unary = scene()
    def results():
        for sxy in (3, 2, (3, 2)):
            for norm in (3, 1):
                for pad_to in (4, 0):
                    yield ext.CRF(61, 83, [PAIR[0] | dict(sxy=sxy, normalization=norm)], pad_to=pad_to).infer(unary, 2)
    ext.release_memory()
    fresh = list(results())
    for a,b in zip(fresh, results(), strict=True): np.testing.assert_array_equal(a, b)
    ext.release_memory()

@pytest.mark.parametrize("setting", ((3, 3, 30, 13, 10), (1, 1, 60, 5, 4), (3, 3, 30, 3, 4)))
@pytest.mark.parametrize("classes", (3, 21))
def test_pydensecrf(classes, setting):
    dcrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed: pip install -e '.[crf]'")
    sg,wg,sxy,srgb,wb = setting
    image,unary = scene(150, 202, classes)
    peer = dcrf.DenseCRF2D(202, 150, classes)
    peer.setUnaryEnergy(unary)
    peer.addPairwiseGaussian(sxy=sg, compat=wg)
    peer.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=wb)
    theirs = np.array(peer.inference(10))
    crf = ext.CRF(150, 202,
                  [dict(kind="gaussian", sxy=sg, compat=wg), dict(kind="bilateral", sxy=sxy, srgb=srgb, compat=wb)],
                  image)
    ours = crf.infer(unary, 10, threads=2)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= .9999

# %% What goes in
rng = np.random.RandomState(0)
IMAGES,VALUES = rng.rand(2, 3, 9, 11).astype(np.float32)*255,rng.rand(2, 4, 9, 11).astype(np.float32)
POINTS,UNARY = rng.rand(99, 5).astype(np.float32),rng.rand(4, 99).astype(np.float32)
def bilateral(images=IMAGES, values=VALUES, rgb=15., xy=50., **kw):
    return ext.bilateral_filter(images, values, rgb, xy, **kw)
def energy(images=IMAGES, probs=VALUES, rois=np.ones((2, 9, 11), np.float32), free=None, **kw):
    return ext.energy(images, probs, rois, free, 15., 50., **kw)
def crf(term, **kw): return ext.CRF(9, 11, [dict(kind="gaussian", sxy=3, compat=3) | term], **kw)
def with_value(x, value):
    x = x.copy()
    x.flat[x.size//2] = value
    return x

BAD = {
    "images: expected shape": lambda: bilateral(IMAGES[0]),
    "images: expected shape \\(B,3": lambda: bilateral(IMAGES[:,:2]),
    "values: shape": lambda: bilateral(values=VALUES[:1]),
    "values: is empty": lambda: bilateral(values=VALUES[:,:0]),
    "images: is empty": lambda: bilateral(IMAGES[:0], VALUES[:0]),
    "images: expected floats": lambda: bilateral(IMAGES.astype(np.uint8)),
    "images: expected a numpy": lambda: bilateral(IMAGES.tolist()),
    "images: not all": lambda: bilateral(with_value(IMAGES, np.nan)),
    "values: not all": lambda: bilateral(values=with_value(VALUES, np.inf)),
    "sigma_rgb": lambda: bilateral(rgb=0.), "sigma_xy": lambda: bilateral(xy=np.nan),
    "threads": lambda: bilateral(threads=0), "threads: must": lambda: bilateral(threads=-3),
    "pad_to": lambda: bilateral(pad_to=3), "features: a coordinate is too large": lambda: ext.Lattice(POINTS*1e12),
    "features: the points span": lambda: ext.Lattice(rng.rand(50, 8).astype(np.float32)*3e4),
    "features: not all": lambda: ext.Lattice(with_value(POINTS, -np.inf)),
    "features: at most 8": lambda: ext.Lattice(np.zeros((3, 9), np.float32)),
    "features: is empty": lambda: ext.Lattice(POINTS[:,:0]),
    "values: expected shape \\(C,99": lambda: ext.Lattice(POINTS).filter(UNARY[:,:98]),
    "rois: shape": lambda: energy(rois=np.ones((2, 9, 10), np.float32)),
    "probs: not all": lambda: energy(probs=with_value(VALUES, np.nan)),
    "unlabelled: expected uint8": lambda: energy(free=np.ones((2, 9, 11))),
    "unlabelled: shape": lambda: energy(free=np.ones((1, 9, 11), bool)),
    "rois: not all": lambda: energy(rois=with_value(np.ones((2, 9, 11), np.float32), np.nan)),
    "logits: height": lambda: ext.halve_softmax(VALUES),
    "logits: not all": lambda: ext.halve_softmax(with_value(VALUES[:,:,:8,:10], np.nan)),
    "grad: shape": lambda: ext.halve_softmax_backward(VALUES[:,:,:8,:10], VALUES),
    "kind must be": lambda: crf(dict(kind="circle")), "compat: expected": lambda: crf(dict(compat="much")),
    "compat: expected a number, \\(K": lambda: crf(dict(compat=np.ones((2, 3)))),
    "normalization": lambda: crf(dict(normalization=4)),
    "sxy: expected 2": lambda: crf(dict(sxy=(1, 2, 3))), "sxy: must": lambda: crf(dict(sxy=-1)),
    "image: a bilateral": lambda: crf(dict(kind="bilateral", srgb=3)),
    "image: expected uint8": lambda: crf({}, image=np.zeros((9, 11, 3))),
    "image: expected shape": lambda: crf({}, image=np.zeros((11, 9, 3), np.uint8)),
    "unary: expected shape": lambda: crf({}).infer(UNARY[:,1:], 3), "iters": lambda: crf({}).infer(UNARY, -1),
    "unary: not all": lambda: crf({}).infer(with_value(UNARY, np.nan), 1),
    "unary: 4 classes": lambda: crf(dict(compat=np.ones(3, np.float32))).infer(UNARY, 1),
    "term: there are 1": lambda: crf({}).apply(1, UNARY), "terms: expected dicts": lambda: ext.CRF(9, 11, [3]),
    "height, width": lambda: ext.CRF(0, 11, []),
    "\"sxy\" is missing": lambda: ext.CRF(9, 11, [dict(kind="gaussian", compat=1)]),
}

@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message): BAD[message]()

def test_layout_and_type():
    "Slices, transposed and float64 or float16 arrays are copied; the input stays as it was"
    want,before = bilateral(),(IMAGES.copy(), VALUES.copy())
    spread = np.zeros((2, 4, 18, 33), np.float32)
    spread[:,:,::2,::3] = VALUES
    np.testing.assert_array_equal(bilateral(np.asfortranarray(IMAGES), spread[:,:,::2,::3]), want)
    np.testing.assert_array_equal(bilateral(IMAGES.astype(np.float64), VALUES.astype(">f4")), want)
    np.testing.assert_allclose(bilateral(values=VALUES.astype(np.float16)), want, atol=.05)
    flipped = bilateral(IMAGES[:,:,::-1][:,:,::-1], VALUES[...,::-1][...,::-1])
    np.testing.assert_array_equal(flipped, want)
    frozen = VALUES.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(bilateral(values=frozen), want)
    np.testing.assert_array_equal(IMAGES, before[0])
    np.testing.assert_array_equal(VALUES, before[1])

@pytest.mark.parametrize("height,width", ((1, 1), (1, 3), (2, 2), (5, 1), (1, 9), (16, 16), (17, 33)))
def test_small_images(height, width):
    rng = np.random.RandomState(height*width)
    images,values = (rng.rand(1, 3, height, width).astype(np.float32)*255,
                     rng.rand(1, 3, height, width).astype(np.float32))
    lattice = ext.Lattice(image_points(images[0], 15., 50.))
    np.testing.assert_array_equal(ext.bilateral_filter(images, values, 15., 50., threads=3)[0].reshape(3, -1),
                                  lattice.filter(values[0].reshape(3, -1)))
    q = ext.CRF(height, width, PAIR, (rng.rand(height, width, 3)*255).astype(np.uint8),
                threads=3).infer(rng.rand(3, height*width).astype(np.float32), 4, threads=3)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)

# %% Threads, processes, memory
def test_threads_change_nothing():
    """The same bits for any number of threads, for a batch that does not divide evenly, and from several Python
    threads at once"""
    rng = np.random.RandomState(1)
    images,values = rng.rand(3, 3, 70, 90).astype(np.float32)*255,rng.rand(3, 21, 70, 90).astype(np.float32)
    image,unary = scene(90, 131, 21)
    def work(threads):
        rois,free = np.ones((3, 70, 90), np.float32),np.zeros((3, 70, 90), bool)
        return [bilateral(images, values, threads=threads), *energy(images, values, rois, free, threads=threads),
                ext.CRF(90, 131, PAIR, image, threads=threads).infer(unary, 4, threads=threads),
                ext.halve_softmax(values, threads=threads)]
    alone,found = work(1),[None]*3
    for threads in (2, 3, 5, 16):
        for a,b in zip(alone, work(threads), strict=True): np.testing.assert_array_equal(a, b)
    def run(i): found[i] = work(2)
    workers = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for w in workers: w.start()
    for w in workers: w.join()
    for results in found:
        for a,b in zip(alone, results, strict=True): np.testing.assert_array_equal(a, b)

def tasks():
    "Threads of this process; None where that cannot be told"
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None

def test_process_stays_as_it_was():
    before = torch.get_num_threads(),tasks(),os.environ.get("OMP_NUM_THREADS"),threading.active_count()
    bilateral(threads=8)
    assert before == (torch.get_num_threads(), tasks(), os.environ.get("OMP_NUM_THREADS"), threading.active_count())

def in_child(queue): queue.put(float(bilateral(threads=2).sum()))

@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork():
    "A data loader's workers are forked after the parent used the extension"
    want = float(bilateral(threads=2).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=in_child, args=(queue,)) for _ in range(2)]
    for c in children: c.start()
    assert [queue.get(timeout=60) for _ in children] == [want]*2
    for c in children: c.join(60)

def test_plain_kernels():
    "What runs on other processors gives the same filter to the bit and the same CRF to rounding"
    code = ("import numpy as np; from wsss_nb import _lattice as ext; r = np.random.RandomState(0); "
            "i,v = r.rand(1,3,40,50).astype('f')*255, r.rand(1,6,40,50).astype('f');"
            "print(ext.kernels, ext.bilateral_filter(i, v, 15., 50.).tobytes().hex()[:20000]);"
            "t = [dict(kind='gaussian', sxy=3, compat=3), dict(kind='bilateral', sxy=40, srgb=13, compat=5)]; "
            "u = r.rand(6,2000).astype('f')*4;"
            "print(*ext.CRF(40, 50, t, i[0].transpose(1,2,0).astype('u1').copy()).infer(u, 5)[2]); "
            "print(*ext.halve_softmax(v*9)[0,1].ravel())")
    def run(**env):
        return subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True,
                              check=True).stdout.splitlines()
    native,plain = run(),run(WSSS_LATTICE="plain")
    assert plain[0].split()[0] == "plain" and native[0].split()[1] == plain[0].split()[1]
    for a, b in zip(native[1:], plain[1:], strict=True):
        np.testing.assert_allclose(np.fromstring(a, sep=" "), np.fromstring(b, sep=" "), atol=1e-5)

def rss_mb():
    with open("/proc/self/statm") as f: return int(f.read().split()[1])*os.sysconf("SC_PAGE_SIZE")/2**20

@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read the memory from")
def test_no_leak():
    "A thousand calls of every kind, good and bad, leave the process as large as it was after the first hundred"
    image,unary = scene()
    def call():
        bilateral(threads=2)
        energy(free=np.ones((2, 9, 11), bool))
        ext.halve_softmax_backward(VALUES[:,:,:8,:10], VALUES[:,:,:4,:5])
        c = ext.CRF(61, 83, PAIR, image)
        c.infer(unary, 1, labels=True)
        c.apply(0, unary)
        lattice = ext.Lattice(POINTS)
        lattice.filter(UNARY), lattice.neighbours(), lattice.offset()
        with pytest.raises(ValueError): bilateral(values=with_value(VALUES, np.nan))
    for _ in range(100): call()
    gc.collect()
    before = rss_mb()
    for _ in range(1000): call()
    gc.collect()
    assert rss_mb()-before < 4

def test_memory_goes_back():
    "Blocks kept for the next call are bounded, and given back on request"
    ext.bilateral_filter(np.zeros((1, 3, 512, 512), np.float32), np.zeros((1, 21, 512, 512), np.float32), 15., 50.)
    ext.release_memory()
    assert ext.held_bytes() == 0
