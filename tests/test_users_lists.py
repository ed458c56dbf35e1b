"Lists, labels and annotations as people and their tools write them, and the same dataset under other names."
import json
import os
import shutil
import signal
import unicodedata

import numpy as np
import pytest

from commands import SMALL, STAGED, TINY, chain, started
from wsss_nb.data.check import check_dataset
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import ClassNames, label_lines, read_ids, read_image_labels
from wsss_nb.data.prepare import coco_mask, prepare_coco, read_coco_file
from wsss_nb.data.voc import COCO_CLASSES
from wsss_nb.ground.core import UserError
from wsss_nb.ground.io import write_image, write_label
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.names import METHODS

C = ("background", "traffic light", "person")


def refused(work, *args, **kw):
    "Return what is said, in one line, of what cannot be read"
    with pytest.raises(UserError) as e: work(*args, **kw)
    assert "\n" not in str(e.value)
    return str(e.value)

def folder(root, rows, classes=C, masks=True):
    "Write a dataset; `rows` is name -> field of labels.csv, half of it training images"
    for k,i in enumerate(rows):
        image,mask = np.full((48,64,3), 40+k, np.uint8),np.zeros((48,64), np.uint8)
        image[12:36,16:48] = 200
        write_image(root/"JPEGImages"/f"{i}.png", image)
        mask[12:36,16:48] = 1
        if masks: write_label(root/"SegmentationClass"/f"{i}.png", mask)
    (root/"ImageSets"/"Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{i}\n" for i in rows))
    (root/"classes.txt").write_text("\n".join(classes)+"\n")
    (root/"labels.csv").write_text("image,labels\n"+"".join(f"{i},{f}\n" for i,f in rows.items()))
    return root


# %% Lists
FORMS = {
    "pairs": "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png",
    "folders": "VOC2012/JPEGImages/{0}.jpg\tVOC2012/x/{0}.png",
    "endings": "{0}.jpg",
    "capitals": "{0}.JPG",
    "labelled": "{0}.jpg 0 14",
    "windows": "JPEGImages\\{0}.png",
    "comma": "{0}.jpg,{0}.png",
}


