"""Golden vectors of CPDGL from the photo to the score (area `cpdgl`): augmentation, CAMs, labels, crops, refinement,
validation, inference. Sizes, options and case counts come from the files."""
import random

import numpy as np
import pytest
import torch
from golden_files import cases, golden
from test_golden_cpdgl import UNUSED, encoder_of, scaled
from test_golden_toco import option
from test_golden_tsd_cam import close, load, params
from torch.nn import functional as F

from wsss_nb.cam.core import cam_to_label, class_activation_map, valid_cam
from wsss_nb.cam.multiscale import multi_scale_cam
from wsss_nb.labels.crops import cut_crops, tagged_corners
from wsss_nb.data.transforms import denormalise, hflip, normalise, random_crop, rescale, varied_crop
from wsss_nb.scores.confusion import ConfusionMatrix, image_f1
from wsss_nb.methods.cpdgl import PRESETS, Config, Network
from wsss_nb.networks.single_stage import SingleStageNet
from wsss_nb.labels.pseudo import make_pseudo_label
from wsss_nb.refine.crf import dense_crf
from wsss_nb.refine.par import pixel_affinity, propagate_affinity
from wsss_nb.networks.decoders import ASPP
from wsss_nb.ground.tensors import resize


def share(a, b): return (a == torch.as_tensor(b)).float().mean().item()


# %% Augmentation
@pytest.mark.parametrize("path", golden("cpdgl", "geom_aug"))
def test_augmentation(path):
    z = np.load(path)
    assert cases(z, "in/image")
    for i in cases(z, "in/image"):
        image, size, seed = z[f"in/image{i}"], int(z[f"opt/crop{i}"]), int(z[f"opt/seed{i}"])
        draw, offsets = random.Random(seed), np.random.RandomState(seed)
        scaled_image = rescale(image, draw.uniform(.5, 2.))
        np.testing.assert_array_equal(scaled_image, z[f"out/scaled{i}"])
        flipped = hflip(scaled_image) if draw.random() > .5 else scaled_image
        np.testing.assert_array_equal(flipped, z[f"out/flipped{i}"])
        crop, box = random_crop(flipped, size, offsets, draw)
        np.testing.assert_array_equal(crop, z[f"out/crop{i}"])
        np.testing.assert_array_equal(box, z[f"out/box{i}"])
        np.testing.assert_allclose(normalise(crop).permute(1, 2, 0), z[f"out/normalised{i}"], rtol=0, atol=1e-6)
        pair = varied_crop(image, z[f"in/label{i}"], size, np.random.RandomState(seed+100), random.Random(seed+100))
        for a, name in zip(pair, ("crop", "label", "box")): np.testing.assert_array_equal(a, z[f"out/pair_{name}{i}"])


# %% CAM, labels, crops
@pytest.mark.parametrize("path", golden("cpdgl", "multi_scale_cam"))
def test_multi_scale_cam(path):
    z = load(path)
    encoder = encoder_of(z)
    for layer, name, head in (("last", "cam", "classifier"), ("aux", "cam_aux", "aux_classifier")):
        def raw(x): return class_activation_map(encoder(x)[layer], params(z)[f"{head}.weight"])
        for suffix, scales in (("", option(z["opt/scales"])), ("_single", (1.,))):
            close(multi_scale_cam(raw, z["in/x"], scales), z[f"out/{name}{suffix}"], 5e-5)


@pytest.mark.parametrize("path", golden("cpdgl", "cam_labels"))
def test_cam_labels(path):
    z = load(path)
    cam, y, box, bg = z["in/cam"], z["in/cls_label"], z["in/img_box"], float(z["opt/bkg_thre"])
    two = dict(low_thresh=float(z["opt/low_thre"]), high_thresh=float(z["opt/high_thre"]))
    def same(a, key): assert torch.equal(a.to(z[f"out/{key}"].dtype), z[f"out/{key}"]), key
    same(valid_cam(cam, y), "valid_cam")
    same(cam_to_label(cam, y, box=box, **two), "label_mid")
    same(cam_to_label(cam, y, bg, box=box), "label_nomid")
    same(cam_to_label(cam, y, bg), "label_nobox")
    same(cam_to_label(cam, y, box=box, unsure=-1, **two), "roi_mask")
    same(cam_to_label(resize(cam, z["out/label_small"].shape[-2:]), y, box=box, **two), "label_small")


@pytest.mark.parametrize("path", golden("cpdgl", "assign_tags"))
def test_tagged_crops(path):
    z = load(path)
    n, size = int(z["opt/crop_num"]), int(z["opt/crop_size"])
    state = torch.get_rng_state()
    corners, tags = tagged_corners(z["in/roi_mask"].long(), n, size, float(z["opt/threshold"]))
    assert torch.equal(tags, z["out/flags"].long()) and torch.equal(corners, z["out/crop_topleft"].long())
    crops = cut_crops(z["in/images"], corners, size)
    for i in cases(z, "out/crop"): assert torch.equal(crops[:, int(i)], z[f"out/crop{i}"])
    assert len(cases(z, "out/crop")) == n and torch.equal(torch.get_rng_state(), state)


# %% Refinement
@pytest.mark.parametrize("path", golden("cpdgl", "par"))
def test_par(path):
    z = load(path)
    dilations = option(z["opt/dilations"])
    masks = F.interpolate(z["in/masks"], size=z["in/imgs"].shape[-2:], mode="bilinear", align_corners=True)
    affinity = pixel_affinity(z["in/imgs"], dilations, float(z["opt/w1"]), float(z["opt/w2"]))
    close(propagate_affinity(masks, affinity, dilations, int(z["opt/num_iter"])), z["out/refined"], 1e-5)


