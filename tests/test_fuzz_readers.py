"""Whatever is in a list, a label file, an annotation or a settings file: it is read, or refused with one line.

A few seconds here; `FUZZ=20000 pytest tests/test_fuzz_readers.py` for a night."""
import json
import os
import pickle
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_nb.ground.core import UserError
from wsss_nb.data.folder import read_classes, read_ids, read_image_labels, read_label_dict
from wsss_nb.data.prepare import coco_mask, read_coco, read_sbd_mask, write_image_labels
from wsss_nb.use.experiment import load_run
from wsss_nb.ground.io import read_cam, read_label
from wsss_nb.run.folder import Run, read_log, read_result

CLASSES = ("background", "cat", "dog")
fuzz = settings(max_examples=int(os.environ.get("FUZZ", 150)), deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")

def read_or_refuse(function, *args):
    "Return what a reader says of a file, or `None` if it refuses it in one line"
    try: return function(*args)
    except UserError as e: assert "\n" not in str(e) and str(e).strip(), e

words = st.sampled_from(["a", "b", "image", "labels", "cat", "dog", "background", "image,labels", ",", " ", "\n",
                         "\r\n", "\r", "\t", '"', "'", ";", "..", "/", "\\", "\0", "\ufeff", "\x85", "\u2028", "0",
                         "1", "é", "#"])
texts = st.one_of(st.binary(max_size=200), st.lists(words, max_size=30).map(lambda w: "".join(w).encode()),
                  st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
rows = st.lists(words, max_size=30).map(lambda w: ("image,labels\n"+"".join(w)).encode())

def mutated(data):
    "A strategy of small damages to bytes: some changed, some left out, some put in, cut off"
    def apply(changes):
        b = bytearray(data)
        for kind,at,value in changes:
            at %= len(b)+1
            if kind == "set" and at < len(b): b[at] = value
            elif kind == "drop": del b[at:at+1+value%9]
            elif kind == "put": b[at:at] = bytes([value])*(1+value%5)
            elif kind == "cut": del b[at:]
        return bytes(b)
    change = st.tuples(st.sampled_from(["set", "set", "set", "drop", "put", "cut"]), st.integers(0, 2**20),
                       st.integers(0, 255))
    return st.lists(change, min_size=1, max_size=6).map(apply)


@fuzz
@given(texts)
def test_lists(folder, data):
    (folder/"list.txt").write_bytes(data)
    ids = read_or_refuse(read_ids, folder/"list.txt")
    assert (ids is None or len(set(ids)) == len(ids) and all(i and i == i.strip() and not set(i) & set("/\\\0")
                                                             and i not in (".", "..") for i in ids))


@fuzz
@given(texts)
def test_classes(folder, data):
    (folder/"classes.txt").write_bytes(data)
    names = read_or_refuse(read_classes, folder/"classes.txt")
    assert names is None or names[0] == "background" and len(set(names)) == len(names) > 1


@fuzz
@given(st.one_of(texts, rows), st.booleans())
def test_label_tables(folder, data, strict):
    (folder/"labels.csv").write_bytes(data)
    labels = read_or_refuse(read_image_labels, folder, CLASSES, {"a":0, "b":0} if strict else None,
                            ("a","b"), "labels.csv")
    assert labels is None or all(y.shape == (2,) and np.isin(y, (0,1)).all() for y in labels.values())
    found = []
    # as a check does it
    read_or_refuse(read_image_labels, folder, CLASSES, {"a":0}, ("a",), "labels.csv", found.append)
    assert all(isinstance(m, str) for m in found)


def npy(value, protocol):
    np.lib.format.write_array_header_1_0(f := __import__("io").BytesIO(),
                                         dict(descr="|O", fortran_order=False, shape=()))
    pickle.dump(value, f, protocol=protocol)
    return f.getvalue()
DICTS = [npy(v, p) for p in (0,2,4) for v in ({"a":np.array([0,1], np.float32), "b":[1,0]},
                                              np.array({2007000032:np.array([0.,1])}, dtype=object))]

@settings(fuzz, max_examples=2*fuzz.max_examples)
@given(st.sampled_from(DICTS).flatmap(mutated))
def test_label_dictionaries(folder, data):
    (folder/"cls_labels.npy").write_bytes(data)
    labels = read_or_refuse(read_label_dict, folder/"cls_labels.npy")
    assert labels is None or all(isinstance(k, str) and y.dtype == np.float32 and y.ndim == 1 for k,y in labels.items())
    read_or_refuse(read_image_labels, folder, CLASSES, None, ("a",), "cls_labels.npy")


XML = (b"<annotation>\n<object><name>cat</name><difficult>0</difficult></object>"
       b"<object><name>dog</name></object></annotation>")
@fuzz
@given(st.one_of(mutated(XML), texts))
def test_annotations(folder, data):
    (folder/"Annotations").mkdir(exist_ok=True)
    (folder/"Annotations"/"a.xml").write_bytes(data)
    labels = read_or_refuse(read_image_labels, folder, CLASSES, None, ("a",), "Annotations")
    assert labels is None or labels["a"].shape == (2,)


# %% Annotations of COCO, masks of SBD
values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-10, 10**20), st.floats(), st.text(max_size=5)),
                      lambda v: st.one_of(st.lists(v, max_size=4),
                                          st.dictionaries(st.sampled_from(["counts", "size", "id", "x"]), v,
                                                          max_size=3)), max_leaves=6)

