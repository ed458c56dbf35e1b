"""Golden vectors of what TSCD shares with other methods (area `tscd`): labels, losses, refinement, data, schedule,
scores. Sizes and options come from the files."""
import numpy as np
import pytest
import torch
from golden_files import cases, golden
from test_golden_tsd_cam import close, load
from torch.nn import functional as F

from wsss_nb.cam.core import cam_to_label, ignore_outside, valid_cam
from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.data.transforms import crop_at, denormalise, hflip, normalise, rescale, resize_short, resize_to
from wsss_nb.scores.confusion import ConfusionMatrix, image_f1
from wsss_nb.losses.segment import balanced_seg_loss
from wsss_nb.labels.pseudo import make_pseudo_label
from wsss_nb.refine.par import neighbours, par
from wsss_nb.run.loop import Schedule
from wsss_nb.run.schedules import lr_factor


def alike(label, expected, differ=.002): assert (label == expected.long()).float().mean() >= 1-differ


@pytest.mark.parametrize("path", golden("tscd", "cam_to_label"))
def test_cam_to_label(path):
    z = load(path)
    cam, y, box, bg = z["in/cam"], z["in/cls_label"], z["in/img_box"], float(z["opt/bkg_score"])
    assert z["opt/ignore_index"] == IGNORE_INDEX
    def same(a, key): assert torch.equal(a.long(), z[f"out/{key}"].long()), key
    plain = cam_to_label(cam, y, bg)
    same(plain, "label_nobox")
    assert torch.equal(valid_cam(cam, y), z["out/valid_cam"])
    same(cam_to_label(cam, y, bg, box=box), "label_box")
    same(cam_to_label(cam, y, low_thresh=float(z["opt/low_thre"]), high_thresh=float(z["opt/high_thre"]), box=box),
         "label_box_ignoremid")
    same(ignore_outside(plain, box), "ignore_img_box")


@pytest.mark.parametrize("path", golden("tscd", "seg_cls_loss"))
def test_losses(path):
    z = load(path)
    assert z["opt/ignore_index"] == IGNORE_INDEX
    logits, label = z["in/logits"].clone().requires_grad_(), z["in/label"]
    for empty_ok in (True, False):
        logits.grad = None
        loss = balanced_seg_loss(logits, label, empty_ok)
        loss.backward()
        close(loss, z["out/loss"], 2e-6)
        close(logits.grad, z["grad/logits"], 2e-6)
    known = label != IGNORE_INDEX
    for name, changed in {"nofg": torch.where(known, 0, label), "nobg": torch.where(known, label.clamp(min=1), label),
                          "allignore": torch.full_like(label, IGNORE_INDEX)}.items():
        close(balanced_seg_loss(logits, changed, empty_ok=False), z[f"out/loss_{name}"], 2e-6)
        assert balanced_seg_loss(logits, changed).isfinite()
    scores = z["in/cls_logits"].clone().requires_grad_()
    loss = F.multilabel_soft_margin_loss(scores, z["in/cls_labels"])
    loss.backward()
    close(loss, z["out/cls_loss"], 2e-6)
    close(scores.grad, z["grad/cls_logits"], 2e-6)


@pytest.mark.parametrize("path", golden("tscd", "refine_varm_par"))
def test_varm_and_par(path):
    z = load(path)
    dilations = z["opt/dilations"].tolist()
    stored = z["out/neighbors"]
    close(torch.stack(list(neighbours(z["in/imgs"], dilations)), 2)[:stored.shape[0], :stored.shape[1]], stored, 2e-5)
    for key, kernel in {"varm": "aprm", "par": "par"}.items():
        for n, name in ((int(z["opt/num_iter"]), key), (1, f"{key}_iter1")):
            close(par(z["in/imgs"], z["in/masks"], dilations, n, kernel), z[f"out/{name}"], 2e-5)


@pytest.mark.parametrize("path", golden("tscd", "refine_cams_with_bkg"))
def test_pseudo_label(path):
    z = load(path)
    images = denormalise(z["in/inputs"])/255
    assert torch.equal(images, z["out/inputs_denorm"]) and z["opt/ignore_index"] == IGNORE_INDEX
    for key, kernel in {"varm": "aprm", "par": "par"}.items():
        label = make_pseudo_label(images, z["in/cams"], z["in/cls_labels"], float(z["opt/low_thre"]),
                                  float(z["opt/high_thre"]), z["in/img_box"], down_scale=int(z["opt/down_scale"]),
                                  dilations=z["opt/dilations"].tolist(), num_iter=int(z["opt/num_iter"]), kernel=kernel)
        alike(label, z[f"out/refined_label_{key}"])


