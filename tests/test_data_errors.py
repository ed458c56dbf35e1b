"""Every way a dataset on disk can be wrong is one line that names the file and says what to do

What can be read all the same, is."""
import json
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.data.check import check_dataset, finding_lines
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.data.shapes import ShapesDataset
from wsss_nb.ground.io import read_image

NAME = "train_00003"


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")/"scenes"
    write_voc_folder([ShapesDataset(s, n=6, size=48, masks=True) for s in ("train", "val")], root)
    return root


@pytest.fixture
def folder(good, tmp_path): return shutil.copytree(good, tmp_path/"scenes")


def read_all(root, split="train", masks=True): return list(open_dataset(root, split, masks))
def image_of(root): return root/"JPEGImages"/f"{NAME}.png"
def mask_of(root): return root/"SegmentationClass"/f"{NAME}.png"
def list_of(root): return root/"ImageSets"/"Segmentation"/"train.txt"
def append(path, text): path.write_text(path.read_text()+text)
def png16(rgb):
    "Return a 16-bit colour PNG, which Pillow can open but not write"
    def chunk(kind, data): return struct.pack(">I", len(data))+kind+data+struct.pack(">I", zlib.crc32(kind+data))
    rows = b"".join(b"\0"+(row.astype(">u2")*257).tobytes() for row in rgb)
    return b"\x89PNG\r\n\x1a\n"+chunk(b"IHDR", struct.pack(">IIBBBBB", *rgb.shape[1::-1], 16, 2, 0, 0,
                                                           0))+chunk(b"IDAT", zlib.compress(rows))+chunk(b"IEND", b"")


def jpeg_cut_short(root):
    image_of(root).unlink()
    path = image_of(root).with_suffix(".jpg")
    Image.fromarray(np.random.RandomState(0).randint(256, size=(48,48,3)).astype(np.uint8)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:1200])
def row(text):
    def spoil(root):
        (root/"labels.csv").write_text("".join(text if NAME in l else l for l in (root/"labels.csv").open()))
    return spoil
def npy(value):
    def spoil(root):
        (root/"labels.csv").unlink()
        np.save(root/"cls_labels.npy", value)
    return spoil
def with_npy(change):
    def spoil(root):
        labels = {o.id: o.image_labels for o in open_dataset(root)}
        change(labels)
        npy(labels)(root)
    return spoil
def same_name(root): shutil.copy(image_of(root), image_of(root).with_suffix(".bmp"))


