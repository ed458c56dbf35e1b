"The first hour with the kit: own photos become a dataset, predictions are scored, names are found."
import html
import json
import os
import re
import tarfile
import tomllib
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from commands import PART, TINY, chain
from wsss_nb.data.check import check_dataset
from wsss_nb.data.folder import FolderDataset, read_ids
from wsss_nb.data.new import new_dataset
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.ground.io import read_image, read_label, write_image, write_label
from wsss_nb.ground.viz import overlay
from wsss_nb.run.settings import step_settings
from wsss_nb.use.cli import main
from wsss_nb.use.experiment import predict_files
from wsss_nb.use.names import METHODS, get_method


def photo(path, value, size=(40,50)): write_image(path, np.full((*size,3), value, np.uint8))

def split(root, name): return read_ids(root/"ImageSets"/"Segmentation"/f"{name}.txt")

def state(root):
    "Return name, content and time of every file"
    return {p.relative_to(root):(p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}

@pytest.fixture
def pets(tmp_path):
    "A folder per class, whose photos have the same names"
    for k,(name,n) in enumerate((("cat",5), ("guinea pig",5), ("background",3))):
        for i in range(n): photo(tmp_path/"pets"/name/f"{i}.png", 60*k+i)
    return tmp_path/"pets"


# %% A dataset in one go
def test_a_folder_per_class(call, pets):
    status,out,err = call("wsss-data", "new", pets)
    assert (status, err) == (0, "") and "try wsss-data check" in out
    assert (pets/"classes.txt").read_text() == "background\ncat\nguinea pig\n"
    train,val = FolderDataset(pets, "train"),FolderDataset(pets, "val")
    assert (len(train), len(val)) == (10, 3) and not {*train.ids} & {*val.ids}
    assert train.labels["guinea pig_2"].tolist() == [0,1] and train.labels["background_0"].tolist() == [0,0]
    for k in range(2): assert any(train.labels[i][k] for i in train.ids)
    assert os.stat(pets/"JPEGImages"/"cat_1.png").st_ino == os.stat(pets/"cat"/"1.png").st_ino
    assert check_dataset(pets, 1).problems == []

def test_called_again_it_touches_nothing(call, pets):
    assert call("wsss-data", "new", pets)[0] == 0
    (pets/"classes.txt").write_text("background\ncat\nguinea pig\nparrot\n")
    before = state(pets)
    status,out,_ = call("wsss-data", "new", pets, "--seed", "3", "--val", "0.5")
    assert status == 0 and state(pets) == before
    for name in ("classes.txt", "labels.csv", "train.txt", "val.txt"): assert f"{name}: is there already, kept" in out
    (pets/"ImageSets"/"Segmentation"/"val.txt").unlink()
    (pets/"labels.csv").unlink()
    assert call("wsss-data", "new", pets)[0] == 0
    assert state(pets).keys() == before.keys()
    assert {k:v for k,v in state(pets).items() if k.name not in ("val.txt","labels.csv")} == \
           {k:v for k,v in before.items() if k.name not in ("val.txt","labels.csv")}
    assert {p.name:state(pets)[p][0] for p in before if p.name in ("val.txt","labels.csv")} == \
           {p.name:before[p][0] for p in before if p.name in ("val.txt","labels.csv")}

def test_the_same_photo_in_two_folders_shows_both(pets):
    photo(pets/"cat"/"both.png", 222)
    photo(pets/"guinea pig"/"both.png", 222)
    new_dataset(pets)
    assert FolderDataset(pets, "train").labels["both"].tolist() == [1,1]

def test_photos_and_a_table(call, fails, tmp_path):
    root = tmp_path/"photos"
    for n in range(10): photo(root/f"p{n}.jpg", 10*n)
    photo(root/"extra.jpg", 222)
    table = tmp_path/"table.csv"
    table.write_text("image,labels\n"+"".join(f"p{n}.jpg,{('dog','cat dog','')[n%3]}\n" for n in range(10)))
    status,out,err = call("wsss-data", "new", root, "--labels", table, "--val", "0.3")
    assert (status, err) == (0, "")
    assert (root/"classes.txt").read_text().split() == ["background","cat","dog"]
    assert (len(split(root, "train")), len(split(root, "val")), split(root, "test")) == (7, 3, ("extra",))
    assert FolderDataset(root, "val").labels["p1"].tolist() == [1,1]
    assert check_dataset(root, 1).problems == []
    before = state(root)
    assert call("wsss-data", "new", root, "--labels", table)[0] == 0 and state(root) == before
    table.write_text("image,labels\np0,cat\n")
    assert "says something else of 1 images, such as p0" in fails("wsss-data", "new", root, "--labels", table)

def test_a_table_beside_the_photos_under_another_name(tmp_path):
    for n in range(4): photo(tmp_path/f"p{n}.jpg", 10*n)
    (tmp_path/"table.csv").write_text("image,labels\n"+"".join(f"p{n},{('dog','cat')[n%2]}\n" for n in range(4)))
    new_dataset(tmp_path, tmp_path/"table.csv", val=.5)
    assert (tmp_path/"labels.csv").exists() and check_dataset(tmp_path, 1).problems == []
    for p in (tmp_path/"SegmentationClass", tmp_path/"Annotations"): p.mkdir()
    assert len(new_dataset(tmp_path, tmp_path/"table.csv")) > 3

def test_names_of_several_words(tmp_path):
    for n in range(4): photo(tmp_path/"d"/"JPEGImages"/f"p{n}.jpg", 10*n)
    (tmp_path/"d"/"labels.csv").write_text("image,labels\np0,traffic light;\np1,traffic light;car\np2,\np3,car\n")
    new_dataset(tmp_path/"d")
    assert (tmp_path/"d"/"classes.txt").read_text() == "background\ncar\ntraffic light\n"
    assert FolderDataset(tmp_path/"d", "train").classes == ("background","car","traffic light")

def test_what_is_scored_has_a_mask(tmp_path):
    for n in range(10): photo(tmp_path/"JPEGImages"/f"p{n}.png", 10*n)
    for n in (2,3,4,5): write_label(tmp_path/"SegmentationClass"/f"p{n}.png", np.full((40,50), 1, np.uint8))
    (tmp_path/"labels.csv").write_text("image,labels\n"+"".join(f"p{n},a{n%2+1}\n" for n in range(10)))
    (tmp_path/"classes.txt").write_text("background\na1\na2\n")
    new_dataset(tmp_path, val=.3)
    assert len(split(tmp_path, "val")) == 3 and {*split(tmp_path, "val")} <= {f"p{n}" for n in (2,3,4,5)}

@pytest.mark.parametrize("files,options,said", [
    (["a.png","b.png"], [], "give a table image,labels"),
    (["images/a.png","images/b.png"], [], "photos in one folder only (images)"),
    (["train/cat/a.png","train/dog/b.png"], [], "call it on d/train"),
    ([], ["--labels","t.csv"], "no photos"),
    (["a.png"], ["--labels","t.csv"], "'b' has no photo"),
    (["a.png","b.png"], ["--labels","none.csv"], "no such file"),
    (["a.png","b.png"], ["--labels","t.csv","--val","1"], "--val 1"),
    (["a/1.png","b/1.png","b/x.png"], ["--labels","t.csv"], "and 1 more problem"),
])
def test_what_does_not_fit_is_one_line_and_nothing_is_written(fails, here, files, options, said):
    (here/"d").mkdir()
    for n,f in enumerate(files): photo(here/"d"/f, n)
    (here/"t.csv").write_text("image,labels\na,cat\nb,dog\n")
    before = state(here)
    assert said in fails("wsss-data", "new", "d", *options)
    assert state(here) == before

def test_check_goes_on_after_what_cannot_be_read(call, pets, tmp_path):
    "Three things that each used to hide the others"
    new_dataset(pets)
    (pets/"classes.txt").unlink()
    with (pets/"ImageSets"/"Segmentation"/"val.txt").open("a") as f: f.write("nowhere\n")
    (pets/"JPEGImages"/"cat_1.png").unlink()
    (pets/"JPEGImages"/"cat_1.png").write_bytes(b"")
    status,out,_ = call("wsss-data", "check", pets, "--sheet", tmp_path/"sheet.png")
    assert status == 1
    for words in ("classes.txt: no such file", "'nowhere' has no image", "the file is empty", "3 problems"):
        assert words in out
    assert Image.open(tmp_path/"sheet.png").size[0] > 100

def test_the_sheet_shows_labels_and_masks(call, fails, pets, tmp_path):
    new_dataset(pets)
    mask = np.zeros((40,50), np.uint8)
    mask[:,:25] = 2
    for i in FolderDataset(pets, "train").ids: write_label(pets/"SegmentationClass"/f"{i}.png", mask)
    status,out,_ = call("wsss-data", "check", pets, "--sheet", tmp_path/"sheet.png")
    assert "what the kit understood" in out
    plain = np.asarray(Image.open(tmp_path/"sheet.png").convert("RGB"))
    assert (plain == (0,128,0)).all(-1).any()  # the colour of class 2, in the legend
    assert "must end with .png" in fails("wsss-data", "check", pets, "--sheet", "sheet.jpg")


def test_classes_in_another_order_than_the_masks(call, tmp_path):
    "Most masks deny the labels: the cause is told, and the order that mends it"
    for n in range(6):
        photo(tmp_path/"JPEGImages"/f"p{n}.png", 10*n)
        label = np.zeros((40,50), np.uint8)
        label[:9] = n%3+1
        write_label(tmp_path/"SegmentationClass"/f"p{n}.png", label)
    names = ["dog", "cat", "bird"]  # as the masks number them
    (tmp_path/"labels.csv").write_text("image,labels\n"+"".join(f"p{n},{names[n%3]}\n" for n in range(6)))
    assert call("wsss-data", "new", tmp_path)[0] == 0  # writes them in the order of the alphabet
    status,out,_ = call("wsss-data", "check", tmp_path, "--workers", "1", "--json", tmp_path/"found.json")
    first,second = out.splitlines()[:2]
    assert status == 1 and second.endswith("classes.txt: 4 of 6 masks show classes that the labels deny")
    assert first == ("wrong: is classes.txt in the order of the mask numbers? "
                     "Both agree if its lines are: background, dog, cat, bird")
    counts = json.loads((tmp_path/"found.json").read_text())["images_per_class"]
    assert {k:counts["train"][k]+counts["val"][k] for k in names} == dict.fromkeys(names, 2)
    assert "    images with bird 2, cat 2, dog 2" in call("wsss-data", "check", new_lists(tmp_path))[1]
    (tmp_path/"classes.txt").write_text("background\ndog\ncat\nbird\n")
    status,out,_ = call("wsss-data", "check", tmp_path, "--workers", "1")
    assert status == 0 and "order of the mask numbers" not in out

def new_lists(root):
    "Put all images into train"
    lists = root/"ImageSets"/"Segmentation"
    (lists/"train.txt").write_text("".join(f"p{n}\n" for n in range(6)))
    return root


# %% From predictions to scores
@pytest.fixture
def scored(here):
    "Four masks, two predictions"
    for n in range(4):
        label = np.zeros((10,10), np.uint8)
        label[:5] = n%2+1
        write_label(here/"masks"/f"m{n}.png", label)
        if n < 2: write_label(here/"maps"/f"m{n}.png", label*(n == 0))
    (here/"classes.txt").write_text("background\ncat\ndog\n")
    (here/"two.txt").write_text("m0\nm1\n")
    return "wsss-eval", "maps", "masks", "--classes", "classes.txt"

def test_missing_predictions_name_the_options(fails, scored):
    said = fails(*scored)
    assert "no prediction for 2 of 4 images" in said and "--list FILE" in said and "--partial" in said

def test_what_is_there_is_scored_if_told(call, fails, here, scored):
    status,out,err = call(*scored, "--partial", "--json", "partial.json")
    assert (status, err) == (0, "") and "scored: 2 of 4 images; 2 have no prediction" in out
    assert call(*scored, "--list", "two.txt", "--json", "list.json")[0] == 0
    partial,listed = (json.loads((here/f"{k}.json").read_text()) for k in ("partial","list"))
    assert partial.pop("without_prediction") == 2 and partial == listed
    (here/"three.txt").write_text("m0\nm1\nm2\n")
    assert "scored: 2 of 3 images" in call(*scored, "--partial", "--list", "three.txt")[1]
    for p in (here/"maps").iterdir(): p.rename(here/"maps"/f"x{p.name}")
    assert "of none of the 4 images" in fails(*scored, "--partial")

def test_probabilities_go_on_to_the_crf(call, here, scenes, trained):
    photos = sorted((scenes/"JPEGImages").glob("val*"))[:2]
    for p in photos: photo_as(p, here/"photos"/p.name, (60,120))
    status,out,err = call("wsss-predict", trained[0], "--out", "maps", "--probabilities", "--overlay", "photos")
    assert (status, err) == (0, "") and "wsss-crf" in out
    for p in photos:
        with np.load(here/"maps"/f"{p.stem}.npz") as z: probs = z["probs"].astype(np.float32)
        assert probs.shape[1:] == (60,120) and abs(probs.sum(0)-1).max() < .01
        assert (probs.argmax(0) == read_label(here/"maps"/p.name)).mean() > .99
    status,out,err = call("wsss-crf", "photos", "maps", "--out", "refined")
    assert (status, err) == (0, "") and "2 label maps" in out
    assert not list((here/"maps").glob(".*"))

def photo_as(source, target, size):
    "Write a photo in another size, (H,W)"
    target.parent.mkdir(exist_ok=True)
    with Image.open(source) as im: im.resize(size[::-1]).save(target)

def test_an_overlay_names_its_classes(tmp_path):
    class Network(torch.nn.Module):
        "Says class 2 on the left, background on the right"
        classes,config = ("background","cat","dog"),None
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(1))
        def segmentation(self, x):
            logits = torch.zeros(1,3,*x.shape[-2:])
            logits[:,2,:,:x.shape[-1]//2] = 5
            logits[:,0,:,x.shape[-1]//2:] = 5
            return logits
    photo(tmp_path/"a.png", 77, (50,140))
    predict_files(Network(), [tmp_path/"a.png"], tmp_path/"out", overlays=True)
    shown,label = read_image(tmp_path/"out"/"a_overlay.png"),read_label(tmp_path/"out"/"a.png")
    assert (shown[:50,:140] == overlay(read_image(tmp_path/"a.png"), label)).all()
    strip = shown[54:]
    assert (strip == (0,128,0)).all(-1).any() and not (strip == (128,0,0)).all(-1).any()


# %% VOC's test server
@pytest.fixture
def voc(here, trained, scenes):
    "A miniature of VOC's test split, without labels and masks, and a published file of 21 classes"
    root = here/"VOCdevkit"/"VOC2012"
    for n in range(3): photo(root/"JPEGImages"/f"2008_00000{n}.jpg", 50*n, (32,40+n))
    (root/"ImageSets"/"Segmentation").mkdir(parents=True)
    (root/"ImageSets"/"Segmentation"/"test.txt").write_text("".join(f"2008_00000{n}\n" for n in range(3)))
    return here

@pytest.fixture
def voc_run(tmp_path_factory):
    "A run on a folder with VOC's classes"
    root = tmp_path_factory.mktemp("run")
    for n in range(4): photo(root/"data"/"JPEGImages"/f"p{n}.png", 50*n)
    (root/"data"/"labels.csv").write_text("image,labels\n"+"".join(f"p{n},{('cat','dog')[n%2]}\n" for n in range(4)))
    (root/"data"/"classes.txt").write_text("\n".join(VOC_CLASSES)+"\n")
    new_dataset(root/"data")
    where = "--data", str(root/"data"), "--out", str(root/"run")
    assert main(["wsss-run", "baseline", *where, "--stages", "train", *TINY]) == 0
    return root/"run"

def test_the_archive_of_the_server(call, voc, voc_run):
    data = "--data", "voc:VOCdevkit", "--split", "test"
    status,out,err = call("wsss-predict", voc_run, *data, "--server", "results.tgz")
    assert (status, err) == (0, ""), err
    assert "results.tgz: 3 label maps" in out and "as published 1456" in out
    with tarfile.open("results.tgz") as tar:
        assert tar.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/2008_00000{n}.png" for n in range(3)]
        for n,name in enumerate(tar.getnames()):
            with Image.open(tar.extractfile(name)) as im:
                assert (im.mode, im.size) == ("P", (40+n,32)) and np.asarray(im).max() <= 20
    assert sorted(p.name for p in voc.iterdir()) == ["VOCdevkit","results.tgz"]
    assert call("wsss-predict", voc_run, *data, "--server", "b.tgz", "--out", "maps")[0] == 0
    assert len([*(voc/"maps").glob("*.png")]) == 3

def test_what_the_server_would_not_take(fails, voc, voc_run, trained, scenes):
    data = "--data", "voc:VOCdevkit", "--split", "test"
    assert "other classes than VOC" in fails("wsss-predict", trained[0], *data, "--server", "r.tgz")
    assert "must end with .tgz" in fails("wsss-predict", voc_run, *data, "--server", "r.zip")
    assert "PASCAL VOC alone" in fails("wsss-predict", voc_run, "--data", scenes, "--server", "r.tgz")
    assert "goes with --data" in fails("wsss-predict", voc_run, "a.png", "--server", "r.tgz")
    assert "not both" in fails("wsss-predict", voc_run, "a.png", *data, "--server", "r.tgz")
    assert "has no files" in fails("wsss-predict", voc_run, "--data", "shapes:n=2", "--out", "o")
    (voc/"VOCdevkit"/"VOC2012"/"JPEGImages"/"2008_000001.jpg").write_bytes(b"damaged")
    assert "2008_000001" in fails("wsss-predict", voc_run, *data, "--server", "r.tgz")
    assert not [*voc.glob("*.tgz"), *voc.glob(".*")]

def test_a_split_is_predicted_and_scored(call, here, scenes, trained):
    assert call("wsss-predict", trained[0], "--data", scenes, "--split", "val", "--out", "maps")[0] == 0
    lists = scenes/"ImageSets"/"Segmentation"
    names = "--classes", scenes/"classes.txt", "--list", lists/"val.txt"
    assert call("wsss-eval", "maps", scenes/"SegmentationClass", *names)[0] == 0


# %% Names
def test_the_overview_fits_on_a_screen(call):
    status,out,err = call("wsss-list")
    assert (status, err) == (0, "") and len(out.splitlines()) < 45 and max(map(len, out.splitlines())) < 120
    for words in ("methods:", "toco", "beco", "vit_toy", "voc:ROOT", "wsss-list settings METHOD", "wsss-list all"):
        assert words in out
    assert len(call("wsss-list", "all")[1].splitlines()) > 400

def test_lists_are_searched(call, fails):
    names = call("wsss-list", "backbones", "MIT_")[1].split()
    assert names == [n for n in call("wsss-list", "backbones")[1].split() if "mit_" in n] and len(names) > 5
    assert call("wsss-list", "presets", "toco")[1].splitlines() == \
           [l for l in call("wsss-list", "presets")[1].splitlines() if l.startswith("toco ")]
    found = call("wsss-list", "settings", "toco", "iters")[1].splitlines()
    assert found and all("iters" in l for l in found)
    assert "backbones:\n  mit_b0" in call("wsss-list", "all", "mit_b0")[1]
    assert "nothing in this list" in fails("wsss-list", "backbones", "nowhere")
    assert "one list at a time" in fails("wsss-list", "methods", "backbones")

def test_settings_of_a_method(call, here):
    for method in ("toco", "deeplab", "ktse", "toco+irn+beco"):
        status,out,err = call("wsss-list", "settings", method)
        assert (status, err) == (0, "") and "=" in out
    lines = call("wsss-list", "settings", "toco")[1].splitlines()
    iters = next(l for l in lines if l.startswith("iters="))
    from wsss_nb.use.names import get_method
    presets = get_method("toco").presets
    for preset,changes in presets.items():
        if "iters" in changes: assert f"{preset} {changes['iters']}" in iters
    assert "steps" in iters

@pytest.mark.parametrize("argv,said", [
    ("wsss-run mit_b1 --data shapes --out x", "that is a backbone (--backbone mit_b1)"),
    ("wsss-run toco+mit_b1 --data shapes --out x", "that is a backbone (--backbone mit_b1)"),
    ("wsss-run photos --data shapes --out x", "that is a preset (--preset photos"),
    ("wsss-run toco --data photos --out x", "that is a preset (--preset photos"),
    ("wsss-run toco --data tscd --out x", "that is a method (wsss-run tscd"),
    ("wsss-run toco --data shapes:n=2 --out x --preset deeplab", "that is a part"),
    ("wsss-run toco --data shapes:n=2 --out x --preset mit_b1", "that is a backbone"),
    ("wsss-run toco --data shapes:n=2 --out x --stages photos", "that is a preset"),
    ("wsss-list mit_b1", "that is a backbone"),
    ("wsss-list toco", "wsss-list settings toco"),
    ("wsss-run tocco --data shapes --out x", "did you mean toco"),
    ("wsss-run toco --data voc --out x", "did you mean voc:ROOT"),
])
def test_a_name_in_the_wrong_place(fails, here, argv, said):
    assert said in fails(*argv.split())


def test_a_segmenter_that_never_learnt_is_told(call, scenes, tmp_path):
    "When training begins, and to who predicts with it; not where its loss begins, nor of a part that does not segment"
    photo = sorted((scenes/"JPEGImages").iterdir())[0]
    for start, told in (("5", True), ("0", False)):
        out = tmp_path/start
        argv = [*TINY, f"seg_start={start}"]
        status, _, err = call("wsss-run", "baseline", "--data", scenes, "--out", out, "--stages", "train", *argv)
        assert status == 0 and ("the segmenter does not learn in iters=2 steps" in err) == told
        status, _, err = call("wsss-predict", out, photo, "--out", out/"labels")
        assert status == 0 and ("predictions mean nothing" in err) == told


# %% Runs that cannot have learnt
FEW = [s for s in TINY if not s.startswith(("iters", "seg_start", "warmup_iter"))]

def log_of(err): return [l for l in err.splitlines() if not l.startswith("val: all")]

def test_steps_go_with_the_length(call, scenes, here):
    "Of 6 steps in place of 600 the segmenter gets as large a share; what is given stays, and a run goes on as it began"
    argv = ("wsss-run", "baseline", "--data", scenes, "--stages", "train", *FEW)
    for out,more,said,values in (("a", (), "warmup_iter 20 -> 0, seg_start 80 -> 1, with iters 600 -> 6; ", (0, 1)),
                                 ("b", ("seg_start=5", "warmup_iter=2"), "the segmenter does not learn", (2, 5)),
                                 ("c", ("warmup_iter=2",), "seg_start 80 -> 1, with iters 600 -> 6; ", (2, 1))):
        status,_,err = call(*argv, *more, "iters=6", "--out", out)
        assert status == 0 and err.startswith(said) and len(log_of(err)) == 1, err
        settings = tomllib.loads((here/out/"config.toml").read_text())["settings"]
        assert (settings["warmup_iter"], settings["seg_start"]) == values
        again = call(*argv, *more, "iters=6", "--out", out, "--resume")
        assert again[0] == 0 and again[2] == err
    warned = [json.loads((here/out/"result.json").read_text()).get("warnings", []) for out in "abc"]
    assert [len(w) for w in warned] == [0, 1, 0] and warned[1][0].startswith("the segmenter does not learn")

def test_steps_of_a_part_go_with_its_own_length(call, scenes, here):
    every = *PART["ktse"],*PART["irn"],*PART["beco"]
    changes = [s for s in every if not s.startswith(("ktse.start", "beco.warmup", "beco.mask_start"))]
    argv = "wsss-run", "ktse", "--data", scenes, "--stages", "train", "--out", "out", *chain()[:2]
    status,_,err = call(*argv, "--set", *changes)
    assert status == 0 and [l.partition(";")[0] for l in log_of(err)] == \
           ["ktse.start 120 -> 2, with ktse.iters 300 -> 4",
            "beco.warmup 1 -> 0, beco.mask_start 1 -> 0, with beco.iters 300 -> 4"]

def test_every_method_declares_its_steps():
    "What is a step of the training is marked so, and goes with a length that there is; what is none is not"
    steps = {(name, k) for name in METHODS for k in step_settings(get_method(name).config)}
    known = "warmup_iter", "seg_start", "ptc_start", "contrast_start", "proto_from", "ramp_iters", "final_from"
    assert {k for name,k in steps if name == "cpdgl"} == {*known}
    spelt = re.compile(r"_start$|^start$|_from$|^warmup|_drops$|^ramp_iters$")
    for name in METHODS:
        config = get_method(name).config()
        inside = [getattr(config, f.name) for f in fields(config)]
        for part in (config, *filter(is_dataclass, inside)):
            marks = step_settings(type(part))
            assert all(hasattr(part, m.length) for m in marks.values())
            unmarked = {f.name for f in fields(part) if spelt.search(f.name)} - {*marks}
            assert not unmarked, (name, unmarked)

def test_a_run_that_says_one_class_is_told(call, scenes, here):
    "By who evaluates, in result and report, and by who predicts; the report says it before any score"
    argv = ("wsss-run", "baseline", "--data", scenes, "--out", "out")
    assert call(*argv, "--stages", "train", *FEW, "iters=2", "seg_start=2", "warmup_iter=1")[0] == 0
    state = torch.load(here/"out"/"checkpoints"/"last.pt", weights_only=True)
    last = [k for k in state["model"] if k.startswith("decoder")][-1]
    state["model"][last].zero_()  # the logits of all classes are alike, and the first of them wins
    torch.save(state, here/"out"/"checkpoints"/"last.pt")
    status,_,err = call(*argv, "--stages", "evaluate", all=True)
    told = json.loads((here/"out"/"result.json").read_text())["warnings"]
    assert status == 0 and [l for l in err.splitlines() if l in told] == told and len(told) == 2, err
    assert told[0].startswith("the segmenter does not learn")
    assert re.match(r"val: all \d+ predictions are background everywhere", told[1])
    assert "see in the report" not in told[1] and "in report/picture.png whether the seeds show" in told[1]
    page = (here/"out"/"report"/"index.html").read_text()
    assert all(page.index(html.escape(line)) < page.index("class=card>") for line in told)
    photos = sorted((scenes/"JPEGImages").iterdir())[:3]
    status,_,err = call("wsss-predict", "out", *photos, "--out", "labels", all=True)
    of_the_run = [told[0], f"this run's own evaluation, {told[1]}"]  # said once: it is so of these photos as well
    assert status == 0 and err.splitlines() == of_the_run
    status,_,err = call("wsss-predict", "out", photos[0], "--out", "labels", all=True)
    assert status == 0 and err.splitlines() == of_the_run
    (here/"out"/"result.json").write_text(json.dumps({"warnings":told[:1]}))
    status,_,err = call("wsss-predict", "out", *photos, "--out", "labels", all=True)
    assert status == 0 and err.splitlines()[0] == told[0] and err.splitlines()[1].startswith("labels: all 3 pred")
    status,_,err = call("wsss-predict", "out", *photos[:2], "--out", "labels", all=True)
    assert status == 0 and err.splitlines() == told[:1]
    (here/"out"/"result.json").write_text("{")
    assert call("wsss-predict", "out", photos[0], "--out", "labels")[0] == 0

def test_random_weights_of_a_published_preset_are_told_afterwards(call, scenes, here):
    "Whoever asked for them reads nothing when the training begins, but in its report, and who predicts reads it too"
    argv = ("--data", scenes, "--out", "out", "--init", "none", "--backbone", "vit_toy", "--preset", "voc", *FEW[2:],
            "aux_layer=-2", "iters=1", "batch_size=2", "train_split=train", "crf=none")
    status,_,err = call("wsss-run", "baseline", *argv)
    assert status == 0 and "random" not in err
    assert "vit_toy begins with random weights" in json.loads((here/"out"/"result.json").read_text())["warnings"][0]
    assert "vit_toy begins with random weights" in (here/"out"/"report"/"index.html").read_text()
    photo = sorted((scenes/"JPEGImages").iterdir())[0]
    assert "vit_toy begins with random weights" in call("wsss-predict", "out", photo, "--out", "labels")[2]


def test_errors_in_notebooks_are_one_line():
    "A kernel that has the kit shows a mistake of its user without a traceback, anything else with it"
    client, v4 = pytest.importorskip("nbclient"), pytest.importorskip("nbformat.v4")
    code = ["from wsss_nb.data.datasets import open_dataset\nopen_dataset('nowhere')", "1/0"]
    code.append("from wsss_nb.ground.failures import one_line_errors\none_line_errors(False)\nopen_dataset('nowhere')")
    notebook = v4.new_notebook(cells=[v4.new_code_cell(c) for c in code])
    client.NotebookClient(notebook, allow_errors=True, timeout=120).execute()
    errors = [next(o for o in c.outputs if o.output_type == "error") for c in notebook.cells]
    assert [e.ename for e in errors] == ["UserError", "ZeroDivisionError", "UserError"]
    assert errors[0].traceback == [f"UserError: {errors[0].evalue}"] and "nowhere" in errors[0].evalue
    assert min(len(e.traceback) for e in errors[1:]) > 1
