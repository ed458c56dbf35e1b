"""Golden vectors of the energy loss and the CRF as the methods use them (areas `tsd_cam`, `tscd`, `cpdgl`, `i2crc`,
`irn`, `beco`, `ktse`), by every backend. Sizes and options come from the files."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import cases, golden
from torch.nn import functional as F

from wsss_nb.losses.energy import dense_energy_loss, exact_filter
from wsss_nb.refine.crf import CRF_PRESETS, cam_crf_label, cam_probs, crf_guide, dense_crf, label_crf
from wsss_nb.refine.lattice import bilateral_filter, extension
from wsss_nb.refine.meanfield import unary_from_labels

no_extension = pytest.mark.skipif(extension() is None, reason="the extension was not built")
each_lattice = pytest.mark.parametrize("backend", ["torch", pytest.param("cpp", marks=no_extension)])
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("lattice", marks=no_extension)])


def load(path): return {k: torch.as_tensor(v) for k, v in np.load(path).items()}
def off(a, b):
    return float((a-b).abs().max()/b.abs().max().clamp(min=1e-30))   # largest error, of the largest magnitude
def equal_share(a, b): return float((a == b.reshape(a.shape)).float().mean())
def near(a, b, atol): assert (a-b.reshape(a.shape)).abs().max() <= atol, float((a-b.reshape(a.shape)).abs().max())
def same_labels(label, q, expected):
    "Equal wherever the two most probable classes of `q` (K,H,W) are told apart by more than rounding"
    top = q.topk(2, dim=0).values
    assert torch.equal(*(x[top[0]-top[1] > 1e-3].long() for x in (label, expected)))
def numbers(x): return [float(v) for v in x]


def energy(z, images, logits, label, box, backend, recompute, grad, loss, factor="opt/scale_factor"):
    "Compare loss and gradient with the file's; return both errors, relative"
    leaf = z[logits].clone().requires_grad_()
    value = dense_energy_loss(z[images], leaf, z[label], z[box],
                              *(float(z[f"opt/{k}"]) for k in ("weight", "sigma_rgb", "sigma_xy")), float(z[factor]),
                              recompute, backend=backend)
    value.backward()
    return abs(float(value.detach())-float(z[loss]))/max(abs(float(z[loss])), 1e-30), off(leaf.grad, z[grad])


# %% Energy loss
@each_lattice
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_energy"))
def test_toco_energy(path, backend):
    z = load(path)
    for i in cases(z, "in/img"):
        loss, grad = energy(z, f"in/img{i}", f"in/logit{i}", f"in/label{i}", f"in/img_box{i}", backend, True,
                            f"grad/logit{i}", f"out/loss{i}", f"opt/scale_factor{i}")
        assert loss <= 1e-4 and grad <= 1e-3, (i, loss, grad)
    filtered = bilateral_filter(z["in/filter_image"][None], z["in/filter_values"][None],
                                float(z["opt/filter_sigma_rgb"]), float(z["opt/filter_sigma_xy"]), backend=backend)
    assert off(filtered[0], z["out/filter"]) <= 1e-4


@each_lattice
@pytest.mark.parametrize("path", golden("tscd", "dense_energy_loss"))
def test_tscd_energy(path, backend):
    z = load(path)
    loss, grad = energy(z, "in/img", "in/logits", "in/label", "in/img_box", backend, False, "grad/logits", "out/loss")
    assert loss <= 1e-4 and grad <= 1e-3
    wide = float(z["opt/filter_sigma_rgb"]), float(z["opt/filter_sigma_xy"])
    for sigmas, key in ((wide, "out/filter_values"), (numbers(z["opt/filter_narrow"]), "out/filter_values_narrow")):
        near(bilateral_filter(z["in/filter_image"], z["in/filter_values"], *sigmas, backend=backend), z[key], 5e-5)


def sum_over_pairs(images, values, sigma_rgb, sigma_xy):
    "The sum of TSCD 4.4 as it is written, in float64"
    B,_,H,W = values.shape
    y,x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    place = torch.stack([y, x]).flatten(1).double().T/sigma_xy
    f = torch.cat([place.expand(B, -1, -1), images.double().flatten(2).mT/sigma_rgb], -1)
    weights = (-.5*(f[:,:,None]-f[:,None]).square().sum(-1)).exp()
    return (values.double().flatten(2) @ weights).unflatten(2, (H,W)).float()

@pytest.mark.parametrize("path", golden("tscd", "dense_energy_loss"))
def test_tscd_exact_energy(path):
    "The exact sums are what is written; the lattice of the recorded run gives about half of them; the loss follows"
    z = load(path)
    sigmas = float(z["opt/filter_sigma_rgb"]), float(z["opt/filter_sigma_xy"])
    exact = exact_filter(z["in/filter_image"], z["in/filter_values"], *sigmas)
    near(exact, sum_over_pairs(z["in/filter_image"], z["in/filter_values"], *sigmas), 1e-3)
    assert .35 < float(z["out/filter_values"].sum()/exact.sum()) < .6
    leaf = z["in/logits"].clone().requires_grad_()
    options = (float(z[f"opt/{k}"]) for k in ("weight", "sigma_rgb", "sigma_xy", "scale_factor"))
    value = dense_energy_loss(z["in/img"], leaf, z["in/label"], z["in/img_box"], *options, kernel="exact")
    value.backward()
    assert .35 < float(z["out/loss"])/value.item() < .6
    cosine = torch.nn.functional.cosine_similarity(leaf.grad.flatten(), z["grad/logits"].flatten(), 0)
    assert cosine > .95, cosine


@each_lattice
@pytest.mark.parametrize("path", golden("cpdgl", "energy_loss"))
def test_cpdgl_energy(path, backend):
    "The released code has the filter switched off: a loss of 0, which is weight 0 here"
    z = load(path)
    loss, grad = energy(z, "in/x_normalised", "in/logits", "in/label", "in/img_box", backend, True,
                        "grad/filtered_logits", "out/filtered_loss")
    assert loss <= 1e-4 and grad <= 1e-4
    leaf = z["in/logits"].clone().requires_grad_()
    released = dense_energy_loss(z["in/x_normalised"], leaf, z["in/label"], z["in/img_box"], weight=0, backend=backend)
    released.backward()
    assert released == float(z["out/released_loss"]) and torch.equal(leaf.grad, z["grad/released_logits"])
    filtered = bilateral_filter(z["in/filter_image"], z["in/filter_values"], float(z["opt/filter_sigma_rgb"]),
                                float(z["opt/filter_sigma_xy"]), backend=backend)
    assert off(filtered, z["out/filter_result"]) <= 1e-4


# %% Dense CRF
POSW_FIRST = ("iters", "pos_w", "pos_xy_std", "bi_w", "bi_xy_std", "bi_rgb_std")
POSXY_FIRST = ("iters", "pos_xy_std", "pos_w", "bi_w", "bi_xy_std", "bi_rgb_std")

def set_of(values, names):
    "Return the settings of `dense_crf` that the numbers of a file mean"
    s = dict(zip(names, numbers(values), strict=True))
    return s | {"iters": int(s["iters"])}


@each_backend
@pytest.mark.parametrize("path", golden("tsd_cam", "toco_crf"))
def test_toco_crf(path, backend):
    z = load(path)
    image, probs = z["in/image"], z["in/prob"]
    keys = [k for k in z if re.match(r"out/q_.*(?<!_iter1)$", k)]
    assert keys
    for key in keys:
        name = key.removeprefix("out/q_")
        s = set_of(z[f"opt/iter_posw_posxy_biw_bixy_birgb_{name}"], POSW_FIRST)
        for iters, k in ((s["iters"], key), (1, f"{key}_iter1")):
            if k not in z: continue
            q = dense_crf(image, probs, **s | {"iters": iters}, backend=backend)
            near(q, z[k], 1e-3)
            assert equal_share(q.argmax(0), z[k].argmax(0)) >= .999
    label = cam_crf_label(image, z["in/cam"], z["in/keys"].tolist(), float(z["opt/bkg_thre_l"]),
                          float(z["opt/bkg_thre_h"]), backend=backend)
    assert equal_share(label, z["out/cam_crf_label"]) >= .999


@each_backend
@pytest.mark.parametrize("path", golden("tscd", "crf"))
def test_tscd_crf(path, backend):
    z = load(path)
    image, probs = z["in/image"], z["in/prob"]
    s = set_of(z["opt/final"], POSXY_FIRST)
    near(dense_crf(image, probs, **s, backend=backend), z["out/final_Q"], 1e-3)
    near(dense_crf(image, probs, **s | {"iters": 1}, backend=backend), z["out/final_Q_iter1"], 1e-5)
    near(dense_crf(image, probs, **s | {"iters": 1, "bi_w": 0}, backend=backend), z["out/final_Q_gauss_only"], 1e-5)
    near(dense_crf(image, probs, preset="psa", backend=backend), z["out/psa_Q"], 1e-3)
    assert equal_share(label_crf(image, z["in/label"], range(len(probs)), backend=backend), z["out/label_crf"]) >= .998


@each_backend
@pytest.mark.parametrize("path", golden("cpdgl", "crf"))
def test_cpdgl_crf(path, backend):
    z = load(path)
    image, probs = z["in/image"], z["in/prob"]
    for name in [k.removeprefix("out/").removesuffix("_label") for k in z if re.match(r"out/\w+_label$", k)
                 and f"{k.removesuffix('_label')}_q" in z]:
        s = ({k: float(z[f"opt/{name}_{k}"]) for k in ("pos_xy_std", "pos_w", "bi_xy_std", "bi_rgb_std", "bi_w")}
             | {"iters": int(z[f"opt/{name}_iter_max"])})
        near(dense_crf(image, probs, **s, backend=backend), z[f"out/{name}_q"], 1e-3)
        assert (equal_share(dense_crf(image, probs, **s, backend=backend, as_labels=True), z[f"out/{name}_label"])
                >= .995)
    q = dense_crf(image, probs, int(z["opt/crf_inference_t"]), preset="psa",
                  scale_factor=float(z["opt/crf_inference_scale_factor"]), backend=backend)
    near(q, z["out/crf_inference_q"], 1e-3)
    assert equal_share(label_crf(image, z["in/hard_label"], backend=backend), z["out/crf_label"]) >= .995


@each_backend
@pytest.mark.parametrize("path", golden("i2crc", "seg_crf"))
def test_i2crc_crf(path, backend):
    z = load(path)
    image = z["in/image_bgr_uint8"].flip(-1)
    probs = F.interpolate(z["in/logits"][None], size=image.shape[:2], mode="bilinear",
                          align_corners=False).softmax(1)[0]
    near(probs, z["out/prob"], 1e-6)
    assert torch.equal(crf_guide(image, "mean_wrapped", "bgr"), z["out/wrapped_image"])
    for kind in ("wrapped", "raw"):
        options = dict(iters=int(z["opt/n_iter"]), preset="i2crc",
                       crf_image={"wrapped": "mean_wrapped"}.get(kind, kind), backend=backend)
        near(dense_crf(image, probs, **options), z[f"out/Q_{kind}"], 1e-4)
        same_labels(dense_crf(image, probs, as_labels=True, **options), z[f"out/Q_{kind}"], z[f"out/label_{kind}"])


@each_backend
@pytest.mark.parametrize("path", golden("beco", "crf_post"))
def test_beco_crf(path, backend):
    z = load(path)
    image = z["in/rgb"]
    probs = F.interpolate(z["in/logits"][None], size=image.shape[:2], mode="bilinear",
                          align_corners=False).softmax(1)[0]
    near(probs[:, ::3, ::3], z["out/prob"], 1e-6)
    same_labels(probs.argmax(0), probs, z["out/label_softmax"])
    assert torch.equal(crf_guide(image, "mean_wrapped"), z["out/image_wrapped"])
    s = ({k: float(z[f"opt/{k}"]) for k in ("pos_xy_std", "pos_w", "bi_xy_std", "bi_rgb_std", "bi_w")}
         | {"iters": int(z["opt/iter"])})
    q = dense_crf(image, probs, preset="beco", backend=backend, **s)
    near(q[:len(z["out/q_wrapped"])], z["out/q_wrapped"], 1e-3)
    same_labels(q.argmax(0), q, z["out/label_crf_wrapped"])
    plain = dense_crf(image, probs, preset="beco", crf_image="raw", backend=backend, **s)
    same_labels(plain.argmax(0), plain, z["out/label_crf_plain"])


@each_backend
@pytest.mark.parametrize("path", golden("ktse", "crf_alpha"))
def test_ktse_crf(path, backend):
    z = load(path)
    alphas = [int(m[1]) for k in z if (m := re.fullmatch(r"out/q_a(\d+)", k))]
    assert alphas
    for alpha in alphas:
        assert [0, *(z["in/keys"]+1).tolist()] == z[f"out/keys_a{alpha}"].tolist()
        near(dense_crf(z["in/rgb"], cam_probs(z["in/cams"], alpha), preset="cam_alpha", backend=backend),
             z[f"out/q_a{alpha}"], 1e-3)


@each_backend
@pytest.mark.parametrize("path", golden("irn", "crf_label"))
def test_irn_crf(path, backend):
    z = load(path)
    n, gt_prob = int(z["opt/n_labels"]), float(z["opt/gt_prob"])
    near(unary_from_labels(z["in/labels"], n, gt_prob, zero_unsure=False)[:, 0], z["out/unary_first_col"], 1e-6)
    assert (equal_share(label_crf(z["in/rgb"], z["in/labels"], range(n), gt_prob, iters=int(z["opt/t"]),
                                  backend=backend), z["out/labels"]) >= .999)


@each_backend
@pytest.mark.parametrize("path", golden("irn", "ir_label"))
def test_irn_labels(path, backend):
    z = load(path)
    for i in cases(z, "in/rgb"):
        label = cam_crf_label(z[f"in/rgb{i}"], z[f"in/high_res{i}"], z[f"in/keys{i}"].tolist(),
                              float(z["opt/conf_bg_thres"]), float(z["opt/conf_fg_thres"]), hard=True, backend=backend)
        assert equal_share(label, z[f"out/label{i}"]) >= .995


@pytest.mark.parametrize("preset,area,family,key,order", [
    ("tsd_cam_voc", "tsd_cam", "toco_crf", "opt/iter_posw_posxy_biw_bixy_birgb_tsd_voc", POSW_FIRST),
    ("toco", "tsd_cam", "toco_crf", "opt/iter_posw_posxy_biw_bixy_birgb_toco", POSW_FIRST),
    ("cam_label", "tsd_cam", "toco_crf", "opt/iter_posw_posxy_biw_bixy_birgb_cam_label", POSW_FIRST),
    ("tscd", "tscd", "crf", "opt/final", POSXY_FIRST)])
def test_presets_are_those_of_the_files(preset, area, family, key, order):
    "In the repository's copy; another set has other options"
    settings = np.load(Path(__file__).parent/"golden"/area/f"{family}.npz")[key]
    assert [getattr(CRF_PRESETS[preset], k) for k in order] == numbers(settings)