# what is spoilt, words that must be in the message, a file it must name
BAD = {
    "list names a missing image": (lambda r: append(list_of(r), "nowhere\n"), "'nowhere' has no image", "train.txt"),
    "image of a list deleted": (lambda r: image_of(r).unlink(), f"'{NAME}' has no image", "train.txt"),
    "truncated JPEG": (jpeg_cut_short, "cannot be decoded", f"{NAME}.jpg"),
    "empty file": (lambda r: image_of(r).write_bytes(b""), "is empty", f"{NAME}.png"),
    "no image at all": (lambda r: image_of(r).write_text("<html>not found</html>"), "cannot be decoded", f"{NAME}.png"),
    "16-bit grey": (lambda r: Image.fromarray(np.full((48,48), 40_000, np.uint16)).save(image_of(r)), "16 bits",
                    f"{NAME}.png"),
    "16-bit colour": (lambda r: image_of(r).write_bytes(png16(np.full((48,48,3), 200))), "16 bits", f"{NAME}.png"),
    "mask of another size": (lambda r: Image.fromarray(np.zeros((48,47), np.uint8)).save(mask_of(r)), "47x48",
                             f"{NAME}.png"),
    "mask value outside the classes": (lambda r: Image.fromarray(np.full((48,48), 6, np.uint8)).save(mask_of(r)),
                                       "value 6", f"{NAME}.png"),
    "mask saved as colours": (lambda r: Image.fromarray(np.zeros((48,48,3), np.uint8)).save(mask_of(r)), "no label map",
                              f"{NAME}.png"),
    "empty mask file": (lambda r: mask_of(r).write_bytes(b""), "is empty", f"{NAME}.png"),
    "mask missing": (lambda r: mask_of(r).unlink(), "no such file", f"{NAME}.png"),
    "saliency map that is no image": (lambda r: (r/"Saliency"/f"{NAME}.png").write_text("<html>"), "cannot be decoded",
                                      f"{NAME}.png"),
    "unknown class": (row(f"{NAME},caat\n"), "did you mean cat", "labels.csv"),
    "background as a label": (row(f"{NAME},background\n"), "unknown class 'background'", "labels.csv"),
    "label of a missing image": (lambda r: append(r/"labels.csv", "nowhere,cat\n"), "'nowhere' has no image",
                                 "labels.csv"),
    "label twice": (lambda r: append(r/"labels.csv", f"{NAME},cat\n"), "is there twice", "labels.csv"),
    "labels separated by commas": (row(f"{NAME},cat,dog\n"), "separate class names by spaces", "labels.csv"),
    "labels without header": (lambda r: (r/"labels.csv").write_text(f"{NAME},cat\n"), "image,labels", "labels.csv"),
    "label file empty": (lambda r: (r/"labels.csv").write_text(""), "image,labels", "labels.csv"),
    "label file is no text": (lambda r: (r/"labels.csv").write_bytes(b"\xff\xfe\x00\x81"), "UTF-8", "labels.csv"),
    "image without label": (row(""), "has no label", NAME),
    "image without field for its labels": (row(f"{NAME}\n"), "has no field for its labels", "labels.csv"),
    "no labels at all": (lambda r: (r/"labels.csv").unlink(), "has no label", "train"),
    "dictionary of labels lacks an image": (with_npy(lambda d: d.pop(NAME)), "has no label", NAME),
    "dictionary names a missing image": (with_npy(lambda d: d.update(nowhere=np.ones(5))), "'nowhere' has no image",
                                         "cls_labels.npy"),
    "dictionary for other classes": (with_npy(lambda d: d.update({NAME:np.ones(20)})), "20 values", "cls_labels.npy"),
    "dictionary of something else": (with_npy(lambda d: d.update({NAME:"cat"})), "cls_labels.npy", "cls_labels.npy"),
    "array instead of a dictionary": (npy(np.zeros((3,5))), "not a dictionary", "cls_labels.npy"),
    "dictionary cut short": (lambda r: (npy({"a":np.zeros(9)})(r),
                                        (r/"cls_labels.npy").write_bytes((r/"cls_labels.npy").read_bytes()[:140])),
                             "cannot be read", "cls_labels.npy"),
    "empty list": (lambda r: list_of(r).write_text("\n\n"), "names no image", "train.txt"),
    "duplicate id": (lambda r: append(list_of(r), f"{NAME}\n"), "is there twice", "train.txt"),
    "two images of one name": (same_name, "same name", f"{NAME}.png"),
    "list leaves the folder": (lambda r: append(list_of(r), "../../secret\n"), "is a path, not a name", "train.txt"),
    "list with an absolute path": (lambda r: append(list_of(r), "/etc/passwd\n"), "is a path, not a name", "train.txt"),
    "list with a Windows path": (lambda r: append(list_of(r), "..\\secret\n"), "is a path, not a name", "train.txt"),
    "no lists": (lambda r: shutil.rmtree(r/"ImageSets"), "no list", "ImageSets"),
    "no images": (lambda r: shutil.rmtree(r/"JPEGImages"), "no such folder", "JPEGImages"),
    "no class list": (lambda r: (r/"classes.txt").unlink(), "no such file", "classes.txt"),
    "class list without background": (lambda r: (r/"classes.txt").write_text("cat\ndog\n"), "is not 'background'",
                                      "classes.txt"),
    "class twice": (lambda r: append(r/"classes.txt", "cat\n"), "'cat' is there twice", "classes.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_line(folder, case):
    spoil,words,file = BAD[case]
    spoil(folder)
    with pytest.raises(UserError) as e: read_all(folder)
    message = str(e.value)
    assert words in message and file in message and "\n" not in message


@pytest.mark.parametrize("case", BAD)
def test_check_finds_it(folder, case):
    BAD[case][0](folder)
    found = check_dataset(folder).problems
    if case == "mask missing": return  # an image without mask is in order until its split is to be scored
    assert found and all(all(f) for f in found), found


def test_check_is_content_with_a_good_folder(good):
    check = check_dataset(good)
    assert check.problems == check.notes == []
    assert {k:(s["images"], s["masks"]) for k,s in check.splits.items()} == {"train":(6,6), "val":(50,50)}


def test_check_finds_all_at_once(folder):
    for case in ("truncated JPEG", "mask value outside the classes", "list leaves the folder",
                 "label of a missing image"):
        BAD[case][0](folder)
    assert ({os.path.basename(f.file) for f in check_dataset(folder).problems}
            >= {f"{NAME}.jpg", "train.txt", "labels.csv"})


def test_check_is_the_same_with_any_number_of_processes(folder):
    for case in ("mask value outside the classes", "saliency map that is no image", "label of a missing image"):
        BAD[case][0](folder)
    alone,many = check_dataset(folder, workers=1),check_dataset(folder, workers=2)
    assert alone == many and len(alone.problems) > 1


def test_check_groups_by_what_to_do(folder):
    for i in range(4): (folder/"JPEGImages"/f"train_{i:05d}.png").write_bytes(b"")
    mask_of(folder).unlink()
    lines = list(finding_lines(check_dataset(folder), show=3))
    at = lines.index("wrong: copy or download it again")
    assert ([line.split("/")[-1] for line in lines[at+1:at+5]]
            == [f"train_{i:05d}.png: the file is empty (0 bytes)" for i in range(3)] + ["    ... and 1 more"])


@pytest.mark.parametrize("spoil,words,wrong", [
    (lambda r: Image.fromarray(np.full((48,48), 5, np.uint8)).save(mask_of(r)),
     "shows cloud, which the labels deny", True),
    (lambda r: Image.fromarray(np.zeros((48,48), np.uint8)).save(mask_of(r)), "which the labels name", False),
    (lambda r: Image.fromarray(np.random.RandomState(0).randint(256, size=(48,48,3)).astype(np.uint8)).save(
        r/"Saliency"/f"{NAME}.png"), "has colours", True),
    (lambda r: Image.fromarray(np.zeros((48,48), np.uint8)).save(r/"Saliency"/f"{NAME}.png"), "is 0 everywhere", False),
    (lambda r: (r/"Saliency"/f"{NAME}.png").write_bytes(b"x"), "cannot be decoded", True),
    (lambda r: (r/"Saliency"/f"{NAME}.png").unlink(), "1 training images have no map", False),
    (lambda r: shutil.copy(mask_of(r), r/"SegmentationClass"/"stranger.png"),
     "1 files belong to no photo, such as stranger", False),
    (lambda r: np.save(r/"cls_labels.npy", {NAME:np.zeros(5)}), "has other labels for 1 images of 'train'", False),
    (lambda r: (r/"cls_labels.npy").write_bytes(b"x"), "is not used, and has faults", False),
    (lambda r: (r/"JPEGImages"/"unlisted.jpg").write_bytes(b""), "is empty", True)])
def test_check_sees_more_than_opening(folder, spoil, words, wrong):
    row(f"{NAME},cat dog\n")(folder)
    Image.fromarray(np.repeat([0,1,2], 768).reshape(48,48).astype(np.uint8)).save(mask_of(folder))
    before = check_dataset(folder)
    assert before.problems == before.notes == []
    spoil(folder)
    check = check_dataset(folder)
    assert any(words in f.what for f in (check.problems if wrong else check.notes)), check
    assert bool(check.problems) == wrong


def test_check_command(call, folder, tmp_path):
    "Status 1 where something has to be mended, and all of it in a file"
    (folder/"JPEGImages"/"train_00001.png").write_bytes(b"")
    status,out,err = call("wsss-data", "check", folder, "--json", tmp_path/"found.json")
    assert (status, err) == (1, "") and "1 problem found" in out
    found = json.loads((tmp_path/"found.json").read_text())
    assert [p["advice"] for p in found["problems"]] == ["copy or download it again"]
    assert found["splits"]["val"]["masks"] == 50


@pytest.mark.parametrize("mode,suffix", [("L", ".png"), ("L", ".jpg"), ("RGBA", ".png"), ("LA", ".png"), ("P", ".png"),
                                         ("CMYK", ".jpg"), ("1", ".png")])
def test_odd_photos_are_converted(folder, mode, suffix):
    path = image_of(folder)
    im = Image.open(path).convert("RGB")
    path.unlink()
    im.convert(mode).save(path.with_suffix(suffix))
    item = next(o for o in read_all(folder) if o.id == NAME)
    assert item.image.shape == (48,48,3) and item.image.dtype == np.uint8
    assert np.abs(item.image.mean() - np.asarray(im).mean()) < 45
    if mode.startswith("L"): assert (item.image[...,0] == item.image[...,2]).all()


def test_exif_orientation_is_left_alone(tmp_path):
    "Masks are stored as the pixels are"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20,10)).save(tmp_path/"turned.jpg", exif=exif)
    assert read_image(tmp_path/"turned.jpg").shape == (10,20,3)