@pytest.mark.parametrize("path", golden("tscd", "transforms"))
def test_transforms(path):
    z = np.load(path)
    image, size = z["in/image"], int(z["opt/crop_size"])
    def grey(ours, theirs): assert ours.shape == theirs.shape and np.abs(ours.astype(float)-theirs).max() <= 1
    def hwc(x): return x.permute(1, 2, 0)
    close(hwc(normalise(image)), z["out/normalized"], 1e-6)
    scaled = rescale(image, float(z["opt/ratio"]))
    for ours, key in ((scaled, "scaled"), (scaled, "rescaled_image"), (hflip(scaled), "flipped"),
                      (resize_short(image, min(z["out/resize_short"].shape[:2])), "resize_short")):
        grey(ours, z[f"out/{key}"])
    np.testing.assert_array_equal(resize_to(z["in/label"], z["out/rescaled_label"].shape), z["out/rescaled_label"])
    exact = z["out/scaled"].astype(np.uint8)
    crop, box = crop_at(exact, size, z["opt/pad_hw"].tolist(), z["opt/start_hw"].tolist())
    np.testing.assert_array_equal(crop, z["out/crop"])
    # the reference's ends may lie beyond the crop
    np.testing.assert_array_equal(np.minimum(box, size), np.minimum(z["out/img_box"], size))
    assert torch.equal(normalise(crop, grey_levels=True), torch.as_tensor(z["out/crop_normalized_chw"]))  # bit for bit
    assert torch.equal(denormalise(torch.as_tensor(z["out/crop_normalized_chw"]))[None]/255,
                       torch.as_tensor(z["out/denorm"]))
    h, w = z["opt/small_hw"]
    crop, box = crop_at(image[:h, :w], size, z["opt/small_pad_hw"].tolist(), (0, 0))
    np.testing.assert_array_equal(crop, z["out/small_crop"])
    np.testing.assert_array_equal(box, z["out/small_img_box"])


@pytest.mark.parametrize("path", golden("tscd", "lr_schedule_adamw"))
def test_schedule(path):
    z = load(path)
    weights = [torch.nn.Parameter(p.clone()) for p in z["in/params"]]
    groups = [{"params": [w], "lr": lr, "weight_decay": wd}
              for w, lr, wd in zip(weights, z["opt/base_lr"].tolist(), z["opt/weight_decay"].tolist())]
    optimizer = torch.optim.AdamW(groups, betas=(.9, .999), eps=1e-8)
    options = int(z["opt/max_iter"]), int(z["opt/warmup_iter"]), float(z["opt/warmup_ratio"]), float(z["opt/power"])
    schedule = Schedule(optimizer, *options)
    for step, grads in enumerate(z["in/grads"]):
        schedule.set(step)
        close(torch.tensor([g["lr"] for g in optimizer.param_groups]), z["out/lr"][step], rtol=1e-5)
        for w, g in zip(weights, grads): w.grad = g.clone()
        optimizer.step()
        close(torch.stack([w.detach() for w in weights]), z["out/params"][step], 2e-6)
    close(torch.tensor([6e-5*lr_factor(int(t), 20_000, 1500, 1e-6, 1.) for t in z["opt/full_steps"]]),
          z["out/full_lr"], rtol=1e-5)


@pytest.mark.parametrize("path", golden("tscd", "evaluate"))
def test_scores(path):
    z = dict(np.load(path))
    def near(a, key): np.testing.assert_allclose(a, z[f"out/{key}"], rtol=0, atol=1e-6, equal_nan=True)
    def pooled(kind, **options):
        return sum((ConfusionMatrix(int(z["opt/num_classes"])).add(z[f"in/{kind}{i}"], z[f"in/gt{i}"], **options)
                    for i in cases(z, f"in/{kind}")), ConfusionMatrix(int(z["opt/num_classes"])))
    assert len(cases(z, "in/gt")) == z["opt/n"]
    matrix, pseudo = pooled("pred"), pooled("pseudo", drop_ignored_pred=True)
    for value, key in (
        (matrix.pixel_accuracy, "pAcc"),
        (matrix.mean_accuracy, "mAcc"),
        (matrix.miou, "miou"),
        (matrix.iou, "iou"),
        (pseudo.miou, "pseudo_miou"),
        (pseudo.iou, "pseudo_iou"),
    ):
        near(value, key)
    near([image_f1(p, t) for p, t in zip(z["in/y_pred"], z["in/y_true"], strict=True)], "f1")