@pytest.mark.trouble(
    "A list in the form of another project",
    "Lines such as `/JPEGImages/x.jpg /SegmentationClassAug/x.png`, `x.jpg`, `x -1`",
    "Nothing: these forms are read",
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_lists_of_other_projects(tmp_path, form, known):
    ids = ("2007_000032", "a b", "c.d", "photo 1")
    (tmp_path/"list.txt").write_text("".join(form.format(i)+"\n" for i in ids))
    assert read_ids(tmp_path/"list.txt", ids if known else None) == ids

@pytest.mark.parametrize("text", ["a  1\nb -1\nc  0\n", "a  1\nb  1\nc  1\n", "a\t1\nb\t-1\nc\t-1"])
def test_lists_with_a_sign_name_all_their_images(tmp_path, text):
    (tmp_path/"list.txt").write_text(text)
    assert read_ids(tmp_path/"list.txt") == read_ids(tmp_path/"list.txt", "abc") == ("a", "b", "c")

def test_names_that_end_in_a_number_are_names(tmp_path):
    (tmp_path/"list.txt").write_text("photo 1\nphoto 0\n")
    assert (
        read_ids(tmp_path / "list.txt")
        == read_ids(tmp_path / "list.txt", ("photo 0", "photo 1"))
        == ("photo 1", "photo 0")
    )
    (tmp_path/"list.txt").write_text("x.jpg\n")
    assert read_ids(tmp_path/"list.txt", ("x.jpg",)) == ("x.jpg",)  # the photo x.jpg.png

@pytest.mark.parametrize("bad", ["../x.jpg", "/a/../x.jpg /m/x.png", "~/x.jpg", "./x.jpg", "/etc/passwd"])
def test_a_list_leads_nowhere(tmp_path, bad):
    (tmp_path/"list.txt").write_text(bad)
    assert "is a path, not a name" in refused(read_ids, tmp_path/"list.txt")

@pytest.mark.trouble(
    'A name in a list is "not there", though you see the file',
    "macOS stores an ä as two signs, lists as one",
    "Nothing: both are the same name",
)
@pytest.mark.parametrize("disk", ["NFC", "NFD"])
def test_accents_are_the_same_however_stored(tmp_path, disk):
    def name(form): return unicodedata.normalize(form, "Bäume_é")
    other = {"NFC":"NFD", "NFD":"NFC"}[disk]
    root = folder(tmp_path/"d", {name(disk):"", "b":"person"})
    for f in ("ImageSets/Segmentation/train.txt", "labels.csv"):
        (root/f).write_text((root/f).read_text().replace(name(disk), name(other)))
    (root/"SegmentationClass"/f"{name(disk)}.png").rename(root/"SegmentationClass"/f"{name(other)}.png")
    write_image(root/"Saliency"/f"{name(other)}.png", np.zeros((48,64), np.uint8))
    item = open_dataset(root, masks=True)[0]
    assert item.id == name("NFC") and item.image_labels.tolist() == [0,0] and item.saliency is not None
    (root/"labels.csv").unlink()
    (root/"Annotations").mkdir()
    for n in (name(other), "b"):
        (root/"Annotations"/f"{n}.xml").write_text("<a><object><name>person</name></object></a>")
    assert open_dataset(root).labels[name("NFC")].tolist() == [0,1]

def test_eval_takes_pairs(tmp_path, call):
    root = folder(tmp_path/"d", {"a":"person", "b":"person"})
    (tmp_path/"list.txt").write_text("".join(FORMS["pairs"].format(i)+"\n" for i in "ab"))
    masks = root/"SegmentationClass"
    status,out,err = call("wsss-eval", masks, masks, "--classes", root/"classes.txt", "--list", tmp_path/"list.txt")
    assert (status, err) == (0, "") and "100.0" in out


# %% Labels
@pytest.mark.trouble(
    "`unknown class 'traffic'`",
    "Names of classes with spaces in `labels.csv`",
    "Write `;` behind each class: `x.jpg,traffic light;person`",
)
@pytest.mark.parametrize(
    "field,present",
    [
        ("traffic light", [1, 0]),
        ("traffic light person", [1, 1]),
        ("person traffic light", [1, 1]),
        ("traffic_light", [1, 0]),
        ("traffic light;person", [1, 1]),
        ("person | traffic light", [1, 1]),
        ('"traffic light, person"', [1, 1]),
        ("", [0, 0]),
        ('"""traffic light"" person"', [1, 1]),
        ('"traffic light"', [1, 0]),
        ("person", [0, 1]),
        ("traffic light;", [1, 0]),
    ],
)
def test_class_names_with_spaces(tmp_path, field, present):
    (tmp_path/"labels.csv").write_text(f"image,labels\nx,{field}\n")
    assert read_image_labels(tmp_path, C, {"x":0}, ("x",))["x"].tolist() == present

@pytest.mark.parametrize(
    "text",
    [
        "image;labels\nx;traffic light\n",
        "image\tlabels\nx\ttraffic light\n",
        "image, labels\nx, traffic light\n",
        '\ufeff"image","labels"\n"x.jpg","traffic light"\n',
        "image,labels\nimages/x.jpg,traffic_light\n",
    ],
)
def test_tables_of_other_programs(tmp_path, text):
    (tmp_path/"labels.csv").write_text(text, encoding="utf-8")
    assert read_image_labels(tmp_path, C, {"x":0}, ("x",))["x"].tolist() == [1,0]

@pytest.mark.parametrize("field,words", [
    ("trafic light", "unknown class 'trafic'; did you mean traffic light? (between names of several words write ';')"),
    ("background", "leave the field empty if the image shows no class"), ("person cat", "unknown class 'cat'")])
def test_what_no_class_is_called(tmp_path, field, words):
    (tmp_path/"labels.csv").write_text(f"image,labels\ny,person\nx,{field}\n")
    line = refused(read_image_labels, tmp_path, C, None, ("x",))
    assert "labels.csv: line 3: " in line and words in line

def test_two_readings_are_refused_and_what_is_written_is_read():
    names,problems = ClassNames(("background", "traffic light", "traffic", "light")),[]
    assert names.read("traffic light", problems.append) == [] and "can be read in two ways" in problems[0]
    for classes in (
        ("background", "traffic light", "traffic", "light"),
        ("background", "a;b", "c d", 'e"f', "g,h", "i|j"),
    ):
        import csv
        names = ClassNames(classes)
        for n in range(2**(len(classes)-1)):
            y = [n>>k & 1 for k in range(len(classes)-1)]
            row = next(csv.DictReader(label_lines(classes, [("x,y", y)])))
            found = names.read(row["labels"], pytest.fail)
            assert row["image"] == "x,y" and sorted(found) == [k for k,p in enumerate(y) if p]
    assert label_lines(("background","cat","dog"), [("a",[1,1]), ("b",[0,0])]) == ["image,labels", "a,cat dog", "b,"]

@pytest.mark.trouble(
    "`cls_labels.npy` has numbers for names",
    "Keys 9, 25, … stand for `COCO_train2014_000000000009`, 2007000032 for `2007_000032`",
    "Nothing: they are found by their digits; two images with the same are named",
)
@pytest.mark.parametrize("keys", [(9, 25), ("9", "25"), (np.int64(9), np.int64(25)), ("000000000009", "000000000025"),
                                  ("COCO_train2014_000000000009.jpg", "x/COCO_train2014_000000000025.jpg")])
def test_numbers_of_coco_as_keys(tmp_path, keys):
    ids = ("COCO_train2014_000000000009", "COCO_train2014_000000000025")
    np.save(tmp_path/"cls_labels.npy", dict(zip(keys, ([0,1], [1,0]), strict=True)))
    for images in (None, dict.fromkeys(ids)):
        labels = read_image_labels(tmp_path, C, images, ids)
        assert [labels[i].tolist() for i in ids] == [[0,1], [1,0]]

def test_a_number_that_two_images_end_in(tmp_path):
    np.save(tmp_path/"cls_labels.npy", {9:[0,1]})
    assert "9 may be" in refused(read_image_labels, tmp_path, C, None, ("train_09", "val_9"))

@pytest.mark.trouble(
    "A label `has the value 3`, or 0.9",
    "Label vectors hold 0 or 1 for each class, without the background",
    "Write zeros and ones",
)
@pytest.mark.parametrize(
    "vector,words",
    [
        ([0, 3.0], "'x' has the value 3 for class 'person'"),
        ([0.9, 0], "'x' has the value 0.9 for class 'traffic light'"),
        ([0, -1], "has the value -1 for class 'person'"),
        (
            [0, 0, 1],
            "has 3 values; it must have a zero or one for each of the 2 classes, "
            "so leave out the one of the background",
        ),
    ],
)
def test_label_values(tmp_path, vector, words):
    np.save(tmp_path/"cls_labels.npy", {"x":vector})
    assert words in refused(read_image_labels, tmp_path, C, None, ("x",))

@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-16", "shift_jis", "euc-kr", "gb2312", "big5", "iso-8859-1", "cp1252"]
)
def test_annotations_in_any_encoding(tmp_path, encoding):
    (tmp_path/"Annotations").mkdir()
    word = {"shift_jis":"信号", "euc-kr":"신호", "gb2312":"红灯", "big5":"紅燈"}.get(encoding, "Grün")
    text = f"<?xml version='1.0' encoding='{encoding}'?><annotation><object><name>{word}</name></object></annotation>"
    (tmp_path/"Annotations"/"x.xml").write_bytes(text.encode(encoding))
    assert read_image_labels(tmp_path, ("background", "person", word), None, ("x",))["x"].tolist() == [0,1]

