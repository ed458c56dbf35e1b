"""Files from elsewhere are data: nothing in a checkpoint, a label file or an archive is executed, and no name in a
list or an archive leads out of its folder."""
import builtins
import contextlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.backbones.core import read_weights
from wsss_nb.ground.core import UserError
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.download import inside, unpack
from wsss_nb.data.folder import read_ids, read_image_labels, read_label_dict
from wsss_nb.data.prepare import prepare_sbd, read_coco
from wsss_nb.data.shapes import ShapesDataset
from wsss_nb.ground.io import read_cam
from wsss_nb.refine.crf_files import read_scores
from wsss_nb.run.folder import Run, load_checkpoint


# %% Pickles
class Calls:
    "Unpickling this calls a function"
    def __init__(self, function, *args): self.function,self.args = function,args
    def __reduce__(self): return self.function,self.args

def attacks(mark):
    "Return objects that leave a file behind when they are unpickled, by name"
    return {"os.system": Calls(os.system, f"touch {mark}"), "eval": Calls(eval, f"open({str(mark)!r}, 'w')"),
            "exec": Calls(exec, f"open({str(mark)!r}, 'w')"), "open": Calls(open, str(mark), "w"),
            "subprocess": Calls(subprocess.Popen, ["touch", str(mark)]),
            "getattr": Calls(getattr, Calls(builtins.__import__, "os"), "system"),
            "nested pickle": Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(open, str(mark), "w"))),
            "numpy": Calls(np.fromfile, "/etc/hostname"), "mkdir": Calls(Path.mkdir, Path(mark))}

NAMES = list(attacks(""))
each_attack = pytest.mark.parametrize("attack", NAMES)
each_protocol = pytest.mark.parametrize("protocol", [2, 4])

@pytest.fixture
def mark(tmp_path):
    yield tmp_path/"owned"
    assert not (tmp_path/"owned").exists(), "it was executed"

