"""What users really have: masks of 0 and 255, photos that EXIF turns, logits for probabilities, endings of any kind

Each kind was reported in public; the right value is what is asserted here, or one line that says what to do."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import STAGED, TINY
from PIL import Image

from wsss_nb.data.check import check_dataset, finding_lines
from wsss_nb.data.datasets import open_dataset
from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.ground.io import as_stored, read_image, read_label, write_image, write_label
from wsss_nb.refine.crf import cam_crf_label, dense_crf, label_crf
from wsss_nb.scores.confusion import evaluate_folders
from wsss_nb.use.experiment import list_images, load_run, predict_files, run_method

SIDE = 64


def photo(seed=0, size=(SIDE, SIDE)):
    "Return a dark picture with a bright square"
    pixels = np.random.RandomState(seed).randint(0, 80, (*size, 3)).astype(np.uint8)
    pixels[size[0]//4:3*size[0]//4, size[1]//4:3*size[1]//4] = (200, 60+10*(seed % 5), 40)
    return pixels


def mask(value=1, size=(SIDE, SIDE)):
    "Return the label map of the square, a quarter of the picture"
    label = np.zeros(size, np.uint8)
    label[size[0]//4:3*size[0]//4, size[1]//4:3*size[1]//4] = value
    return label


def dataset(root, classes=("background", "crack"), labels=None, masks=mask, ending="png", train=6, val=3):
    "Write a small folder in VOC layout; `masks` makes a mask, `labels` are those of all images"
    root = Path(root)
    (root/"ImageSets"/"Segmentation").mkdir(parents=True)
    (root/"classes.txt").write_text("\n".join(classes)+"\n")
    rows, k = ["image,labels"], 0
    for split, n in (("train", train), ("val", val)):
        for i in range(n):
            write_image(root/"JPEGImages"/f"{split}{i}.{ending}", photo(k))
            write_label(root/"SegmentationClass"/f"{split}{i}.png", masks())
            rows.append(f"{split}{i},{classes[1+k % (len(classes)-1)] if labels is None else labels}")
            k += 1
        (root/"ImageSets"/"Segmentation"/f"{split}.txt").write_text("".join(f"{split}{i}\n" for i in range(n)))
    (root/"labels.csv").write_text("\n".join(rows)+"\n")
    return root


# what is said of labels that are the same everywhere
ALL_ALIKE = "data: every image of 'train' has the same labels, so there is nothing to tell apart; "
def said(root): return "\n".join(finding_lines(check_dataset(root, 1), show=50))
def result(out): return json.loads((Path(out)/"result.json").read_text())


# %% A class without pixels
def halves():
    label = np.ones((SIDE, SIDE), np.uint8)
    label[:, SIDE//2:] = 2
    return label


ABSENT = {"no background": halves, "no object": lambda: mask(0), "one class of two": mask,
          "only the last": lambda: mask(0)+2,
          "all ignored but a class": lambda: np.where(halves() == 2, IGNORE_INDEX, 1).astype(np.uint8)}


@pytest.mark.trouble(
    "A class has no score, or `nan` stood in a table",
    "No mask of the split shows this class: it is left out of the mean, and named under it",
    "Nothing; or score images that show it (`wsss-eval --list`)",
)
@pytest.mark.parametrize("kind", ABSENT)
def test_scores_survive_absent_classes(call, here, kind):
    "A run ends with scores of the classes that are there, and can be evaluated again"
    classes = ("background", "water", "forest")
    dataset("data", classes, "water forest", lambda: ABSENT[kind]().clip(0, IGNORE_INDEX))
    status, _, err = call("wsss-run", "baseline", "--data", "data", "--out", "run", *TINY)
    assert status == 0 and err.startswith(ALL_ALIKE) and err.count("\n") == 1
    there = {classes[k] for k in np.unique(ABSENT[kind]()) if k < len(classes)}
    first = result("run")
    assert there <= first["iou"]["prediction"].keys()
    wanted = np.mean([first["iou"]["prediction"][c] for c in there])
    assert first["miou"]["prediction"] == pytest.approx(wanted) and Path("run/report/index.html").exists()
    assert call("wsss-run", "baseline", "--data", "data", "--out", "run", "--stages", "evaluate")[0] == 0
    assert result("run")["miou"] == first["miou"]
    unsure = ["--ignore-unsure"] if IGNORE_INDEX in ABSENT[kind]() else []
    status, out, _ = call("wsss-eval", *["data/SegmentationClass"]*2, "--classes", "data/classes.txt", *unsure,
                          "--json", "s.json")
    assert status == 0 and json.loads(Path("s.json").read_text())["miou"] == 1
    for c in {*classes}-there: assert f"{c}" in out.split("without a pixel of ground truth")[1]


def test_scores_survive_absent_classes_in_stages(call, here):
    dataset("data", ("background", "water", "forest"), "water forest", halves)
    status, _, err = call("wsss-run", "i2crc", "--data", "data", "--out", "run", *STAGED["i2crc"], "saliency=none")
    assert status == 0 and err.startswith(ALL_ALIKE) and err.count("\n") == 1
    assert {"water", "forest"} <= result("run")["iou"]["prediction"].keys()


# %% Masks of 0 and 255
@pytest.fixture
def binary(here):
    "A dataset with such masks; predictions: nothing found, right as 0/1, right as 0/255; ground truth of both kinds"
    dataset("data", masks=lambda: mask(255))
    made = {"none": mask(0), "right01": mask(), "right255": mask(255), "gt01": mask(), "gt255": mask(255)}
    for folder, label in made.items():
        for i in range(3): write_label(here/folder/f"val{i}.png", label)
    return here


@pytest.mark.trouble(
    "`wsss-eval` refuses masks, or everything was 100 %",
    "Binary masks saved as 0 and 255; 255 means *not scored*",
    "`wsss-data to-voc masks FOLDER --map 255=1`",
)
@pytest.mark.parametrize("options", [(), ("--ignore-unsure",)])
@pytest.mark.parametrize("prediction,truth,named", [
    ("none", "gt255", "gt255"), ("right01", "gt255", "gt255"), ("right255", "gt01", "right255"),
    ("right255", "gt255", "gt255")])
def test_masks_of_0_and_255_are_refused(fails, binary, prediction, truth, named, options):
    line = fails("wsss-eval", prediction, truth, "--classes", "data/classes.txt", *options)
    assert f"wsss-data to-voc masks {named} --map 255=1" in line and "--ignore-unsure" not in line
    assert evaluate_folders("none", "gt01", 2)[0].miou == .375  # (1-1/4 + 0)/2: the truth of it


def test_masks_of_0_and_255_can_be_converted(call, binary):
    assert call("wsss-data", "to-voc", "masks", "gt255", "--map", "255=1", "--workers", "1")[0] == 0
    assert evaluate_folders("none", "gt255", 2)[0].miou == .375 and evaluate_folders("right01", "gt255", 2)[0].miou == 1
    assert (read_label(binary/"gt255_as_found"/"val0.png") == mask(255)).all()
    assert "--map 255=1" in said("data")
    assert call("wsss-data", "to-voc", "masks", "data", "--map", "255=1", "--workers", "1")[0] == 0
    found = check_dataset("data", 1)
    assert not found.problems and [f"{f.file}: {f.what}; " for f in found.notes] == [ALL_ALIKE]


def test_check_finds_masks_of_0_and_255(call, binary):
    status, out, _ = call("wsss-data", "check", "data", "--workers", "1")
    assert status == 1 and "hold nothing but 0 and 255" in out and "wsss-data to-voc masks data --map 255=1" in out


@pytest.mark.trouble(
    "A run says that 255 is read as your class",
    "The data has one class, and its masks are 0 and 255",
    "`wsss-data to-voc masks DATA --map 255=1`, to have it for good",
)
def test_a_run_reads_255_as_the_only_class(call, binary):
    status, _, err = call("wsss-run", "baseline", "--data", "data", "--out", "run", *TINY)
    assert status == 0 and "255 is read as crack" in err
    assert call("wsss-data", "to-voc", "masks", "data", "--map", "255=1", "--workers", "1")[0] == 0
    before = result("run")
    assert call("wsss-run", "baseline", "--data", "data", "--out", "run", "--stages", "evaluate")[0] == 0
    assert result("run")["iou"] == before["iou"] and "crack" in before["iou"]["prediction"]


def test_with_several_classes_255_is_refused_before_training(fails, here):
    dataset("data", ("background", "crack", "rust"), masks=lambda: mask(255))
    assert "--map 255=NUMBER" in fails("wsss-run", "baseline", "--data", "data", "--out", "run", *TINY)
    assert not Path("run").exists()


def test_ignored_pixels_stay_ignored(here):
    "Where a mask shows the class, or the labels deny it, 255 is what it always was"
    root = dataset("data", masks=lambda: mask(255))
    write_label(root/"SegmentationClass"/"train0.png", mask())
    assert (open_dataset(root, "val", masks=True)[0].mask == mask(255)).all()
    root = dataset("denied", labels="", masks=lambda: mask(255), train=0)
    assert (open_dataset(root, "val", masks=True)[0].mask == mask(255)).all()


@pytest.mark.trouble(
    "`check` names a class that no mask shows",
    "Labels claim a class whose number is in no mask: other numbers, or another order of `classes.txt`",
    "`wsss-data to-voc masks DATA --map OLD=NEW`, or mend `classes.txt`",
)
def test_a_class_that_no_mask_shows_is_named(here):
    root = dataset("data", ("background", "crack", "rust"))
    assert "no mask shows rust, which the image-level labels name" in said(root)


# %% Probabilities that are none
P = np.where(mask() == 1, .95, .05).astype(np.float32)
TWO = np.stack([1-P, P])
LOGITS = np.stack([np.where(mask() == 1, 2., 6.), np.where(mask() == 1, 5., 3.)]).astype(np.float32)
REFUSED = {"one channel": (P[None], "one channel"), "no channel": (P, "an array (64, 64)"),
           "positive logits": (LOGITS, "from 2 to 6"),
           "bytes": ((TWO*255).round().astype(np.uint8), "from 13 to 242"), "percent": (TWO*100, "--scale 100"),
           "NaN": (np.where(np.eye(SIDE, dtype=bool), np.nan, TWO).astype(np.float32), "holds NaN or infinite numbers"),
           "zeros": (0*TWO, "all values are 0"),
           "channels last": (TWO.transpose(1, 2, 0), "save (K,H,W)")}
READ = {"half": TWO.astype(np.float16), "fortran": np.asfortranarray(TWO.astype(np.float64)),
        "big-endian": TWO.astype(">f4"),
        "big double": TWO.astype(">f8"), "batch": TWO[None], "three": np.stack([1-P, P*.9, P*.1]),
        "logits below 0": LOGITS-4}


def crf(call, array, *options):
    "Give an array to `wsss-crf`; return status, the label map or None, and what was said"
    for folder in ("images", "arrays"): Path(folder).mkdir(exist_ok=True)
    write_image("images/a.png", photo())
    np.save("arrays/a.npy", array)
    status, _, err = call("wsss-crf", "images", "arrays", "--out", "out", *options)
    return status, read_label("out/a.png") if Path("out/a.png").exists() else None, err


@pytest.mark.trouble(
    "`wsss-crf` refuses an array and names its range",
    "Logits, bytes or percent where probabilities in 0…1 are wanted, or one channel",
    "`wsss-crf … --logits`, `--scale 255`, `--scale 100`",
)
@pytest.mark.parametrize("kind", REFUSED)
def test_no_probabilities(call, here, kind):
    array, words = REFUSED[kind]
    status, label, err = crf(call, array)
    assert status == 1 and label is None and words in err and err.startswith("wsss-crf: arrays/a.npy: ")


@pytest.mark.parametrize("kind", READ)
def test_any_layout_of_probabilities(call, here, kind):
    status, label, err = crf(call, READ[kind])
    assert (status, err) == (0, "") and (label == mask()).mean() > .99


@pytest.mark.parametrize("array,options", [(LOGITS, ("--logits",)), (TWO*255, ("--scale", "255")),
                                           (TWO*100, ("--scale", "100")),
                                           ((TWO*255).round().astype(np.uint8), ("--scale", "255"))])
def test_those_who_mean_it(call, here, array, options):
    status, label, err = crf(call, array, *options)
    assert (status, err) == (0, "") and (label == mask()).mean() > .99


def test_scale_makes_sense(fails, here):
    for folder in ("images", "arrays"): Path(folder).mkdir()
    write_image("images/a.png", photo())
    np.save("arrays/a.npy", TWO)
    for wrong, words in ((("--scale", "0"), "positive number"), (("--scale", "2", "--logits"), "one of the two")):
        assert words in fails("wsss-crf", "images", "arrays", "--out", "out", *wrong)


@pytest.mark.parametrize("kind", ["one channel", "positive logits", "percent", "NaN", "zeros"])
def test_dense_crf_refuses_the_same(kind):
    with pytest.raises(ValueError, match="one channel|values run from|NaN|all values are 0"):
        dense_crf(photo(), REFUSED[kind][0])


# %% EXIF
def turned(path, upright, orientation):
    "Store a picture as a camera does that was held otherwise"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(as_stored(upright, orientation))).save(path, exif=exif, quality=95)


@pytest.fixture(params=[(SIDE, SIDE), (80, 60)], ids=["square", "oblong"])
def phone(here, request):
    "Photos that are bright above, stored in each of the eight ways, with masks drawn upright"
    root, size = dataset("data", train=8, val=8), request.param
    bright = np.full((*size, 3), 20, np.uint8)
    bright[:size[0]//3] = (220, 30, 30)
    for split in ("train", "val"):
        for k in range(8):
            (root/"JPEGImages"/f"{split}{k}.png").unlink()
            turned(root/"JPEGImages"/f"{split}{k}.jpg", bright, k+1)
            write_label(root/"SegmentationClass"/f"{split}{k}.png", (bright[..., 0] > 99).astype(np.uint8))
    return root


def overlap(item):
    red = item.image[..., 0] > 120
    return (red & (item.mask == 1)).sum()/(red | (item.mask == 1)).sum()


@pytest.mark.trouble(
    "IoU near 0 on photos of a phone; `check` names EXIF",
    "The photo is stored sideways, its mask was drawn on the upright one",
    "`wsss-data upright DATA`",
)
def test_masks_lie_on_photos_that_exif_turns(phone):
    assert min(map(overlap, open_dataset(phone, "val", masks=True))) > .9
    assert said(phone).count("EXIF orientation") == 14  # all but orientation 1


def test_photos_are_made_upright(call, phone):
    assert call("wsss-data", "upright", phone, "--workers", "1")[0] == 0
    items = list(open_dataset(phone, "val", masks=True))
    assert min(map(overlap, items)) > .9 and "EXIF" not in said(phone)
    assert all((o.image[:10, :, 0] > 120).all() for o in items)
    assert len(list((phone/"JPEGImages_as_found").iterdir())) == 14
    assert "none is stored turned" in call("wsss-data", "upright", phone, "--workers", "1")[1]


def test_a_mask_of_the_turned_size_names_exif(fails, here):
    write_label(here/"pred"/"a.png", np.zeros((4, 6), int))
    write_label(here/"gt"/"a.png", np.zeros((6, 4), int))
    (here/"classes.txt").write_text("background\ncrack\n")
    assert "EXIF" in fails("wsss-eval", "pred", "gt", "--classes", "classes.txt")
    root = dataset("data")
    write_label(root/"SegmentationClass"/"val0.png", np.zeros((SIDE, 60), int))
    write_image(root/"JPEGImages"/"val0.png", photo(0, (60, SIDE)))
    with pytest.raises(UserError, match="EXIF"): open_dataset(root, "val", masks=True)[0]


# %% Python as README shows it
def test_calls_take_strings_and_paths(trained, scenes, here):
    out, _ = trained
    network = load_run(str(out))
    files = sorted((scenes/"JPEGImages").glob("val_*.png"))[:2]
    for n, given in enumerate(([str(f) for f in files], files, tuple(files), files[0], str(files[0]))):
        made = predict_files(network, given, out=f"p{n}", overlays=True)
        assert [p.name for p in made] == [f.name for f in files][:len(made)]
        assert Path(f"p{n}/{files[0].stem}_overlay.png").exists()
        assert list_images(given) == ([Path(given)] if isinstance(given, str | Path) else files)
    matrix, _ = evaluate_folders(Path("p0"), str(scenes/"SegmentationClass"), 6, ids=(f.stem for f in files))
    assert matrix.counts.sum() == 2*64*64


def test_run_method_takes_paths_and_words(scenes, here):
    options = [o for o in TINY[3:] if not o.startswith("iters")]
    found = run_method("baseline", Path(scenes), Path("run"), "shapes", "train", overrides=options, iters=1)
    assert list(found["seconds"]) == ["train"]
    found = run_method("baseline", str(scenes), "run", stages=("evaluate",))
    assert "prediction" in found["miou"]


VIEWS = {"mirrored": lambda a: a[:, ::-1], "upside down": lambda a: a[::-1], "turned": np.rot90,
         "coarse": lambda a: a[::2, ::2], "fortran": np.asfortranarray}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_any_layout_of_arrays(view):
    image, probs = view(photo()), np.stack([view(p) for p in TWO])
    plain = dense_crf(image.copy(), probs.copy())
    assert np.array_equal(dense_crf(image, np.stack([p.copy() for p in probs]).tolist()), plain)
    for odd in (probs.astype(">f4"), np.asfortranarray(probs), probs[:, :, ::-1].copy()[:, :, ::-1]):
        assert np.array_equal(dense_crf(image, odd), plain)
    assert np.array_equal(dense_crf(image, torch.tensor(probs)).numpy(), plain)
    label = probs.argmax(0)
    assert np.array_equal(label_crf(image, label), label_crf(image.copy(), label.copy()))
    assert np.array_equal(cam_crf_label(image, probs[1:], [0]), cam_crf_label(image.copy(), probs[1:].copy(), [0]))


def test_short_names_of_modules():
    from wsss_nb.io import read_label as short
    assert short is read_label


# %% Files that vanish in silence
@pytest.mark.parametrize("ending", ["jfif", "jpe", "JPEG", "avif", "gif", "PNG", "Tiff", "webp", "bmp", "ppm"])
def test_photos_of_any_ending(here, ending):
    if f".{ending}" == ".avif": pytest.importorskip("PIL.AvifImagePlugin")
    for n in range(2):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(photo(n)).save(f"photos/{n}.{ending}")
    assert [p.name for p in list_images(["photos"])] == [f"0.{ending}", f"1.{ending}"]
    assert read_image(f"photos/0.{ending}").shape == (SIDE, SIDE, 3)


@pytest.mark.trouble(
    "Fewer images than files in the folder",
    "Formats that are not read (`.heic`, raw files): they are counted and named",
    "Save them as `.jpg`",
)
def test_photos_that_are_not_read_are_named(capfd, here):
    root = dataset("data")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "x.dng"): (root/"JPEGImages"/name).touch()
    assert len(list_images([root/"JPEGImages"])) == 9
    assert "3 pictures are left out, such as IMG_1.HEIC" in capfd.readouterr().err
    assert "3 photos are not read, such as IMG_1.HEIC" in said(root)
    (root/"ImageSets"/"Segmentation"/"val.txt").write_text("IMG_2\n")
    with pytest.raises(UserError, match="'IMG_2' has no image in JPEGImages but IMG_2.heic, which is not read"):
        open_dataset(root, "val")


def test_masks_of_any_ending(here):
    root = dataset("data")
    for p in sorted((root/"SegmentationClass").iterdir()): p.rename(p.with_suffix(".PNG"))
    assert (open_dataset(root, "val", masks=True)[1].mask == mask()).all()
    assert said(root).count("masks, fingerprint") == 2
    assert evaluate_folders(root/"SegmentationClass", root/"SegmentationClass", 2)[0].miou == 1
    Image.fromarray(mask()).save(root/"SegmentationClass"/"val0.jpg")
    assert "1 masks are not read, such as val0.jpg" in said(root)


SAVED = {"jpg": lambda m, p: Image.fromarray(m*255).save(p.with_suffix(".jpg")),
         "PNG": lambda m, p: Image.fromarray(m*255).save(p.with_suffix(".PNG")),
         "colour mode": lambda m, p: Image.fromarray(m*255).convert("RGB").save(p.with_suffix(".png")),
         "other size": lambda m, p: Image.fromarray(m*255).resize((20, 31)).save(p.with_suffix(".png")),
         "bmp": lambda m, p: Image.fromarray(m*255).save(p.with_suffix(".bmp"))}


def with_maps(save):
    "Write a dataset whose training images have saliency maps"
    root = dataset("data", train=4, val=1)
    (root/"Saliency").mkdir()
    for i in range(4): save(mask(), root/"Saliency"/f"train{i}")
    return root


@pytest.mark.parametrize("kind", SAVED)
def test_saliency_maps_of_any_ending(here, kind):
    root = with_maps(SAVED[kind])
    saliency = open_dataset(root)[0].saliency
    assert saliency.max() == 1 and abs(saliency.mean()-.25) < .05 and "Saliency" not in said(root)


def coloured(m, p):
    image = Image.fromarray(m*255)
    others = Image.new("L", image.size, 30), Image.new("L", image.size, 200)
    Image.merge("RGB", (image, *others)).save(p.with_suffix(".png"))


USELESS = {"0 and 1": (lambda m, p: Image.fromarray(m).save(p.with_suffix(".png")), "hold nothing but 0 and 1"),
           "colours": (coloured, "has colours"),
           "other names": (lambda m, p: Image.fromarray(m*255).save(p.with_name(f"{p.name}_sal.png")),
                           "none of them named like a training image")}


@pytest.mark.trouble(
    "I2CRC stops before its training and names `Saliency`",
    "Saliency maps of 0 and 1, in colour, or of other names than the photos",
    "Save them as grey maps 0 to 255 with the names of the photos, or `--set saliency=rbd`",
)
@pytest.mark.parametrize("kind", USELESS)
def test_useless_saliency_maps_are_named_before_training(fails, here, kind):
    save, words = USELESS[kind]
    root = with_maps(save)
    assert words in fails("wsss-run", "i2crc", "--data", root, "--out", "run", *STAGED["i2crc"])
    assert not Path("run").exists() and "Saliency" in said(root)