def test_an_encoding_that_nobody_knows(tmp_path):
    (tmp_path/"Annotations").mkdir()
    (tmp_path/"Annotations"/"x.xml").write_bytes(b"<?xml version='1.0' encoding='klingon'?><a/>")
    assert "x.xml: cannot be read as XML" in refused(read_image_labels, tmp_path, C, None, ("x",))


# %% Images without any class
@pytest.mark.trouble(
    "Images without any class",
    "An empty field in `labels.csv` says that no class is there; a missing line says nothing",
    "Write `NAME,` for an image that shows no class",
)
def test_negatives_are_meant_or_forgotten(tmp_path):
    root = folder(tmp_path/"d", {"a":"", "b":"person"})
    assert open_dataset(root)[0].image_labels.tolist() == [0,0]
    (root/"labels.csv").write_text("image,labels\nb,person\n")
    assert "image 'a' of split 'train' has no label" in refused(open_dataset, root)
    (root/"labels.csv").write_text("image,labels\na\nb,person\n")
    assert "labels.csv: line 2: 'a' has no field for its labels; write 'a,'" in refused(open_dataset, root)
    (root/"labels.csv").unlink()
    np.save(root/"cls_labels.npy", {"a":[0,0], "b":[0,1]})
    assert open_dataset(root)[0].image_labels.tolist() == [0,0]
    (root/"cls_labels.npy").unlink()
    (root/"Annotations").mkdir()
    for i, o in (("a", ""), ("b", "<object><name>person</name></object>")):
        (root / "Annotations" / f"{i}.xml").write_text(f"<a>{o}</a>")
    assert open_dataset(root)[0].image_labels.tolist() == [0,0]

