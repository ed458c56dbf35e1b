"Commands as a user gives them: in this process where the answer matters, as a process of their own where status, signals and imports do."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsss_nb.use.cli import DATA_COMMANDS, main

BIN = Path(sys.executable).parent
# settings under which training and evaluating the toy scenes below takes a second
TINY = ("--preset", "shapes", "--set", "pretrained=false", "iters=2", "batch_size=4", "crop_size=64", "hidden=16", "warmup_iter=1", "seg_start=0", "val_images=2", "workers=0",
        "cam_scales=1", "infer_scales=1", "infer_par=1")
# the same for a method with several stages, whose settings are others
STAGED = {"i2crc": ("--preset", "shapes", "--set", "cls_iters=4", "cls_batch=2", "iters=4", "again=1", "batch_size=2", "crop_size=64", "cls_size=64", "saliency_size=64", "extra=8", "save_every=2", "log_every=1", "cls_drops=2")}
# what makes each part of a chain small, under the preset shapes
PART = {"baseline": [f"baseline.{s}" for s in TINY[3:]],
        "toco": [f"toco.{s}" for s in (*TINY[3:], "contrast_start=0", "num_crops=2", "local_size=24", "proj_hidden=16",
                                       "proj_bottleneck=8", "proj_dim=16")],
        "i2crc": [f"i2crc.{s}" for s in STAGED["i2crc"][3:]],
        "ktse": [f"ktse.{s}" for s in ("iters=4", "start=2", "crop_size=64", "long_side=60,80", "batch_size=2",
                                       "late_batch=2", "pair_images=1", "width=8", "cam_scales=1", "workers=0")],
        "crf": [], "none": [], "par": ["par.rounds=2"], "walk": ["walk.exp_times=2"], "tokens": [],
        "irn": [f"irn.{s}" for s in ("iters=4", "crop_size=64", "radius=4", "batch_size=2", "width=32", "exp_times=2")],
        "deeplab": [f"deeplab.{s}" for s in ("iters=4", "crop_size=64", "batch_size=2")],
        "beco": [f"beco.{s}" for s in ("iters=4", "crop_size=48", "batch_size=2", "warmup=0", "mask_start=0",
                                       "threshold=0.2")],
        "given": []}
def chain(*parts):
    "Return the options under which a chain takes seconds on small scenes, and saves at every second step"
    trained = [p for p in parts if p in ("baseline", "toco", "i2crc", "ktse", "irn", "deeplab", "beco")]
    changed = [s for p in parts for s in PART[p]]+[f"{p}.{s}" for p in trained for s in ("save_every=2", "log_every=1")]
    return ("--preset", "shapes", *(["--set", *changed] if changed else []))
STAGED["ktse"] = chain("ktse", "irn", "beco")
STAGED["resnet-cam"] = ("--preset", "shapes", "--set", "iters=4", "batch_size=2", "crop_size=64", "long_side=60,80",
                        "cam_scales=1", "save_every=2", "log_every=1", "workers=0")
# what else makes a method small: its own settings
SMALL = {"toco": ("contrast_start=0", "num_crops=2", "local_size=24", "proj_hidden=16", "proj_bottleneck=8", "proj_dim=16"),
         "tsd-cam": ("corr_start=0", "corr_samples=4"),
         "cpdgl": ("ptc_start=0", "contrast_start=1", "proto_from=1", "final_from=3", "ramp_iters=4", "num_crops=2", "local_size=24", "proj_hidden=16", "queue_len=40"),
         "tscd": ("radius=2", "corr_samples=6", "walk_start=4")}


def of_longer_runs(err):
    """Return standard error without what is said of runs of a few steps, that all they predict is (nearly) one class

    `call(..., all=True)` returns that too; tests of it ask so."""
    said = r"all \d+ predictions are .* everywhere|[\d.]+ % of the predicted pixels are .*"
    return re.sub(rf"(?m)^.*: ({said}), so the segmenter has learnt (nothing|hardly) .*\n", "", err)

def started(*argv, **kw):
    "Return the process of an installed command; `argv[0]` is its name"
    return subprocess.Popen([str(BIN/argv[0]), *map(str, argv[1:])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)

def run(*argv, **kw):
    "Run an installed command to its end; return status, standard output and `of_longer_runs` of standard error"
    process = started(*argv, **kw)
    out,err = process.communicate(timeout=120)
    return process.returncode,out,of_longer_runs(err)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder that is the working directory"
    monkeypatch.chdir(tmp_path)
    return tmp_path

@pytest.fixture
def call(capfd):
    "Return a function that runs a command in this process and returns status, standard output and standard error"
    def call(*argv, all=False):
        capfd.readouterr()
        try: status = main([str(a) for a in argv])
        except SystemExit as e: status = e.code  # --help
        out,err = capfd.readouterr()
        return status,out,err if all else of_longer_runs(err)
    return call

@pytest.fixture
def fails(call):
    "Return a function that runs a command which must fail with one line and status 2, and returns the line"
    def fails(*argv):
        status,out,err = call(*argv)
        assert status == 2, (status, out, err)
        assert err.endswith("\n") and len(err.splitlines()) == 1 and "Traceback" not in out+err, err
        assert err.startswith(f"{' '.join(argv[:2]) if argv[0] == 'wsss-data' and argv[1:] and argv[1] in DATA_COMMANDS else argv[0]}: "), err
        return err.strip()
    return fails

@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    "A folder of toy scenes in VOC layout, made by the command, with 8 images to score in val and 24 in test; for reading only"
    root = tmp_path_factory.mktemp("data")/"scenes"
    assert main(["wsss-data", "make-shapes", str(root), "--n", "12", "--size", "64"]) == 0
    for split,n in (("val",8), ("test",24)):
        ids = root/"ImageSets"/"Segmentation"/f"{split}.txt"
        ids.write_text("".join(ids.read_text().splitlines(keepends=True)[:n]))
    return root

@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory):
    "A run on these scenes, made by the installed command; for reading only. Its folder and what the command printed"
    out = tmp_path_factory.mktemp("runs")/"baseline"
    status,printed,err = run("wsss-run", "baseline", "--data", scenes, "--out", out, *TINY)
    assert (status, err) == (0, ""), err
    return out,printed
