"Oxford-IIIT Pet, from archives with all their oddities on a server of our own to a dataset and a run."
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from commands import TINY
from loopback import serving
from miniatures import Pets, pets_archives
from test_fuzz_readers import fuzz, mutated, read_or_refuse, texts
from wsss_nb.data import download
from wsss_nb.data.check import check_dataset
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.pets import PET_BREEDS, PetsDataset, read_pet_list
from wsss_nb.data.sheet import dataset_sheet
from wsss_nb.ground.core import IGNORE_INDEX, UserError
from wsss_nb.ground.io import read_image
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.known import list_methods
from wsss_nb.use.names import get_method

SMALL = ("--preset", "pets", "--set", "backbone=vit_toy", "aux_layer=-2", *TINY[3:])


@pytest.fixture(scope="module")
def archives(): return pets_archives()

@pytest.fixture
def site(archives, monkeypatch):
    "A server of the miniature; nobody listens at the published addresses"
    known = {name:a._replace(url=f"http://127.0.0.1:9/{name}", gigabytes=0,
                             checksum=f"md5:{hashlib.md5(archives[name]).hexdigest()}")
             for name,a in download.ARCHIVES["pets"].items()}
    monkeypatch.setitem(download.ARCHIVES, "pets", known)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({f"/{name}":data for name,data in archives.items()}) as server: yield server

@pytest.fixture(scope="module")
def pets(archives, tmp_path_factory):
    "The archives unpacked by hand, all of them; for reading only"
    root = tmp_path_factory.mktemp("by_hand")/"pets"
    root.mkdir()
    for name,data in archives.items():
        (root/name).write_bytes(data)
        download.unpack(root/name, root)
    return root

@pytest.fixture
def copy(pets, tmp_path): return shutil.copytree(pets, tmp_path/"copy")


# %% Download
def test_from_nothing_to_a_run(site, call, here):
    "What the README shows, on a miniature: get, check, run"
    status,out,err = call("wsss-data", "get", "pets", "--out", "data/pets", "--mirror", site.url)
    assert (status, err) == (0, ""), err
    for words in ("train: 12 images (published: 3680)", "val: 8 images (published: 3669)", "licence: CC BY-SA 4.0",
                  "try wsss-data check pets:data/pets"):
        assert words in out, out
    assert not [*here.rglob("._*")] and (here/"data/pets/annotations/trimaps/pug_7.png").exists()
    asked = len(site.asked)
    assert call("wsss-data", "get", "pets", "--out", "data/pets", "--mirror", site.url)[0] == 0
    assert len(site.asked) == asked
    status,out,_ = call("wsss-data", "check", "pets:data/pets", "--sheet", "sheet.png")
    assert status == 1 and out.count("wrong:") == 1 and out.count("as published") == 2, out  # but a miniature
    assert "write a list annotations/NAME.txt" in out and (here/"sheet.png").stat().st_size
    status,out,err = call("wsss-run", "baseline", "--data", "pets:data/pets", "--out", "run", *SMALL)
    assert (status, err) == (0, ""), err
    result = json.loads((here/"run"/"result.json").read_text())
    assert result["images"] == {"train":12, "val":8} and result["preset"] == "pets"


def test_interrupted_and_given_again(site, call, here):
    site.faults = ["cut 3000", *["status 404"]*9]
    status,_,err = call("wsss-data", "get", "pets", "--out", "d", "--mirror", site.url)
    assert status == 2 and "the same command goes on" in err and len(err.splitlines()) == 1
    site.faults = []
    assert call("wsss-data", "get", "pets", "--out", "d", "--mirror", site.url)[0] == 0
    assert "bytes=3000-" in [r for _,r,_ in site.asked]


def test_another_file_than_the_published_one(site, fails, here, archives):
    site.files["/images.tar.gz"] = archives["annotations.tar.gz"]
    assert "images.tar.gz sends another file than the published one" in \
        fails("wsss-data", "get", "pets", "--out", "d", "--mirror", site.url)


def test_without_a_network_by_hand(site, fails, call, here, archives, monkeypatch):
    "One line with the address, and where to put the file; a file that is put there is taken"
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    line = fails("wsss-data", "get", "pets", "--out", "d", "--stall", "1", "--mirror", "http://127.0.0.1:9")
    assert "images.tar.gz: http://127.0.0.1:9/images.tar.gz cannot be reached" in line
    assert "or the file be put at d/archives/images.tar.gz by hand" in line
    for name,data in archives.items(): (here/"d"/"archives"/name).write_bytes(data)
    assert call("wsss-data", "get", "pets", "--out", "d")[0] == 0 and site.asked == []