@pytest.fixture(scope="module")
def with_negatives(scenes, tmp_path_factory):
    "The toy scenes, two thirds of the training images without any class"
    root = shutil.copytree(scenes, tmp_path_factory.mktemp("negatives")/"scenes")
    train = set((root/"ImageSets"/"Segmentation"/"train.txt").read_text().split()[::3])
    rows = [r.split(",") for r in (root/"labels.csv").read_text().splitlines()]
    (root / "labels.csv").write_text(
        "".join(f"{i},{'' if i.startswith('train') and i not in train else f}\n" for i, f in rows)
    )
    return root

@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_with_negatives(call, with_negatives, tmp_path, name):
    settings = STAGED.get(name, (*TINY, *SMALL.get(name, ()), "iters=4"))
    status,_,err = call("wsss-run", name, *settings, "--data", with_negatives, "--out", tmp_path/"out")
    assert (status, err) == (0, ""), err
    for last in (tmp_path/"out").rglob("last.pt"):
        assert last.stat().st_size

def test_a_chain_trains_with_negatives(call, with_negatives, tmp_path):
    status, _, err = call(
        "wsss-run",
        "baseline+crf+deeplab",
        *chain("baseline", "crf", "deeplab"),
        "--data",
        with_negatives,
        "--out",
        tmp_path / "out",
    )
    assert (status, err) == (0, ""), err

@pytest.mark.trouble(
    "`every image of 'train' has the same labels`",
    "Nothing can be learnt from labels that are all alike",
    "Add images that lack the class, each with a line `NAME,`",
)
def test_nothing_to_tell_apart(call, tmp_path):
    root = folder(tmp_path/"d", {"a":"crack", "b":"crack", "c":"crack", "d":"crack"}, ("background", "crack"))
    status,_,err = call("wsss-run", "baseline", *TINY, "--data", root, "--out", tmp_path/"one", "--stages", "train")
    assert status == 0 and "every image of 'train' has the same labels" in err and len(err.splitlines()) == 1
    assert "has the same labels" in call("wsss-data", "check", root)[1]
    (root/"labels.csv").write_text((root/"labels.csv").read_text().replace("b,crack", "b,"))
    assert "has the same labels" not in call("wsss-data", "check", root)[1]
    status,_,err = call("wsss-run", "baseline", *TINY, "--data", root, "--out", tmp_path/"two", "--stages", "train")
    assert (status, err) == (0, "")


# %% Annotations in COCO's format
SQUARE = [[16,16, 48,16, 48,48, 16,48]]
CATEGORIES = [{"id":7, "name":"leaf spot"}, {"id":3, "name":"rust", "supercategory":"none"}]

def annotated(
    root,
    annotations,
    categories=CATEGORIES,
    files=("a.jpg", "b.jpg", "c.jpg"),
    where="images",
    name="annotations/instances_train.json",
    **image,
):
    for f in files: write_image(root/where/f, np.full((64,64,3), 90, np.uint8))
    images = [{"id":k+1, "file_name":f, "height":64, "width":64} | image for k,f in enumerate(files)]
    (root/name).parent.mkdir(parents=True, exist_ok=True)
    (root/name).write_text(json.dumps({"images":images, "categories":categories, "annotations":annotations}))
    return root

