"Data that is changed after a run was made from it, or that only has the name of another: nothing old is scored as new."
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from commands import TINY, chain
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.data.shapes import ShapesDataset


@pytest.fixture
def trained(here, call):
    "Return the folder with `data` and a run of the baseline made from it"
    write_voc_folder([ShapesDataset(s, n=4, size=64, masks=True) for s in ("train", "val")], "data")
    status,_,err = call("wsss-run", "baseline", "--data", "data", *TINY, "--out", "out")
    assert status == 0, err
    return here

def times(out): return {f.stem: f.stat().st_mtime_ns for f in (out/"cams").glob("*.npz")}

def scored(call, out, *more):
    "Evaluate again; return which CAMs were made anew, and `result.json`"
    before = times(out)
    status,_,err = call("wsss-run", "baseline", "--data", "data", "--out", out, "--stages", "evaluate", *more)
    assert status == 0, err
    return {i for i,t in times(out).items() if before.get(i) != t}, json.loads((out/"result.json").read_text())


def test_a_folder_of_the_same_name_elsewhere_is_other_data(trained, call, monkeypatch):
    ids = {f.stem for f in (trained/"out"/"cams").glob("*.npz")}
    assert scored(call, trained/"out")[0] == set()
    (trained/"there").mkdir()
    monkeypatch.chdir(trained/"there")
    write_voc_folder([ShapesDataset(s, n=4, size=64, seed=5, masks=True) for s in ("train", "val")], "data")
    assert scored(call, trained/"out")[0] == ids
    assert scored(call, trained/"out")[0] == set()


def test_a_mended_photo_is_looked_at_again(trained, call):
    name = (trained/"data"/"ImageSets"/"Segmentation"/"val.txt").read_text().split()[1]
    (photo,) = (trained/"data"/"JPEGImages").glob(f"{name}.*")
    Image.fromarray(np.array(Image.open(photo))[:,::-1].copy()).save(photo)
    os.utime(photo, (time.time()+5,)*2)
    assert scored(call, trained/"out")[0] == {name}


def relabelled(folder, split):
    "Give the second image of a split the labels of none"
    name = (folder/"data"/"ImageSets"/"Segmentation"/f"{split}.txt").read_text().split()[1]
    labels = folder/"data"/"labels.csv"
    rows = [f"{name}," if r.startswith(f"{name},") else r for r in labels.read_text().splitlines()]
    labels.write_text("\n".join(rows)+"\n")
    return name


def test_mended_labels_of_scored_images_make_other_seeds(trained, call):
    name = relabelled(trained, "val")
    made,_ = scored(call, trained/"out")
    assert name in made
    assert len(np.load(trained/"out"/"cams"/f"{name}.npz")["keys"]) == 0


@pytest.mark.parametrize("stages", [(), ("--stages", "train")])
def test_a_run_does_not_go_on_with_other_labels(trained, call, fails, stages):
    again = ("wsss-run", "baseline", "--data", "data", *TINY, "--out", "out", "--resume", *stages)
    shutil.copy("data/labels.csv", "before.csv")
    relabelled(trained, "train")
    said = fails(*again)
    assert "labels of its train images have changed since out was begun" in said and "--stages evaluate" in said
    assert scored(call, trained/"out")[0] == set()
    shutil.copy("before.csv", "data/labels.csv")
    assert call(*again)[0] == 0


def test_an_evaluation_does_not_pretend_another_seed(trained, fails):
    argv = ("wsss-run", "baseline", "--data", "data", "--out", "out", "--stages", "evaluate")
    assert "was trained with seed=0, not seed=3" in fails(*argv, "--seed", "3")


def test_images_to_learn_from_have_labels_whatever_their_list_is_called(trained, fails):
    lists = trained/"data"/"ImageSets"/"Segmentation"
    shutil.copy(lists/"train.txt", lists/"mine.txt")
    labels = trained/"data"/"labels.csv"
    name,*_ = (lists/"train.txt").read_text().split()
    labels.write_text("".join(r for r in labels.read_text().splitlines(keepends=True) if not r.startswith(f"{name},")))
    (lists/"train.txt").write_text("".join(f"{i}\n" for i in (lists/"train.txt").read_text().split()[1:]))
    said = fails("wsss-run", "baseline", "--data", "data", *TINY, "train_split=mine", "--out", "new")
    assert f"{name!r} of split 'mine' has no label" in said and not (trained/"new").exists()


def test_a_later_part_of_a_chain_does_not_go_on_with_other_labels(here, call, fails):
    write_voc_folder([ShapesDataset(s, n=4, size=64, masks=True) for s in ("train", "val")], "data")
    argv = ("wsss-run", "baseline+par+deeplab", "--data", "data", "--out", "out", *chain("baseline", "par", "deeplab"))
    assert call(*argv, "--stages", "train,cams")[0] == 0
    shutil.copy("data/labels.csv", "before.csv")
    relabelled(here, "train")
    assert "labels of its train images have changed" in fails(*argv, "--stages", "par-labels")
    shutil.copy("before.csv", "data/labels.csv")
    assert call(*argv, "--stages", "par-labels")[0] == 0
