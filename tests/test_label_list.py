"Image-level labels from a list, as I2CRC has them, beside those of a dataset."
import json

import pytest
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.data.shapes import ShapesDataset
from wsss_nb.data.core import labels_hash
from commands import TINY


@pytest.fixture
def folder(here):
    write_voc_folder([ShapesDataset(s, n=4, size=64, masks=True) for s in ("train", "val")], "data")
    data = open_dataset("data")
    (here/"train_cls.txt").write_text("".join(f"JPEGImages/{i}.png {k%data.num_fg}\n" for k,i in enumerate(data.ids)))
    return here


def test_a_run_learns_from_a_list_and_names_it(folder, call, fails):
    argv = ("wsss-run", "baseline", "--data", "data", *TINY)
    listed = (*argv, "--labels", "list:train_cls.txt", "--out", "out")
    status,_,err = call(*listed)
    assert status == 0, err
    assert json.loads((folder/"out"/"result.json").read_text())["data"] == "data?labels=list:train_cls.txt"
    data = open_dataset("data?labels=list:train_cls.txt")
    assert [data.image_labels(k).sum() for k in range(4)] == [1]*4
    assert labels_hash(data) in (folder / "out" / "config.toml").read_text() and labels_hash(data) != labels_hash(
        open_dataset("data")
    )
    assert [*open_dataset("data?labels=list:train_cls.txt", "val").image_labels(0)] == [
        *open_dataset("data", "val").image_labels(0)
    ]
    assert call(*listed, "--resume")[0] == 0
    assert "out" in fails(*argv, "--out", "out", "--resume")  # other labels: another run


def test_what_is_wrong_is_one_line(folder, fails):
    argv = ("wsss-run", "baseline", *TINY, "--out", "out", "--labels", "list:train_cls.txt", "--data")
    assert "shapes:n=4,size=64 is made with labels of its own" in fails(*argv, "shapes:n=4,size=64")
    (folder/"train_cls.txt").write_text("nobody 0\n")
    assert "has no label; add its classes to train_cls.txt" in fails(*argv, "data")
    (folder/"train_cls.txt").unlink()
    assert "train_cls.txt: no such file" in fails(*argv, "data")
