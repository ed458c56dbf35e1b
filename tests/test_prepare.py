"From archives in their true formats, on a server of our own, to datasets on which a method trains."
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import BIN, TINY, run
from miniatures import Coco, Sbd, Voc, pets_archives
from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.data import download
from wsss_nb.data.check import check_dataset
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import read_image_labels
from wsss_nb.data.prepare import CocoObject, coco_mask, read_coco
from wsss_nb.data.voc import COCO_CLASSES, VOC_CLASSES
from wsss_nb.ground.io import read_label, write_image

pytest.importorskip("scipy", reason="SBD's masks are MATLAB files: pip install -e '.[data]'")
pytest.importorskip("pycocotools", reason="COCO's masks are polygons: pip install -e '.[data]'")
AUG = sorted({*Voc.train, *Sbd.train, *Sbd.val}-{*Voc.val})


@pytest.fixture
def get(site, call):
    def get(*argv):
        status,out,err = call("wsss-data", "get", *argv, "--mirror", site.url)
        assert (status, err) == (0, ""), err
        return out
    return get

@pytest.fixture(scope="session")
def data(archives, tmp_path_factory):
    "Everything prepared once; for reading only"
    root = tmp_path_factory.mktemp("prepared")
    for name,data in archives.items():
        folder = root/("coco" if "2014" in name else "pets" if name in pets_archives() else "voc")
        folder.mkdir(exist_ok=True)
        (folder/name).write_bytes(data)
        download.unpack(folder/name, folder)
    from wsss_nb.use.cli import main
    for argv in (("voc", root/"voc"), ("sbd", root/"voc"), ("coco", root/"coco")):
        assert main(["wsss-data", "to-voc", *map(str, argv)]) == 0
    return root


def labels_of(spec, split):
    return {i:y for d in [open_dataset(spec, split)] for i,y in zip(d.ids, map(d.image_labels, range(len(d))))}
def names(y, classes): return [classes[k+1] for k in np.flatnonzero(y)]
def snapshot(folder):
    return {p.relative_to(folder).as_posix():p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
            and "archives" not in p.parts}


# %% VOC and SBD
def test_from_nothing_to_a_run(get, call, here):
    "What the README shows, on a miniature: get, check, run"
    out = get("voc", "sbd", "--out", "data")
    assert "VOC2012test.tar: not there, and needs a login" in out and "train_aug: 32 images (published: 10582)" in out
    status,out,err = call("wsss-data", "check", "voc:data", "--show", "50")
    # the only fault of a miniature is its size
    assert status == 1 and out.count("wrong:") == 1 and out.count("as published") == 3, out
    argv = [a for a in TINY if a not in ("--preset", "shapes")]
    status,out,err = call("wsss-run", "baseline", "--data", "voc:data", "--out", "out", "--preset", "shapes", *argv,
                          "train_split=train_aug")
    assert (status, err) == (0, ""), err
    assert json.loads((here/"out"/"result.json").read_text())["images"] == {"train":32, "val":10}


def test_voc_labels(data):
    for split,ids in dict(train=Voc.train, val=Voc.val, train_aug=AUG).items():
        found = labels_of(f"voc:{data/'voc'}", split)
        assert list(found) == ids and all(set(names(y, VOC_CLASSES)) == set(Voc.objects(i)) for i,y in found.items())
    voc = data/"voc"/"VOCdevkit"/"VOC2012"
    sources = [read_image_labels(voc, VOC_CLASSES, None, AUG, s)
               for s in ("labels.csv", "cls_labels_onehot.npy", "Annotations")]
    assert all((sources[0][i] == s[i]).all() for s in sources for i in AUG)
    published = np.load(voc/"cls_labels_onehot.npy", allow_pickle=True).item()  # as other repositories read it
    assert published["2007_000000"].shape == (20,) and published["2007_000000"].dtype == np.float32