class Attack:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return os.system, (f"touch {self.mark}",)


class Eval:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return eval, (f"open({str(self.mark)!r}, 'w')",)


@pytest.mark.parametrize("attack", [Attack, Eval])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL+1))
@pytest.mark.parametrize("file", ["cls_labels.npy", "cls_labels_onehot.npy"])
def test_a_label_file_cannot_run_code(folder, tmp_path, attack, protocol, file):
    mark = tmp_path/"owned"
    (folder/"labels.csv").unlink()
    with open(folder/file, "wb") as f:
        np.lib.format.write_array_header_1_0(f, dict(descr="|O", fortran_order=False, shape=()))
        pickle.dump(np.array({NAME: attack(mark)}, dtype=object), f, protocol=protocol)
    with pytest.raises(UserError, match="do not trust it"): read_all(folder)
    assert check_dataset(folder).problems
    assert not mark.exists()
    np.load(folder/file, allow_pickle=True)  # the attack works on who trusts it
    assert mark.exists()


@pytest.mark.parametrize("spec,words", [("no/such/folder", "no such folder"), ("voc:no/such/folder", "no such folder"),
                                        ("shape", "did you mean shapes"), ("shapes:szie=64", "did you mean size"),
                                        ("shapes:n=1.5", "whole number"), ("shapes:n=0", "n must be 1"),
                                        ("shapes:part=1.5", "part=1.5"), ("", "unknown dataset")])