def instances():
    from miniatures import Coco
    small = {**Coco.val, "images":Coco.val["images"][:3]}
    return (small
            | {"annotations":[a for a in small["annotations"] if a["image_id"] in {i["id"] for i in small["images"]}]})

@st.composite
def damaged_instances(draw):
    "Instances with some value replaced by any other"
    found = json.loads(json.dumps(instances()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(["images", "annotations", "categories"]))
        if not isinstance(found.get(place), list) or draw(st.integers(0, 9)) == 0: found[place] = draw(values)
        elif found[place] and isinstance(row := found[place][draw(st.integers(0, len(found[place])-1))], dict):
            row[draw(st.sampled_from(sorted(row)))] = draw(values)
    return json.dumps(found).encode()

@fuzz
@given(st.one_of(damaged_instances(), mutated(json.dumps(instances()).encode()), texts))
def test_coco_annotations(folder, data):
    (folder/"instances.json").write_bytes(data)
    found = read_or_refuse(read_coco, folder/"instances.json")
    if found is None: return
    for n,objects in found[1].items():
        if max(found[0][n][1]) > 500: continue
        mask = read_or_refuse(coco_mask, objects, found[0][n][1])
        assert mask is None or mask.shape == found[0][n][1] and mask.max() <= 80


def mat():
    from io import BytesIO
    from scipy.io import savemat
    savemat(f := BytesIO(),
            {"GTcls":{"Boundaries":np.zeros((2,1), object), "Segmentation":np.eye(9, dtype=np.uint8)*12,
                      "CategoriesPresent":np.array([[12]])}})
    return f.getvalue()

@fuzz
@given(mutated(mat()))
def test_masks_of_sbd(folder, data):
    (folder/"a.mat").write_bytes(data)
    mask = read_or_refuse(read_sbd_mask, folder/"a.mat")
    assert mask is None or mask.ndim == 2 and mask.dtype == np.uint8


# %% What a run and a preparation write, damaged
@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    "A run folder without checkpoint: all that is read before it"
    from dataclasses import asdict
    from wsss_nb.run.settings import resolve_config
    from wsss_nb.use.names import get_method
    method = get_method("baseline")
    run = Run(tmp_path_factory.mktemp("run"))
    run.start({"method":"baseline", "data":"shapes", "preset":"shapes", "seed":0, "classes":list(CLASSES),
               "settings":asdict(resolve_config(method.config(), method.presets, "shapes"))})
    return run

@settings(fuzz, max_examples=fuzz.max_examples//3)
@given(data=st.data())
def test_settings_of_a_run(run_folder, data):
    whole = run_folder.config_file.read_bytes()
    try:
        config = tomllib.loads(whole.decode())
        if data.draw(st.booleans()): spoilt = data.draw(mutated(whole))
        else:
            place = data.draw(st.sampled_from([config, config["settings"], config["settings"]]))
            place[data.draw(st.sampled_from(sorted(place)))] = data.draw(
                st.one_of(st.integers(-2, 9), st.text(max_size=5), st.booleans(),
                          st.lists(st.integers(0, 3), max_size=3), st.floats(-2, 2)))
            spoilt = tomli_w.dumps(config).encode()
        run_folder.config_file.write_bytes(spoilt)
        assert read_or_refuse(load_run, run_folder.path) is None  # there is no checkpoint
    finally: run_folder.config_file.write_bytes(whole)


@fuzz
@given(st.one_of(texts, mutated(b"step,loss,lr\n1,0.5,1e-3\n2,0.25,\n3,nan,2\n")))
def test_logs(folder, data):
    (folder/"log.csv").write_bytes(data)
    read_or_refuse(read_log, folder/"log.csv")


@fuzz
@given(st.one_of(texts, mutated(b'{"method": "toco", "miou": {"seed": 0.5}}')))
def test_results(folder, data):
    (folder/"result.json").write_bytes(data)
    read_or_refuse(read_result, folder/"result.json")


@settings(fuzz, max_examples=fuzz.max_examples//3)
@given(st.one_of(texts,
                 mutated(b'{"options": {"SegmentationClassAug": {"masks": "voc"}}, "written": {"labels.csv": "0"}}')))
def test_records_of_preparations(folder, data):
    root = folder/"prepared"
    root.mkdir(exist_ok=True)
    (root/"prepared.json").write_bytes(data)
    read_or_refuse(write_image_labels, root, CLASSES, {"a":np.array([1,0])})


@settings(fuzz, max_examples=fuzz.max_examples//3)
@given(st.binary(max_size=300))
def test_arrays_and_label_maps(folder, data):
    for head in (b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        (folder/"file.npz").write_bytes(head+data)
        read_or_refuse(read_cam, folder/"file.npz")
        read_or_refuse(read_label, Path(folder/"file.npz"))
