"Scores against an independent implementation, sharding, and every bad folder one can hand over."
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.scores.confusion import ConfusionMatrix, evaluate_folders, worst_images
from wsss_nb.ground.io import write_label


def random_labels(rng, n, shape=(3, 40, 50), absent=(), ignored=.1):
    "Predictions and masks that agree on about 60 % of the pixels; the classes `absent` have no ground truth"
    present = [k for k in range(n) if k not in absent]
    mask = rng.choice(present, size=shape)
    pred = np.where(rng.random_sample(shape) < .6, mask, rng.randint(n, size=shape))
    return pred.astype(np.uint8), np.where(rng.random_sample(shape) < ignored, IGNORE_INDEX, mask).astype(np.uint8)


# %% Against torchmetrics
@pytest.mark.parametrize("n,absent", [(2, ()), (6, ()), (21, (3, 20)), (81, (0, 7, 80))])
def test_agrees_with_torchmetrics(n, absent):
    import torch
    from torchmetrics import functional as tm
    rng = np.random.RandomState(n)
    pred, mask = random_labels(rng, n, absent=absent)
    ours = ConfusionMatrix(n).add(pred, mask)
    p, m = torch.as_tensor(pred).long(), torch.as_tensor(mask).long()
    options = dict(task="multiclass", num_classes=n, ignore_index=IGNORE_INDEX)
    np.testing.assert_array_equal(ours.counts, tm.confusion_matrix(p, m, **options).numpy())
    theirs = {k: getattr(tm, f)(p, m, average="none", **options).numpy()
              for k, f in dict(iou="jaccard_index", precision="precision", recall="recall").items()}
    for name, values in theirs.items():  # torchmetrics writes 0 where there is nothing to divide by
        mine = getattr(ours, name)
        np.testing.assert_allclose(np.nan_to_num(mine), values, atol=1e-6, err_msg=name)
    occurs = np.isin(np.arange(n), mask)
    np.testing.assert_allclose(ours.miou, theirs["iou"][occurs].mean(), atol=1e-6)
    np.testing.assert_allclose(ours.mean_accuracy, theirs["recall"][occurs].mean(), atol=1e-6)
    np.testing.assert_allclose(ours.pixel_accuracy, tm.accuracy(p, m, average="micro", **options).item(), atol=1e-6)
    assert not np.isin(absent, np.arange(n)[occurs]).any() and np.isnan(ours.recall[list(absent)]).all()


def test_largest_number_of_classes():
    labels = np.arange(255, dtype=np.uint8)
    assert ConfusionMatrix(255).add(labels, labels).miou == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_any_integer_type(dtype):
    pred, mask = np.array([[0, 1], [1, 1]]).astype(dtype), np.array([[0, 1], [0, 1]]).astype(dtype)
    assert ConfusionMatrix(2).add(pred, mask).counts.tolist() == [[1, 1], [0, 2]]


# %% Shards
def test_shards_pool_to_one_matrix():
    pred, mask = random_labels(np.random.RandomState(1), 6, shape=(12, 30, 20))
    whole = ConfusionMatrix(6).add(pred, mask)
    shards = [ConfusionMatrix(6).add(pred[i::3], mask[i::3]) for i in range(3)]
    pooled = shards[2]+shards[0]+shards[1]
    np.testing.assert_array_equal(pooled.counts, whole.counts)
    assert pooled.to_dict() == whole.to_dict()
    assert abs(np.mean([s.miou for s in shards])-whole.miou) > 1e-6, \
        "the mean of shards is another number; if it is equal this test shows nothing"


# %% Folders
CLASSES = ("background", "cat", "dog", "boat")

@pytest.fixture
def folders(tmp_path):
    rng = np.random.RandomState(2)
    for i in range(21):
        pred, mask = random_labels(rng, len(CLASSES), shape=(20+i, 30))
        write_label(tmp_path/"predictions"/f"im_{i:02}.png", pred)
        write_label(tmp_path/"masks"/f"im_{i:02}.png", mask)
    return tmp_path/"predictions", tmp_path/"masks"


def arrays(folders, name): return [np.array(Image.open(f/name)) for f in folders]
def score(folders, **options): return evaluate_folders(*folders, len(CLASSES), CLASSES, **options)