def test_dataset_names(spec, words):
    with pytest.raises(UserError) as e: open_dataset(spec)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_split_names(good):
    with pytest.raises(UserError, match="did you mean train"): open_dataset(good, "trian")
    with pytest.raises(UserError, match="did you mean val"): open_dataset("shapes", "vall")
    with pytest.raises(UserError, match="unknown split"): open_dataset(good, "../../train")


def test_training_never_needs_masks(folder):
    "Image-level labels alone: with the masks deleted everything but scoring works as before"
    before = read_all(folder, masks=False)
    shutil.rmtree(folder/"SegmentationClass")
    after = read_all(folder, masks=False)
    assert all(a.mask is None and b.mask is None and (a.image == b.image).all()
               and (a.image_labels == b.image_labels).all() for a,b in zip(before, after, strict=True))
    with pytest.raises(UserError, match="no ground-truth masks"): open_dataset(folder, masks=True)


def test_ignored_pixels_are_no_class(folder):
    Image.fromarray(np.full((48,48), IGNORE_INDEX, np.uint8)).save(mask_of(folder))
    assert (next(o for o in read_all(folder) if o.id == NAME).mask == IGNORE_INDEX).all()


def test_photos_to_segment_need_no_label(folder):
    (folder/"labels.csv").unlink()
    (folder/"ImageSets"/"Segmentation"/"photos.txt").write_text(f"{NAME}\n")
    (item,) = read_all(folder, "photos", masks=False)
    assert item.image_labels is None