def refused(function, *args):
    with pytest.raises(UserError) as e: function(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


@each_attack
@each_protocol
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_and_checkpoints(tmp_path, mark, attack, protocol, legacy):
    evil = attacks(mark)[attack]
    for state in ({"model": {"weight": evil}}, {"model": {"weight": torch.ones(2)}, "format": 1, "note": evil}, evil):
        torch.save(state, tmp_path/"evil.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        assert "not a readable weight file" in refused(read_weights, tmp_path/"evil.pth")
        run = Run(tmp_path/"run")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (tmp_path/"evil.pth").replace(run.last)
        assert "not a readable checkpoint" in refused(load_checkpoint, run)


def test_the_attacks_work_on_who_trusts_them(tmp_path):
    "Otherwise the tests here would prove nothing"
    mark = tmp_path/"marked"
    for name in ("os.system", "eval", "exec", "open", "nested pickle", "mkdir"):
        torch.save({"model": attacks(mark)[name]}, tmp_path/"evil.pth")
        with contextlib.suppress(RuntimeError):
            torch.load(tmp_path/"evil.pth", weights_only=False)  # the nested one is no tensor, when it is too late
        assert mark.exists(), name
        mark.rmdir() if mark.is_dir() else mark.unlink()


def write_npy(path, value, protocol):
    with open(path, "wb") as f:
        np.lib.format.write_array_header_1_0(f, dict(descr="|O", fortran_order=False, shape=()))
        pickle.dump(value, f, protocol=protocol)

@each_attack
@pytest.mark.parametrize("protocol", range(6))
def test_label_files(tmp_path, mark, attack, protocol):
    evil = attacks(mark)[attack]
    for value in (evil, {"a": evil}, np.array({"a": evil}, dtype=object), {"a": np.array([evil], dtype=object)},
                  {evil: np.ones(2)} if attack != "subprocess" else evil):
        write_npy(tmp_path/"cls_labels.npy", value, protocol)
        assert "do not trust it" in refused(read_label_dict, tmp_path/"cls_labels.npy")


@each_attack
def test_arrays_hold_no_objects(tmp_path, mark, attack):
    evil = np.array([attacks(mark)[attack]], dtype=object)
    np.save(tmp_path/"scores.npy", evil)
    np.savez(tmp_path/"scores.npz", probs=evil, keys=evil, cam=evil)
    assert "do not trust it" in refused(read_scores, tmp_path/"scores.npy", (4,4))
    assert "holds objects" in refused(read_scores, tmp_path/"scores.npz", (4,4))
    assert "is no CAM file" in refused(read_cam, tmp_path/"scores.npz")


@each_attack
def test_commands_refuse_too(fails, scenes, here, attack):
    "As a user meets them: a weight file for --init, a run from a stranger, probabilities for the CRF"
    mark = here/"owned"
    evil = attacks(mark)[attack]
    torch.save({"model": evil}, "evil.pth")
    fails("wsss-run", "baseline", "--data", scenes, "--out", "out", "--preset", "shapes", "--init", "evil.pth")
    assert not mark.exists()


# %% Names
BAD_NAMES = ["../secret", "..", ".", "/etc/passwd", "a/b", "a\\b", "..\\secret", "a\0b", "./a"]

@pytest.mark.parametrize("name", BAD_NAMES)
def test_lists_name_images_not_paths(tmp_path, name):
    (tmp_path/"list.txt").write_text(f"fine\n{name}\n")
    assert "is a path, not a name" in refused(read_ids, tmp_path/"list.txt")
    found = []
    # reported, it is not handed on
    assert read_ids(tmp_path/"list.txt", report=found.append) == ("fine",) and len(found) == 1


@pytest.mark.parametrize("name", BAD_NAMES)
def test_published_lists_and_annotations(tmp_path, name):
    pytest.importorskip("pycocotools")
    from miniatures import Coco
    (tmp_path/"bad.json").write_text(json.dumps(Coco.val | {"images": [Coco.val["images"][0] | {"file_name": name}],
                                                            "annotations": Coco.val["annotations"][:0]}))
    assert "is a path, not the name of an image" in refused(read_coco, tmp_path/"bad.json")
    voc,sbd = tmp_path/"VOC2012",tmp_path/"benchmark_RELEASE"/"dataset"
    for folder in (voc/"JPEGImages", voc/"ImageSets"/"Segmentation", sbd/"cls"): folder.mkdir(parents=True)
    for path in (voc/"ImageSets"/"Segmentation"/"train.txt", voc/"ImageSets"/"Segmentation"/"val.txt", sbd/"val.txt"):
        path.write_text(f"{path.stem}_1\n")
    (sbd/"train.txt").write_text(f"{name}\n")
    assert "is a path, not a name" in refused(prepare_sbd, tmp_path)


@pytest.mark.parametrize("split", ["../train", "/etc/passwd", "..", "a/b"])
def test_splits_are_names(scenes, split):
    with pytest.raises(UserError, match="unknown split"): open_dataset(scenes, split)
    with pytest.raises(UserError, match="unknown split"): ShapesDataset(split)


@pytest.mark.parametrize("text",
                         ["<!DOCTYPE a [<!ENTITY b SYSTEM "
                          "'file:///etc/passwd'>]><annotation><object><name>&b;</name></object></annotation>",
                          "<!DOCTYPE z [<!ENTITY a0 'ha'>"
                          + "".join(f"<!ENTITY a{k} '{f'&a{k-1};'*10}'>" for k in range(1, 12))
                          + "]><annotation><object><name>&a11;</name></object></annotation>"])
def test_xml_reads_no_other_file_and_does_not_explode(tmp_path, text):
    (tmp_path/"Annotations").mkdir()
    (tmp_path/"Annotations"/"a.xml").write_text(text)
    assert "a.xml" in refused(read_image_labels, tmp_path, ("background", "cat"), None, ("a",), "Annotations")


# %% Archives
pieces = st.lists(st.sampled_from(["..", ".", "", "a", "b", "~", "C:", "\\", "..\\", "a\\..\\..", "%2e%2e", "...",
                                   "\u2025", "x y"]), min_size=1, max_size=5)
member = st.tuples(pieces.map("/".join), st.sampled_from(["file", "symlink", "hardlink", "folder"]),
                   pieces.map("/".join))

@pytest.fixture(scope="module")
def cage(tmp_path_factory): return tmp_path_factory.mktemp("cage")

def outside(cage):
    "Return what is beside the folder that an archive was unpacked to"
    return sorted(p.name for p in cage.iterdir())

@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=300, deadline=None)
@given(members=st.lists(member, max_size=6), zipped=st.booleans())
def test_no_member_leaves_its_folder(cage, members, zipped):
    "Whatever the names and links of an archive are"
    path,target = cage/"archive",cage/"middle"/"target"
    if zipped:
        with zipfile.ZipFile(path, "w") as z:
            for name,kind,link in members:
                info = zipfile.ZipInfo(name or "x")
                if kind.endswith("link"): info.external_attr = (stat.S_IFLNK|0o777) << 16
                z.writestr(info, link if kind.endswith("link") else "data")
    else:
        with tarfile.open(path, "w") as tar:
            for name,kind,link in members:
                info = tarfile.TarInfo(name)
                info.type = {"file":tarfile.REGTYPE, "symlink":tarfile.SYMTYPE, "hardlink":tarfile.LNKTYPE,
                             "folder":tarfile.DIRTYPE}[kind]
                info.linkname,info.size = (link if kind.endswith("link") else ""),4*(kind == "file")
                tar.addfile(info, io.BytesIO(b"data"))
    try: unpack(path, target)
    except UserError as e: assert "\n" not in str(e)
    assert outside(cage) in (["archive"], ["archive", "middle"])
    assert not (cage/"middle").exists() or [p.name for p in (cage/"middle").iterdir()] in ([], ["target"])
    assert not any(p.is_symlink() for p in cage.rglob("*"))


@settings(max_examples=300, deadline=None)
@given(st.one_of(pieces.map("/".join), st.text(max_size=20)))
def test_inside(name):
    try: path = inside("folder", name)
    except UserError: return
    assert os.path.normpath(path).split(os.sep)[0] == "folder" and ".." not in path.parts


def test_links_that_are_there_already_are_their_owners_business(tmp_path):
    "A folder on another disk, linked by its owner, is filled; an archive cannot make such a link"
    (tmp_path/"disk").mkdir()
    (tmp_path/"data").mkdir()
    (tmp_path/"data"/"VOC").symlink_to(tmp_path/"disk")
    with tarfile.open(tmp_path/"a.tar", "w") as tar:
        info = tarfile.TarInfo("VOC/a.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"a"))
    unpack(tmp_path/"a.tar", tmp_path/"data")
    assert (tmp_path/"disk"/"a.txt").read_text() == "a"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_no_special_permissions(tmp_path):
    with tarfile.open(tmp_path/"a.tar", "w") as tar:
        info = tarfile.TarInfo("tool")
        info.size,info.mode,info.uid = 1,0o6777,0
        tar.addfile(info, io.BytesIO(b"a"))
    unpack(tmp_path/"a.tar", tmp_path/"out")
    assert not (tmp_path/"out"/"tool").stat().st_mode & 0o7111