def test_augmented_masks(data):
    "VOC's where there is one, SBD's elsewhere; nothing of val in training"
    aug,val = (open_dataset(f"voc:{data/'voc'}", "train_aug", masks=True),
               open_dataset(f"voc:{data/'voc'}", "val", masks=True))
    assert len(AUG) == 32 and not {*aug.ids} & {*val.ids}
    for item in aug: assert (item.mask == (Voc.mask if item.id in Voc.train else Sbd.mask)(item.id)).all(), item.id
    for item in val: assert (item.mask == Voc.mask(item.id)).all(), item.id


def test_masks_of_sbd_first(data, tmp_path, call):
    root = shutil.copytree(data/"voc", tmp_path/"voc")
    status,_,err = call("wsss-data", "to-voc", "sbd", root, "--masks", "sbd")
    assert status == 2 and "holds files made with masks=voc, not masks=sbd; remove this folder" in err
    shutil.rmtree(root/"VOCdevkit"/"VOC2012"/"SegmentationClassAug")
    assert call("wsss-data", "to-voc", "sbd", root, "--masks", "sbd")[0] == 0
    aug,val = open_dataset(f"voc:{root}", "train_aug", masks=True),open_dataset(f"voc:{root}", "val", masks=True)
    for item in aug:
        assert (item.mask == (Sbd.mask if item.id in Sbd.train+Sbd.val else Voc.mask)(item.id)).all(), item.id
    for item in val: assert (item.mask == Voc.mask(item.id)).all(), item.id


def test_labels_from_masks(data, tmp_path, call):
    root = shutil.copytree(data/"voc", tmp_path/"voc")
    assert call("wsss-data", "to-voc", "sbd", root, "--labels", "masks")[0] == 0
    found = labels_of(f"voc:{root}", "train_aug")
    # the persons were not drawn
    assert all(names(y, VOC_CLASSES) == [VOC_CLASSES[Voc.label(i)]] for i,y in found.items())
    notes = check_dataset(f"voc:{root}").notes
    assert any("Annotations" in f.file and "has other labels for" in f.what for f in notes)


def test_someone_elses_labels_are_kept(data, tmp_path, call):
    root = shutil.copytree(data/"voc", tmp_path/"voc")
    voc = root/"VOCdevkit"/"VOC2012"
    np.save(voc/"cls_labels_onehot.npy", {i:np.eye(20, dtype=np.float32)[0] for i in AUG})
    before = (voc/"cls_labels_onehot.npy").read_bytes()
    assert "cls_labels_onehot.npy: somebody else's, kept" in call("wsss-data", "to-voc", "voc", root)[1]
    assert (voc/"cls_labels_onehot.npy").read_bytes() == before


def test_sbd_before_voc(fails, site, here):
    assert ("voc:ROOT needs the folder VOC2012" in fails("wsss-data", "get", "sbd", "--out", "data",
                                                         "--mirror", site.url))
    assert site.asked == []


def test_damaged_masks_are_named_and_the_others_made(data, tmp_path, fails):
    root = shutil.copytree(data/"voc", tmp_path/"voc")
    voc,sbd = root/"VOCdevkit"/"VOC2012",root/"benchmark_RELEASE"/"dataset"/"cls"
    shutil.rmtree(voc/"SegmentationClassAug")
    (sbd/f"{Sbd.train[0]}.mat").write_bytes((sbd/f"{Sbd.train[0]}.mat").read_bytes()[:200])
    (sbd/f"{Sbd.train[1]}.mat").unlink()
    (voc/"JPEGImages"/f"{Sbd.train[2]}.jpg").unlink()
    line = fails("wsss-data", "to-voc", "sbd", root)
    assert f"{Sbd.train[0]}.mat: cannot be read as a mask of SBD" in line
    assert "3 masks could not be made, this is the first; the other 39 are there" in line
    assert len(list((voc/"SegmentationClassAug").glob("*.png"))) == 39


# %% COCO
@pytest.fixture(scope="module")
def truth(data):
    "COCO's own reader"
    from pycocotools.coco import COCO
    return {split:COCO(data/"coco"/"annotations"/f"instances_{split}2014.json") for split in ("train","val")}