def test_behind_a_proxy(site, call, here, archives, monkeypatch):
    "The proxy is asked for the whole address"
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.setenv("no_proxy", "")
    site.files = {f"http://pets.invalid/{name}":data for name,data in archives.items()}
    assert call("wsss-data", "get", "pets", "--out", "d", "--mirror", "http://pets.invalid")[0] == 0
    assert [p for p,*_ in site.asked] == [*site.files]


# %% What the dataset says
def test_splits(pets):
    "Official lists; one of each breed in turn, so that the first images of a split show all"
    train,val = (open_dataset(f"pets:{pets}", s) for s in ("train","val"))
    assert sorted(train.ids) == sorted(Pets.trainval) and sorted(val.ids) == sorted(Pets.test)
    for ds in (train, val):
        breeds = [Pets.breed(i) for i in ds.ids]
        assert breeds == sorted({*breeds})*(len(breeds)//4)
    assert [i for i in train.ids if i.startswith("pug")] == [i for i in Pets.trainval if i.startswith("pug")]
    assert train.splits() == ["train","val"] and not {*Pets.unlisted} & train.images.keys()


@pytest.mark.parametrize("options,classes,label", [
    ("", ("background","cat","dog"), Pets.species), (":labels=species", ("background","cat","dog"), Pets.species),
    (":labels=breed", PET_BREEDS, Pets.breed), (":border=pet,labels=breed", PET_BREEDS, Pets.breed)])
def test_labels_and_masks(pets, options, classes, label):
    "Every label and every pixel"
    for split,ids in dict(train=Pets.trainval, val=Pets.test).items():
        ds = open_dataset(f"pets:{pets}{options}", split, masks=True)
        assert ds.classes == classes and len(ds) == len(ids)
        for item in ds:
            k,trimap = label(item.id),Pets.trimap(item.id)
            border = k if "border=pet" in options else IGNORE_INDEX
            assert np.flatnonzero(item.image_labels).tolist() == [k-1] and item.image_labels.dtype == np.float32
            np.testing.assert_array_equal(item.mask, np.select([trimap == 1, trimap == 2], [k,0], border))
            assert item.mask.dtype == np.uint8 and 3 in trimap
    assert open_dataset(f"pets:{pets}{options}")[0].mask is None


def test_every_photo_is_rgb(pets):
    "PNG, GIF, palette, transparent, grey: whatever a .jpg is"
    for split in ("train", "val"):
        for item in open_dataset(f"pets:{pets}", split):
            assert item.image.shape == (*Pets.size(item.id),3) and item.image.dtype == np.uint8
    kinds = {i:Image.open(pets/"images"/f"{i}.jpg") for i in Pets.odd}
    assert {(im.format, im.mode) for im in kinds.values()} == {("PNG","RGB"), ("PNG","RGBA"), ("GIF","P"), ("PNG","P"),
                                                                ("JPEG","L")}
    with pytest.raises(UserError, match="pug_999.jpg: cannot be decoded"): read_image(pets/"images"/"pug_999.jpg")

def test_check_reads_what_lists_name(pets):
    "The damaged photo that no list names, MATLAB files and what macOS leaves are no problem"
    check = check_dataset(f"pets:{pets}", workers=1)
    assert {f.what.split(" has ")[0] for f in check.problems} == {"split 'train'", "split 'val'"} and not check.notes
    assert check.splits["val"] | {"fingerprint":""} == {"images":8, "published":3669, "masks":8, "fingerprint":""}
    others = [check_dataset(f"pets:{pets}:{o}", workers=1).splits["val"]["fingerprint"]
              for o in ("labels=species", "labels=breed", "border=pet")]
    assert others[0] == check.splits["val"]["fingerprint"] and len({*others}) == 3  # other masks
    assert dataset_sheet(f"pets:{pets}:labels=breed") is not None


def test_a_list_of_your_own(copy, call, here):
    "Lines of trainval.txt or names alone: a part for a slow machine, and images held out"
    (copy/"annotations"/"train_few.txt").write_text("".join(map(Pets.line, Pets.trainval[:4])))
    (copy/"annotations"/"held_out.txt").write_text("pug_7\nBengal_7\n")
    assert open_dataset(f"pets:{copy}", "held_out").ids == ("Bengal_7","pug_7")
    status,_,err = call("wsss-run", "baseline", "--data", f"pets:{copy}", "--out", "run", *SMALL,
                        "train_split=train_few", "val_split=held_out")
    assert (status, err) == (0, ""), err
    assert json.loads((here/"run"/"result.json").read_text())["images"] == {"train":4, "held_out":2}


def test_as_torchvision_leaves_it(pets, tmp_path):
    (tmp_path/"data").mkdir()
    (tmp_path/"data"/"oxford-iiit-pet").symlink_to(pets)
    assert len(open_dataset(f"pets:{tmp_path/'data'}")) == 12


# %% Training
def test_no_trimap_trains(copy, call, here):
    "Without trimaps the weights are the same, bit for bit"
    def weights(out):
        status,_,err = call("wsss-run", "baseline", "--data", f"pets:{copy}", "--out", out, "--stages", "train", *SMALL,
                            "val_images=0")
        assert (status, err) == (0, ""), err
        return load_checkpoint(Run(here/out))["model"]
    before = weights("with")
    shutil.rmtree(copy/"annotations"/"trimaps")
    after = weights("without")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_the_same_run_under_other_names(copy, call, fails, here, monkeypatch):
    run = ("wsss-run", "baseline", "--out", "run", "--stages", "train", *SMALL)
    assert call(*run, "--data", f"pets:{copy}:labels=breed")[0] == 0
    monkeypatch.chdir(here)
    assert call(*run, "--data", "pets:copy/../copy:border=ignore,labels=breed", "--resume")[0] == 0
    for other in ("", ":labels=species", ":labels=breed:border=pet"):
        assert "run: holds a run with other settings" in fails(*run, "--data", f"pets:copy{other}", "--resume")
    shutil.move(copy, here/"elsewhere")
    assert call(*run, "--data", "pets:elsewhere:labels=breed", "--resume")[0] == 0


def test_labels_from_a_list(copy, call, here):
    "Noisy labels of somebody else's, for the training images alone"
    (here/"noisy.txt").write_text("".join(f"{i} 1\n" for i in Pets.trainval))
    status,_,err = call("wsss-run", "baseline", "--data", f"pets:{copy}", "--labels", "list:noisy.txt", "--out", "run",
                        "--stages", "train", *SMALL)
    assert status == 0, err
    noisy = PetsDataset(copy, label_source=f"list:{here/'noisy.txt'}")
    assert {*map(tuple, noisy.labels.values())} == {(0,1)}
    val = PetsDataset(copy, "val", label_source=f"list:{here/'noisy.txt'}")
    assert [np.argmax(val.image_labels(n))+1 for n in range(8)] == [Pets.species(i) for i in val.ids]


def test_saliency(copy, call, fails, tmp_path):
    (tmp_path/"maps").mkdir()
    ramp = Image.fromarray(np.arange(60, dtype=np.uint8)[None].repeat(30, 0))
    for i in Pets.trainval: ramp.save(tmp_path/"maps"/f"{i}.png")
    for spec in (f"pets:{copy}", f"pets:{copy}:labels=breed"):
        assert "12 maps" in call("wsss-data", "to-voc", "saliency", spec, "--source", tmp_path/"maps")[1]
    assert open_dataset(f"pets:{copy}")[0].saliency.shape == (30,60)


@pytest.mark.parametrize("name", list_methods())
def test_presets(name):
    "Every method has one that differs from `photos` in how long it trains, no more"
    method = get_method(name)
    photos,pets = method.presets["photos"],method.presets["pets"]
    changed = {k for k in pets if pets[k] != photos.get(k)}
    if any(isinstance(v, dict) for v in pets.values()):  # a chain
        changed = {k for part in pets for k in pets[part] if pets[part][k] != photos[part].get(k)}
    assert changed <= {"iters", "val_every", "start", "cls_iters", "cls_drops", "warmup", "mask_start"}


def test_the_preset_goes_with_the_data(pets, call, here):
    run = ("wsss-run", "baseline", "--data", f"pets:{pets}", "--out", "run", "--stages", "train")
    assert call(*run, *SMALL[2:])[0] == 0
    assert 'preset = "pets"' in (here/"run"/"config.toml").read_text()


# %% What can be wrong
@pytest.mark.parametrize("spec,words", [
    ("pets", "did you mean pets:ROOT"), ("pet:x", "did you mean pets:ROOT"),
    ("pets:nowhere", "nowhere: no such folder"), ("pets:.", "unpack images.tar.gz there"),
    ("pets:.:label=breed", "pets:.:label=breed: unknown option 'label': did you mean labels"),
    ("pets:.:labels=race", "unknown labels 'race': choose one of: species, breed"),
    ("pets:.:border=", "unknown border ''"),
    ("pets:.:breed", "options behind it are written pets:ROOT:labels=breed")])
def test_wrong_words(fails, here, spec, words):
    assert words in fails("wsss-run", "baseline", "--data", spec, "--out", "x")


def test_an_absent_photo_is_named(copy, fails, here):
    for i in ("beagle_7", "pug_201"): (copy/"images"/f"{i}.jpg").unlink()
    line = fails("wsss-run", "baseline", "--data", f"pets:{copy}", "--out", "x", *SMALL)
    assert "trainval.txt: line 6: 'beagle_7' has no photo" in line and "unpack images.tar.gz again" in line
    assert "2 of 20 files are missing, beagle_7, pug_201; unpack images.tar.gz" in \
        fails("wsss-data", "to-voc", "pets", copy)
    said = [str(f) for f in check_dataset(f"pets:{copy}", workers=1).problems]
    assert all(any(i in f for f in said) for i in ("beagle_7", "pug_201"))


def test_an_absent_trimap_is_named(copy, fails, here):
    (copy/"annotations"/"trimaps"/"pug_34.png").unlink()
    line = fails("wsss-run", "baseline", "--data", f"pets:{copy}", "--out", "x", *SMALL)
    assert "trimaps/pug_34.png: no such file" in line
    assert "1 of 20 files are missing, pug_34; unpack annotations.tar.gz" in fails("wsss-data", "to-voc", "pets", copy)


@pytest.mark.parametrize("trimap,words", [
    (np.full((46,60), 0), "value 0 is none of a trimap"), (np.full((46,60), 4), "value 4 is none of a trimap"),
    (np.full((46,60), 255), "value 255 is none of a trimap"), (np.full((60,46), 2), "the mask has 46x60 pixels"),
    (None, "is empty")])
def test_a_damaged_trimap_is_named(copy, trimap, words):
    path = copy/"annotations"/"trimaps"/"pug_34.png"
    if trimap is None: path.write_bytes(b"")
    else: Image.fromarray(trimap.astype(np.uint8)).save(path)
    ds = open_dataset(f"pets:{copy}", "val", masks=True)
    with pytest.raises(UserError) as e: ds[ds.ids.index("pug_34")]
    assert "pug_34.png" in str(e.value) and words in str(e.value) and "\n" not in str(e.value)
    assert any(f.file.endswith("pug_34.png") for f in check_dataset(f"pets:{copy}", workers=1).problems)


@pytest.mark.parametrize("line,words", [
    ("pug_1 99 2 1", "line 25: 'pug_1' has 99 2 1 behind it"), ("pug_1 26 3 1", "a species (1 cat, 2 dog)"),
    ("pug_1", "has nothing behind it"), ("pug_1 ٣ 2 1", "not a class from 1 to 37")])
def test_a_damaged_list_is_named(copy, line, words):
    with open(copy/"annotations"/"list.txt", "a", encoding="utf-8") as f: f.write(line+"\n")
    with pytest.raises(UserError) as e: open_dataset(f"pets:{copy}")
    assert "list.txt: " in str(e.value) and words in str(e.value) and "\n" not in str(e.value)
    assert any(words in f"{f.file}: {f.what}; {f.advice}" for f in check_dataset(f"pets:{copy}", workers=1).problems)


def test_absent_and_unreadable_lists(copy):
    (copy/"annotations"/"trainval.txt").unlink()
    with pytest.raises(UserError, match="trainval.txt: no such file; unpack annotations.tar.gz"):
        open_dataset(f"pets:{copy}")
    assert len(open_dataset(f"pets:{copy}", "val")) == 8
    (copy/"annotations"/"list.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(UserError, match="list.txt: cannot be read as text"): open_dataset(f"pets:{copy}", "val")
    (copy/"annotations"/"list.txt").unlink()
    with pytest.raises(UserError, match="list.txt: no such file"): open_dataset(f"pets:{copy}", "val")
    assert check_dataset(f"pets:{copy}", workers=1).problems


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b"])
def test_lists_name_images_not_paths(copy, name):
    "A name that leads elsewhere has no photo in `images`, whatever is there"
    for file in ("list", "trainval"):
        with open(copy/"annotations"/f"{file}.txt", "a") as f: f.write(f"{name} 26 2 1\n")
    Image.new("RGB", (9,9)).save(copy/"secret.jpg")
    with pytest.raises(UserError, match="has no photo"): open_dataset(f"pets:{copy}")


@fuzz
@given(texts | mutated("".join(map(Pets.line, Pets.trainval)).encode()))
def test_lists_of_anything(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp()/"list.txt"
    path.write_bytes(data)
    rows = read_or_refuse(read_pet_list, path) or {}
    assert all(0 < breed < len(PET_BREEDS) and species in (1,2) for breed,species in rows.values())