@pytest.mark.parametrize("path", golden("cpdgl", "refine_labels"))
def test_refine_labels(path):
    z = load(path)
    image = denormalise(z["in/x_normalised"])
    assert torch.equal(image, z["out/denorm_uint8"].to(torch.uint8))
    close(image/255, z["out/denorm"], 1e-6)
    label = make_pseudo_label(image/255, z["in/cams"], z["in/cls_label"], float(z["opt/low_thre"]),
                              float(z["opt/high_thre"]), z["in/img_box"],
                              down_scale=int(z["opt/down_scale"]), dilations=option(z["opt/dilations"]),
                              num_iter=int(z["opt/num_iter"]))
    assert share(label, z["out/refined_label"].long()) >= .995


# %% Validation and inference
@pytest.mark.parametrize("path", golden("cpdgl", "validation"))
def test_validation(path):
    "As `quick_validation`: a square image, one pass; CAMs with the true image-level labels"
    z = load(path)
    p = {k: v for k, v in params(z).items() if not UNUSED.match(k)}
    net = SingleStageNet(encoder_of(z), len(p["classifier.weight"]), decoder="aspp")
    net.load_state_dict(p)
    scores, f1 = {k: ConfusionMatrix(len(p["decoder.c0.bias"])) for k in ("Seg_Pred", "CAM", "aux_CAM")}, []
    for i in cases(z, "in/x"):
        y, mask = z[f"in/cls_label{i}"], z[f"in/label{i}"][0].numpy()
        x = resize(z[f"in/x{i}"], (int(z["opt/crop_size"]),)*2)
        with torch.no_grad(): out = net(x)
        def labels(layer):
            return cam_to_label(resize(multi_scale_cam(lambda x: net.raw_cam(x, layer), x, option(z["opt/cam_scales"])),
                                       mask.shape), y, float(z["opt/bkg_thre"]))[0]
        maps = {"Seg_Pred": resize(out["seg_logits"], mask.shape).argmax(1)[0], "CAM": labels("last"),
                "aux_CAM": labels("aux")}
        for k, name in (("Seg_Pred", "seg_pred"), ("CAM", "cam_pred"), ("aux_CAM", "cam_aux_pred")):
            assert share(maps[k], z[f"out/{name}{i}"].long()) >= .999, k
            scores[k].add(maps[k].numpy(), mask)
        f1.append(image_f1(out["cls_logits"] > 0, y))
    for k, matrix in scores.items(): assert abs(matrix.miou-float(z[f"out/miou_{k}"])) <= 1e-4
    assert abs(np.mean(f1)-float(z["out/cls_score"])) <= 1e-6


@pytest.mark.parametrize("preset", ["voc", "coco"])
@pytest.mark.parametrize("path", golden("cpdgl", "seg_inference"))
def test_inference(path, preset, monkeypatch):
    "By the rules that the presets name"
    z = load(path)
    decoder = {k.removeprefix("decoder."): v for k, v in params(z).items() if k.startswith("decoder.")}
    rules = ({k: v for k, v in PRESETS[preset].items() if k in ("infer_size", "infer_direct", "crf")}
             | {"infer_scales": option(z["opt/scales"])})
    if preset == "voc": rules["infer_size"] = int(z["opt/voc_base"])
    monkeypatch.setattr("wsss_nb.methods.core.create_backbone", lambda *_, **__: encoder_of(z))
    net = Network(Config(**rules, proj_hidden=8, queue_len=48), tuple(map(str, range(len(decoder["c0.bias"])))))
    net.decoder = ASPP(net.encoder.channels["last"], len(decoder["c0.bias"]))
    net.decoder.load_state_dict(decoder)
    logits = net.eval().segmentation(z["in/x"])
    scaled(logits, z[f"out/{preset}_logits"], 1e-4)
    assert share(logits.argmax(1)[0], z[f"out/{preset}_pred"].long()) >= .999
    prob = logits.softmax(1)[0]
    close(prob, z[f"out/{preset}_prob"], 1e-4)
    matrix = ConfusionMatrix(len(prob)).add(logits.argmax(1).numpy(), z["in/label"].numpy())
    assert abs(matrix.miou-float(z[f"out/{preset}_miou"])) <= 1e-4
    label = dense_crf(z["in/image_uint8"], prob, preset=net.config.crf, as_labels=True)
    assert share(label, z[f"out/{preset}_crf_pred"].long()) >= .995


@pytest.mark.parametrize("path", golden("cpdgl", "eval_scores"))
def test_scores(path):
    z = dict(np.load(path))
    n = int(z["opt/num_classes"])
    def scored(kind, **options):
        return sum((ConfusionMatrix(n).add(z[f"in/{kind}{i}"], z[f"in/gt{i}"], **options)
                    for i in cases(z, f"in/{kind}")), ConfusionMatrix(n))
    def same(a, key): np.testing.assert_allclose(a, z[f"out/{key}"], rtol=1e-12, atol=1e-12, equal_nan=True)
    m = scored("pred")
    np.testing.assert_array_equal(m.counts, z["out/hist"])
    for value, key in ((m.iou, "iou"), (m.precision, "precision"), (m.recall, "recall"), (m.miou, "miou"),
                       (m.pixel_accuracy, "pAcc"), (m.mean_accuracy, "mAcc")):
        same(value, key)
    hits, called = m.counts.diagonal(), m.counts.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"): same((called-hits)/hits, "confusion")
    pseudo = scored("pseudo", drop_ignored_pred=True)
    same(pseudo.iou, "pseudo_iou")
    same(pseudo.miou, "pseudo_miou")
    same([image_f1(p, t) for p, t in zip(z["in/y_pred"], z["in/y_true"], strict=True)], "f1")