@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_masks(data, truth, split):
    "Every mask equals the objects painted by COCO's own tools, large ones first"
    coco,ds = truth[split],open_dataset(f"coco:{data/'coco'}", split, masks=True)
    annotated = sorted(coco.loadImgs([i for i in coco.getImgIds() if coco.getAnnIds(i)]), key=lambda i: i["file_name"])
    assert [f"{i}.jpg" for i in ds.ids] == [i["file_name"] for i in annotated] and len(ds) < len(coco.getImgIds())
    contiguous = {n:k+1 for k,n in enumerate(sorted(coco.getCatIds()))}
    crowds = 0
    for item,image in zip(ds, annotated, strict=True):
        expected = np.zeros(item.image.shape[:2], np.uint8)
        for a in sorted(coco.loadAnns(coco.getAnnIds(image["id"])), key=lambda a: -a["area"]):
            expected[coco.annToMask(a) > 0] = contiguous[a["category_id"]]
            crowds += a["iscrowd"]
        assert (item.mask == expected).all(), item.id
        assert set(np.flatnonzero(item.image_labels)+1) == set(np.unique(expected))-{0}
    assert crowds and contiguous[90] == 80


def test_coco_grey_photos_have_three_channels(data):
    train = open_dataset(f"coco:{data/'coco'}")
    grey = [i for i,im in enumerate(Coco.train["images"]) if i%7 == 3 and im["file_name"][:-4] in train.ids]
    item = next(o for o in train if o.id == Coco.train["images"][grey[0]]["file_name"][:-4])
    assert item.image.ndim == 3 and (item.image[...,0] == item.image[...,2]).all()


def test_coco_options(data, tmp_path, call, fails):
    root = shutil.copytree(data/"coco", tmp_path/"coco")
    assert "holds files made with crowd=class" in fails("wsss-data", "to-voc", "coco", root, "--crowd", "ignore")
    shutil.rmtree(root/"SegmentationClass")
    assert call("wsss-data", "to-voc", "coco", root, "--crowd", "ignore", "--labels", "annotations")[0] == 0
    assert any((read_label(p) == IGNORE_INDEX).any() for p in (root/"SegmentationClass").iterdir())
    named = {}
    for a in Coco.train["annotations"]: named.setdefault(a["image_id"], set()).add(a["category_id"])
    assert ({i:len(names(y, COCO_CLASSES)) for i,y in labels_of(f"coco:{root}", "train").items()}
            == {f"COCO_train2014_{n:012d}":len(c) for n,c in named.items()})


def test_get_coco(get, call, here, data):
    "The same as unpacked by hand; annotations that are not needed stay packed; archives can be removed"
    get("coco", "--out", "coco", "--remove-archives")
    assert (sorted(p.name for p in (here/"coco"/"annotations").iterdir())
            == ["instances_train2014.json", "instances_val2014.json"])
    assert sorted(p.suffixes[-2:] for p in (here/"coco"/"archives").iterdir()) == [[".unpacked", ".json"]]*3
    made,by_hand = snapshot(here/"coco"),snapshot(data/"coco")
    assert all(made[k] == by_hand[k] for k in made)
    assert sum(k.endswith(".png") for k in made) == sum(k.endswith(".png") for k in by_hand) > 50
    status,out,err = call("wsss-data", "check", "coco:coco")
    assert status == 1 and out.count("wrong:") == 1 and out.count("as published") == 3, out
    assert "(published: 82081)" in out, out


def test_coco_part_of_val(data):
    part,val = (open_dataset(f"coco:{data/'coco'}", s).ids for s in ("val_part","val"))
    assert part == val[:5000]


def test_a_photo_of_another_size(data, tmp_path, fails):
    root = shutil.copytree(data/"coco", tmp_path/"coco")
    shutil.rmtree(root/"SegmentationClass")
    write_image(root/"train2014"/Coco.train["images"][0]["file_name"], np.zeros((9,9,3), np.uint8))
    assert "the mask has 64x48 pixels, its image 9x9" in fails("wsss-data", "to-voc", "coco", root)