@pytest.mark.parametrize("workers", [1, 2, 5, None])
def test_folders_equal_arrays(folders, workers):
    matrix, records = score(folders, workers=workers)
    names = sorted(p.name for p in folders[1].iterdir())
    expected = ConfusionMatrix(len(CLASSES))
    for name in names: expected.add(*arrays(folders, name))
    np.testing.assert_array_equal(matrix.counts, expected.counts)
    assert [r["id"] for r in records] == [n.removesuffix(".png") for n in names]
    assert records[3]["miou"] == ConfusionMatrix(len(CLASSES)).add(*arrays(folders, names[3])).miou
    assert [r["miou"] for r in worst_images(records, 5)] == sorted(r["miou"] for r in records)[:5]
    json.dumps(records, allow_nan=False)


def test_more_predictions_than_masks(folders):
    write_label(folders[0]/"extra.png", np.zeros((4, 4), np.uint8))
    assert len(score(folders)[1]) == 21


def test_list_of_ids(folders):
    (folders[0]/"im_00.png").unlink()
    assert [r["id"] for r in score(folders, ids=["im_04", "im_02"])[1]] == ["im_04", "im_02"]


def test_greyscale_is_read_like_palette(folders):
    before = score(folders)[0].counts
    label = np.array(Image.open(folders[0]/"im_05.png"))
    Image.fromarray(label).save(folders[0]/"im_05.png")
    np.testing.assert_array_equal(score(folders)[0].counts, before)


def test_undecided_predictions(folders):
    pred, mask = arrays(folders, "im_03.png")
    pred[:4] = IGNORE_INDEX
    write_label(folders[0]/"im_03.png", pred)
    with pytest.raises(UserError, match=r"im_03\.png.*label 255.*drop_ignored_pred"): score(folders)
    matrix, _ = score(folders, drop_ignored_pred=True)
    assert matrix.dropped == (mask[:4] != IGNORE_INDEX).sum() and 0 < 1-matrix.coverage < .05


def shrink(folders): write_label(folders[0]/"im_07.png", np.zeros((26, 30), np.uint8))
def strange_prediction(folders): write_label(folders[0]/"im_07.png", np.full((27, 30), 4, np.uint8))
def strange_mask(folders): write_label(folders[1]/"im_07.png", np.full((27, 30), 9, np.uint8))
def remove(folders): (folders[0]/"im_07.png").unlink()
def not_a_png(folders): (folders[0]/"im_07.png").write_text("hello")
def zero_bytes(folders): (folders[0]/"im_07.png").write_bytes(b"")
def cut_off(folders): (folders[0]/"im_07.png").write_bytes((folders[0]/"im_07.png").read_bytes()[:120])
def colours(folders): Image.open(folders[0]/"im_07.png").convert("RGB").save(folders[0]/"im_07.png")
def empty_predictions(folders): [p.unlink() for p in folders[0].iterdir()]
def empty_masks(folders): [p.unlink() for p in folders[1].iterdir()]
def no_folder(folders): Path(folders[0]).rename(folders[0].parent/"elsewhere")

@pytest.mark.parametrize("damage,words", [
    (shrink, r"im_07\.png: the prediction is 30x26, the ground truth 30x27"),
    (strange_prediction, r"im_07\.png: the prediction holds label 4, the classes are 0…3"),
    (strange_mask, r"the ground truth holds label 9, the classes are 0…3.*masks.im_07\.png"),
    (remove, r"predictions: no prediction for 1 of 21 images, such as im_07\.png"),
    (not_a_png, r"im_07\.png: cannot be decoded"), (zero_bytes, r"im_07\.png: the file is empty"),
    (cut_off, r"im_07\.png: cannot be decoded"),
    (colours, r"im_07\.png: is no label map"), (empty_predictions, "predictions: holds no PNG"),
    (empty_masks, "masks: holds no PNG"), (no_folder, "predictions: no such folder")],
    ids=lambda x: getattr(x, "__name__", ""))
def test_bad_folder_is_one_line(folders, damage, words):
    damage(folders)
    with pytest.raises(UserError, match=words) as e: score(folders)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("ids,words", [([], "empty"), (["im_01", "../masks/im_01"], "no file name"),
                                       (["/etc/hosts"], "no file name"), ([""], "no file name"),
                                       (["im_01", "im_01"], "im_01 is twice"),
                                       (["im_99"], "no ground truth for 1 of 1")])
def test_bad_list_is_one_line(folders, ids, words):
    with pytest.raises(UserError, match=words): score(folders, ids=ids)