def ann(image, category, **kw):
    return {
        k: v
        for k, v in (
            {"image_id": image, "category_id": category, "segmentation": SQUARE, "area": 1024, "bbox": [16, 16, 32, 32]}
            | kw
        ).items()
        if v != "-"
    }


def right(root, labels=([0,1], [1,0], [0,0]), masks=True):
    "Test that a folder has these labels, and masks with the square in the right class"
    ds = open_dataset(root, masks=masks)
    assert ds.classes == ("background", "rust", "leaf spot")
    assert [item.image_labels.tolist() for item in ds] == [list(y) for y in labels]
    for item in ds if masks else ():
        truth = np.zeros((64,64), np.uint8)
        if item.image_labels.any(): truth[16:48,16:48] = 1+item.image_labels.argmax()
        wrong = (item.mask != truth).sum()
        assert wrong <= 64, (item.id, wrong)  # the edge of a polygon

def compressed():
    from pycocotools import mask
    square = np.zeros((64,64), np.uint8)
    square[16:48,16:48] = 1
    return mask.encode(np.asfortranarray(square))["counts"].decode()

@pytest.mark.trouble(
    "Annotations in COCO's form with your own categories",
    "Any categories, folders and ids; each category becomes a class",
    "`wsss-data to-voc coco FOLDER`; a table of your own with `--classes table.csv`",
)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"area": "-"},
        {"area": 0},
        {"iscrowd": "0"},
        {"segmentation": SQUARE[0]},
        {"text": True},
        {"bbox": "-", "area": None},
        {"runs": True},
    ],
    ids=str,
)
def test_own_categories(tmp_path, change):
    pytest.importorskip("pycocotools")
    if change.pop("runs", False): change = {"segmentation":{"size":[64,64], "counts":compressed()}}
    text = str if change.pop("text", False) else int
    root = annotated(tmp_path/"d", [ann(text(1), text(7), **change), ann(text(2), text(3), **change)])
    lines = prepare_coco(root)
    right(root)
    assert "category 'leaf spot': class 'leaf spot', 1 objects" in lines
    assert any("1 images show no class" in l for l in lines)
    assert prepare_coco(root) == lines  # given again
    assert not check_dataset(root).problems

@pytest.mark.parametrize(
    "where,name,files",
    [
        ("train", "train/_annotations.coco.json", ("a.jpg", "b.jpg", "c.jpg")),
        ("train2017", "annotations/instances_train2017.json", ("a.jpg", "b.jpg", "c.jpg")),
        (".", "annotations/instances_default.json", ("x/1.jpg", "y/1.jpg", "z.jpg")),
        ("JPEGImages", "labels.json", ("a.jpg", "b.jpg", "c.jpg")),
        ("data", "annotations/train.json", ("train/a.jpg", "train/b.jpg", "train/c.jpg")),
    ],
)
def test_own_layouts(tmp_path, where, name, files):
    pytest.importorskip("pycocotools")
    root = annotated(tmp_path/"d", [ann(1, 7), ann(2, 3)], where=where, name=name, files=files)
    prepare_coco(root)
    right(root)

def test_sizes_that_are_missing_and_names_as_ids(tmp_path):
    pytest.importorskip("pycocotools")
    root = annotated(
        tmp_path / "d",
        [ann("one", "s"), ann("two", "r")],
        [{"id": "r", "name": "rust"}, {"id": "s", "name": "leaf spot"}],
        height=None,
    )
    found = json.loads((root/"annotations"/"instances_train.json").read_text())
    for i,n in zip(found["images"], ("one", "two", "three"), strict=True): i["id"] = n
    (root/"annotations"/"instances_train.json").write_text(json.dumps(found))
    prepare_coco(root)
    right(root)

@pytest.mark.trouble(
    "Annotations with boxes and no outlines",
    "Image-level labels can be had of them, masks cannot",
    "`wsss-data to-voc coco FOLDER`: the dataset trains, and has no masks to score with",
)
@pytest.mark.parametrize("empty", ["-", None, []])
def test_boxes_only(tmp_path, call, empty):
    root = annotated(tmp_path/"d", [ann(1, 7, segmentation=empty), ann(2, 3, segmentation=empty)])
    status,out,err = call("wsss-data", "to-voc", "coco", root, "--labels", "annotations")
    assert (status, err) == (0, "") and "boxes only, and so labels but no mask" in out
    right(root, masks=False)
    assert not open_dataset(root).has_masks