def test_huge_annotation_files_are_packed(tmp_path):
    "Polygons take little more than their numbers: 8 bytes each, where lists of Python's take 40"
    import tracemalloc
    n,points = 3000,60
    polygon = np.round(np.random.RandomState(0).uniform(0, 600, 2*points), 2).tolist()
    objects = [Coco.val["annotations"][0] | {"segmentation":[polygon]}]*n
    (tmp_path/"big.json").write_text(json.dumps(Coco.val | {"annotations":objects}))
    tracemalloc.start()
    _,objects = read_coco(tmp_path/"big.json")
    held,peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, objects.values())) == n
    assert held < n*(2*points*8+600) and peak < 3*(tmp_path/"big.json").stat().st_size, (held, peak)


def test_small_over_large_whatever_the_order():
    def box(x0, y0, x1, y1, area, category):
        return CocoObject(1, category, area, False, [np.array([x0,y0, x1,y0, x1,y1, x0,y1], float)])
    objects = [box(0,0,20,20,400,1), box(5,5,15,15,100,2), box(8,8,12,12,16,3)]
    for _ in range(6):
        random.Random(0).shuffle(objects)
        mask = coco_mask(objects, (20,20))
        assert [mask[10,10], mask[6,6], mask[1,1]] == [3,2,1]