def test_train_and_val_of_the_same_names(tmp_path):
    pytest.importorskip("pycocotools")
    root = tmp_path/"d"
    for split in ("train", "valid"):
        annotated(root, [ann(1, 7), ann(2, 3)], where=split, name=f"{split}/_annotations.coco.json")
    write_image(root/"valid"/"a.jpg", np.full((64,64,3), 200, np.uint8))
    prepare_coco(root)
    right(root)
    train,val = (open_dataset(root, s, masks=True) for s in ("train", "val"))
    assert not set(train.ids) & set(val.ids) and [i.image.mean().round() for i in (train[0], val[0])] == [90, 200]

def test_a_table_of_categories(tmp_path, call, fails):
    pytest.importorskip("pycocotools")
    root = annotated(
        tmp_path / "d",
        [ann(1, 7), ann(2, 3)],
        [{"id": 0, "name": "plants"}, *({**c, "supercategory": "plants"} for c in CATEGORIES)],
    )
    assert call("wsss-data", "to-voc", "coco", root)[0] == 0
    right(root)  # the heading "plants" is no class
    assert (root / "categories.csv").read_text().splitlines() == [
        "category,class,objects",
        "plants,,0",
        "rust,rust,1",
        "leaf spot,leaf spot,1",
    ]
    (tmp_path/"t.csv").write_text("category,class\nplants,\nrust,ill\nleaf spot,ill\n")
    assert "remove this folder to make them anew" in fails(
        "wsss-data", "to-voc", "coco", root, "--classes", tmp_path / "t.csv"
    )
    shutil.rmtree(root/"SegmentationClass")
    assert call("wsss-data", "to-voc", "coco", root, "--classes", tmp_path/"t.csv")[0] == 0
    ds = open_dataset(root, masks=True)
    assert ds.classes == ("background", "ill") and [i.image_labels.tolist() for i in ds] == [[1],[1],[0]]
    (tmp_path/"t.csv").write_text("category,class\nrost,ill\n")
    assert "t.csv: line 2: unknown category 'rost': did you mean rust?" in fails(
        "wsss-data", "to-voc", "coco", root, "--classes", tmp_path / "t.csv"
    )
    (tmp_path/"t.csv").write_text("category,class\nrust,ill\n")
    assert "t.csv: has no line for category 'plants'; write 'plants,CLASS'" in fails(
        "wsss-data", "to-voc", "coco", root, "--classes", tmp_path / "t.csv"
    )
    assert "has classes of its own" in refused(open_dataset, f"coco:{root}")

def test_what_cannot_be_prepared_is_named(tmp_path):
    pytest.importorskip("pycocotools")
    root = annotated(tmp_path/"d", [ann(1, 7)])
    (root/"images"/"b.jpg").unlink()
    assert "instances_train.json: the photo b.jpg is nowhere in" in refused(prepare_coco, root)
    root = annotated(tmp_path/"e", [ann(1, 9)])
    assert "category 9, which is not among its categories" in refused(prepare_coco, root)
    root = annotated(tmp_path/"f", [ann(1, 7, segmentation={"size":[64,64], "counts":"0n2"})])
    assert "instances_train.json: image 1: has an object whose outline cannot be drawn" in refused(prepare_coco, root)

def test_compressed_runs_are_those_of_coco(tmp_path):
    "Against the decoder of the format's authors, on random masks"
    runs,rng = pytest.importorskip("pycocotools.mask"),np.random.RandomState(0)
    for k in range(40):
        truth = (rng.rand(*rng.randint(1, 70, 2)) < rng.rand()).astype(np.uint8)
        if k%2: truth = np.kron(truth[:9,:9], np.ones((7,11), np.uint8))
        counts = runs.encode(np.asfortranarray(truth))["counts"].decode()
        root = annotated(tmp_path/str(k), [ann(1, 7, segmentation={"size":[*truth.shape], "counts":counts})], files=())
        found = json.loads((root/"annotations"/"instances_train.json").read_text())
        found["images"] = [{"id":1, "file_name":"a.jpg", "height":truth.shape[0], "width":truth.shape[1]}]
        (root/"i.json").write_text(json.dumps(found))
        objects = [o._replace(category=1) for o in read_coco_file(root/"i.json").objects[1]]
        assert (coco_mask(objects, truth.shape) == truth).all()

def test_coco_2017(tmp_path, call):
    pytest.importorskip("pycocotools")
    numbers = [n for n in range(1, 91) if n not in (12,26,29,30,45,66,68,69,71,83)]
    categories = [{"id":n, "name":c.replace("_", " ")} for n,c in zip(numbers, COCO_CLASSES[1:], strict=True)]
    for k,split in enumerate(("train", "val")):
        annotated(
            tmp_path / "d",
            [ann(1, 90)],
            categories,
            (f"{k + 1:012d}.jpg",),
            f"{split}2017",
            f"annotations/instances_{split}2017.json",
        )
    status,out,_ = call("wsss-data", "to-voc", "coco", tmp_path/"d")
    assert status == 0 and "published" not in out
    ds = open_dataset(f"coco:{tmp_path/'d'}", "train", masks=True)
    assert ds.classes == COCO_CLASSES and ds.ids == ("000000000001",) and set(np.unique(ds[0].mask)) == {0,80}
    assert not check_dataset(f"coco:{tmp_path/'d'}").problems


# %% The same dataset under other names
@pytest.mark.trouble(
    "`holds a run with other settings`: `data`",
    "The folder of the dataset was moved, or is another",
    "Give `--data` the new place: the same images are the same dataset",
)
def test_a_run_knows_its_dataset(call, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path/"data", {"a":"person", "b":"traffic light", "c":"", "d":"person"})

    def go(data, out="run"):
        return call("wsss-run", "baseline", *TINY, "--data", data, "--out", out, "--stages", "train", "--resume")

    assert go("data")[::2] == (0, "")
    (tmp_path/"sub").mkdir()
    (tmp_path/"link").symlink_to("data")
    before = load_checkpoint(Run("run"))["model"]
    for data in ("data/", "./data", tmp_path / "data", f"{tmp_path}/sub/../data/", "link"):
        assert go(data)[::2] == (0, ""), data
    monkeypatch.chdir(tmp_path/"sub")
    assert go("../data", "../run")[::2] == (0, "")
    status,_,err = call("wsss-run", "baseline", *TINY, "--data", "../data", "--out", "../run", "--stages", "evaluate")
    assert (status, err) == (0, "")
    shutil.copytree(tmp_path/"data", tmp_path/"sub"/"data")
    assert "data_folder" in fails(
        "wsss-run", "baseline", *TINY, "--data", "data", "--out", "../run", "--stages", "train", "--resume"
    )
    (tmp_path/"data").rename(tmp_path/"moved")
    assert go("../moved", "../run")[::2] == (0, "")
    (tmp_path/"moved"/"labels.csv").write_text("image,labels\na,person\nb,\nc,\nd,person\n")
    assert "holds a run with other settings" in fails(
        "wsss-run", "baseline", *TINY, "--data", "../moved", "--out", "../run", "--stages", "train", "--resume"
    )
    assert all((load_checkpoint(Run("../run"))["model"][k] == v).all() for k,v in before.items())

@pytest.mark.trouble(
    "A connection broke in the middle of a training",
    "The run saved and ended",
    "The same command with `--resume`",
)
def test_a_hangup_saves(scenes, tmp_path):
    out = tmp_path/"out"
    settings = ("baseline", *TINY, "iters=3000", "log_every=1", "val_every=9999", "save_every=9999")
    process = started(
        "wsss-run", *settings, "--data", scenes, "--out", out, "--stages", "train", start_new_session=True
    )
    import time
    end = time.monotonic()+100
    while not (out/"log.csv").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(.01)
    for _ in range(2): process.send_signal(signal.SIGHUP)  # the shell's and the terminal's
    _,err = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on with --resume" in err.replace("goes on", "go on"), err
    assert load_checkpoint(Run(out))["step"] > 0

def test_nohup_is_respected():
    from wsss_nb.run.loop import graceful_stop
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, old)