# %% Interruptions
@pytest.mark.parametrize("kind", ["sbd", "coco"])
def test_killed_and_called_again(data, tmp_path, kind):
    "However often it is killed, in the end the folder is that of an undisturbed run"
    where = {"sbd":"voc", "coco":"coco"}[kind]
    root = shutil.copytree(data/where, tmp_path/where)
    expected = snapshot(root)
    for p in (*root.rglob("SegmentationClassAug/*"), *(root/"SegmentationClass").glob("*"), *root.rglob("labels.csv"),
              *root.rglob("cls_labels_onehot.npy"), *root.rglob("train_aug.txt")):
        p.unlink()
    rng,killed = random.Random(7),0
    for _ in range(3):
        child = subprocess.Popen([BIN/"wsss-data", "to-voc", kind, root, "--workers", "1"], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        begin,count = time.monotonic(),len(list(root.rglob("*.png")))
        while (child.poll() is None and len(list(root.rglob("*.png"))) < count+rng.randint(2, 9)
               and time.monotonic() < begin+60):
            time.sleep(.002)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
    assert killed, "never killed in the middle"
    assert run("wsss-data", "to-voc", kind, root)[0] == 0
    for p in root.rglob(".*"):
        p.unlink()  # what a killed process was writing; no reader takes it for a file of the dataset
    assert snapshot(root) == expected


def test_interrupted_download_goes_on(site, call, here):
    site.faults = ["cut 5000", *["status 404"]*9]
    status,_,err = call("wsss-data", "get", "voc", "--out", "data", "--mirror", site.url)
    assert status == 2 and "the same command goes on" in err and len(err.splitlines()) == 1
    site.faults = []
    assert call("wsss-data", "get", "voc", "--out", "data", "--mirror", site.url)[0] == 0
    assert [r for _,r,_ in site.asked][-1] == "bytes=5000-"
    asked = len(site.asked)
    assert call("wsss-data", "get", "voc", "--out", "data", "--mirror", site.url)[0] == 0
    assert len(site.asked) == asked


def test_an_archive_of_something_else(site, fails, here, archives):
    site.files["/train2014.zip"] = archives["val2014.zip"]
    assert "train2014.zip: holds 0 files train2014/*.jpg, the published one 45" in \
        fails("wsss-data", "get", "coco", "--out", "coco", "--mirror", site.url)


def test_too_small_a_disk(site, fails, here, monkeypatch):
    "Said before anything is downloaded"
    monkeypatch.setitem(download.ARCHIVES, "voc",
                        {n:a._replace(gigabytes=a.url and 10**6) for n,a in download.ARCHIVES["voc"].items()})
    assert "GB left, VOCtrainval_11-May-2012.tar and what is in it need 2000000.0 more" in \
        fails("wsss-data", "get", "voc", "--out", "data/voc", "--mirror", site.url)
    assert site.asked == []


def test_test_images_put_there_by_hand(site, call, here, archives):
    (here/"data"/"archives").mkdir(parents=True)
    (here/"data"/"archives"/"VOC2012test.tar").write_bytes(archives["VOCtrainval_11-May-2012.tar"])
    assert "VOC2012test.tar: " in (out := call("wsss-data", "get", "voc", "--out", "data", "--mirror", site.url)[1])
    assert "needs a login" not in out


def test_out_of_memory_in_a_worker(tmp_path):
    from wsss_nb.ground.cores import map_on_cores
    with pytest.raises(UserError, match="a worker process died"): list(map_on_cores(os._exit, [1]*100, workers=2))


# %% Saliency
def test_saliency(data, tmp_path, call, fails):
    root = shutil.copytree(data/"voc", tmp_path/"voc")
    for i in AUG[:-1]:
        write_image(tmp_path/"maps"/f"{i}.png", np.full((30,60), 7, np.uint8)+np.arange(60, dtype=np.uint8))
    status,out,_ = call("wsss-data", "to-voc", "saliency", f"voc:{root}", "--source", tmp_path/"maps")
    assert status == 0 and "31 maps" in out
    item = open_dataset(f"voc:{root}", "train_aug")[0]
    assert item.saliency.shape == (30,60) and item.saliency[0,0] == pytest.approx(7/255)
    assert f"1 training images have no map, such as {AUG[-1]}" in call("wsss-data", "check", f"voc:{root}")[1]
    write_image(tmp_path/"maps"/f"{AUG[-1]}.png", np.arange(75, dtype=np.uint8).reshape(5,5,3))
    assert "has colours; save the saliency map as greyscale" in \
        fails("wsss-data", "to-voc", "saliency", f"voc:{root}", "--source", tmp_path/"maps")
    assert "--source is missing" in fails("wsss-data", "to-voc", "saliency", f"voc:{root}")


# %% Commands
@pytest.mark.parametrize("argv,words", [
    (["get", "vok", "--out", "d"], "did you mean voc"), (["get", "voc"], "--out is missing"),
    (["get"], "required: kinds"), (["get", "voc", "--out", "d", "--stall", "0"], "--stall 0: must be above 0"),
    (["get", "voc", "--out", "d", "--mirror", "ftp://x"], "ftp://x/VOCtrainval_11-May-2012.tar: is no address"),
    (["to-voc", "imagenet", "d"], "unknown kind of data 'imagenet'"),
    (["to-voc", "voc", "nowhere"], "nowhere: no such folder"),
    (["to-voc", "voc", "."], "unpack the VOC 2012 archive there"),
    (["to-voc", "pets", "."], "images: no such folder; unpack images.tar.gz there"),
    (["to-voc", "pets", ".", "--labels", "masks"], "means nothing for pets, which knows no option"),
    (["get", "pet", "--out", "d"], "did you mean pets"), (["check", "pets:nowhere"], "nowhere: no such folder"),
    (["to-voc", "coco", "nowhere"], "unpack the archives of COCO 2014 there"),
    (["to-voc", "voc", ".", "--masks", "sbd"], "--masks sbd: means nothing for voc"),
    (["to-voc", "coco", ".", "--crowd", "none"], "unknown treatment of crowds 'none'"),
    (["check", "coco:nowhere"], "nowhere: no such folder"), (["check", "shapes"], "made in memory"),
    (["check", ".", "--show", "0"], "--show 0: must be 1 or more")])
def test_wrong_words(fails, here, argv, words): assert words in fails("wsss-data", *argv)


@pytest.mark.parametrize("script", ["voc", "sbd", "coco", "pets", "saliency"])
def test_data_scripts(script):
    path = Path(__file__).parent.parent/"data_scripts"/f"{script}.py"
    assert len(path.read_text().splitlines()) <= 15
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("usage: wsss-data"), done.stderr
