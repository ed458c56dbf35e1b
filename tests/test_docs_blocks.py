"""Every code block of README.md and of the site's pages is run as it stands there.

A block is one test; its commands run one after the other in a folder that is empty but for the files which the block
names (`GIVEN`: a photo, weights, a method of one's own, ...). Nothing in the text of a block is changed. What is
changed is the budget alone: behind a command's words come further ones of the same command, by which a training takes
two steps on a dozen small scenes and a download asks a server on this machine (`budget`); the last of two equal options
counts. `run_method` in a block of Python is given the same. Downloads are miniatures of the archives, and the numbers
of images that VOC has are those of the miniature.

What cannot run here (it installs, never ends, needs several GPUs or Slurm) stands in `NOT_RUN` with the reason, and
its words are read by the parsers of all programs that it names."""
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from functools import wraps
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from commands import BIN, SMALL, TINY, chain
from doc_blocks import KINDS, PROGRAMS, ROOT, blocks, commands, spans, split
from miniatures import Sbd, Voc
from test_own_method import BACKBONE, DATA, METHOD, world  # noqa: F401

import wsss_nb.use.experiment as experiment
from wsss_nb.data.folder import read_ids
from wsss_nb.data.voc import VOC_COUNTS
from wsss_nb.run.engine import preset_for
from wsss_nb.run.settings import resolve_config
from wsss_nb.use import cli
from wsss_nb.use.names import CHAINS, get_method

pytest.importorskip("scipy", reason="SBD's masks are MATLAB files")

BLOCKS = blocks()
RUN = [b for b in BLOCKS if b.kind != "text"]
SCENES = "shapes:n=12,size=64"  # in place of the 2000 scenes of `shapes`


# %% What is not run, and why
def parsed(words, known=True):
    "Read a command of the kit with its own parser and do nothing else; `known`: its method, preset, settings are those"
    program,words = words[0],words[1:]
    functions = cli.COMMANDS
    if program == "wsss-data": program,words,functions = f"wsss-data {words[0]}",words[1:],cli.DATA_COMMANDS
    func,told = functions[program.split()[-1]],{}
    @wraps(func)
    def told_only(**given): told.update(given)
    assert cli.run_command(told_only, words, program) == 0, "the command's parser refuses it"
    if program == "wsss-run" and known: settings_exist(**told)

def settings_exist(method, data, preset, set, **more):
    "Raise `UserError` unless there is such a method with such a preset and such settings"
    found = get_method(method)
    given = {found.options.get(k, k): more[k] for k in ("backbone", "init", "iters", "cams", "labels", "confidence")}
    preset = preset or preset_for(found, data or "voc")
    resolve_config(found.config(), found.presets, preset, [s for s in set or () if "..." not in s], **given)

def made(words):
    "There is such a target"
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def by_torchrun(words):
    from torch.distributed.run import get_args_parser
    launched(get_args_parser().parse_args(words[1:]))

def by_accelerate(words):
    from accelerate.commands.launch import launch_command_parser
    assert words[1] == "launch"
    launched(launch_command_parser().parse_args(words[2:]))

def launched(args):
    "What a launcher is told to start is the module of wsss-run"
    assert args.module and args.training_script == "wsss_nb.cli"
    parsed(["wsss-run", *args.training_script_args])

def by_slurm(words):
    assert (ROOT/words[1]).is_file() and "-m wsss_nb.cli" in (ROOT/words[1]).read_text(encoding="utf-8")
    parsed(["wsss-run", *words[2:]])

def extra_declared(words):
    extra = re.search(r"\.\[(\w+)\]", words[-1])[1]
    assert words[:4] == ["python", "-m", "pip", "install"]
    assert re.search(rf"(?m)^{extra}_requirements = \w", (ROOT/"settings.ini").read_text(encoding="utf-8"))

def our_address(words):
    project = tomllib.loads((ROOT/"pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert words[:2] == ["git", "clone"] and words[2:] == [project["urls"]["Repository"].rstrip("/")]

def folder_of_clone(words): assert words == ["cd", "wsss_nb"]

def there(words):
    "The folder is there, and a notebook whose name the line ends with"
    assert (ROOT/words[-1]).is_dir() and (ROOT/words[-1]/"00_start"/"10_tour.ipynb").is_file()

def in_venv(words):
    "The Makefile makes .venv, of which the line names a file"
    assert "VENV = .venv\n" in (ROOT/"Makefile").read_text(encoding="utf-8")
    assert [w for w in words if w.startswith(".venv/bin/")]

def hooks(words):
    in_venv(words)
    assert (ROOT/".pre-commit-config.yaml").is_file()
    assert "pre-commit" in re.search(r"(?m)^dev_req.*", (ROOT/"settings.ini").read_text(encoding="utf-8"))[0].split()

NOT_RUN = {  # command -> (why not, what is checked)
    "make demo": ("installs 6 GB; test_commands.py and the command's own notebook have wsss-demo", made),
    "make lab": ("a server that stays; test_lab.py starts it", made),
    "make test": ("this test is a part of it", made),
    "source .venv/bin/activate": ("`make demo` makes .venv", in_venv),
    "jupyter lab nbs": ("a server that stays; test_lab.py starts one", there),
    "python -m pip install -e .[data]": ("installs from the network", extra_declared),
    "git clone https://github.com/example/wsss_nb": ("from the network", our_address),
    "cd wsss_nb": ("the folder of the clone", folder_of_clone),
    ".venv/bin/pre-commit install": ("changes the clone that the tests run in", hooks),
    "torchrun --nproc-per-node=4 -m wsss_nb.cli tsd-cam --data voc:data --out runs/b":
        ("needs four GPUs; test_processes.py starts two processes", by_torchrun),
    "accelerate launch --multi_gpu --num_processes=4 -m wsss_nb.cli tsd-cam --data voc:data --out runs/c":
        ("needs four GPUs; test_processes.py starts two processes", by_accelerate),
    "sbatch docs/slurm.sbatch tsd-cam --data voc:data --out runs/e":
        ("needs Slurm; test_processes.py runs the file with stand-ins", by_slurm),
}


# %% What is there when a block begins
def photos(scenes):
    "Photos with masks of some, in my/photos, and a table of labels, as somebody has them before `wsss-data new`"
    for folder in ("JPEGImages", "SegmentationClass"): Path("my/photos", folder).mkdir(parents=True)
    ids = [i for split in ("train", "val") for i in read_ids(scenes/"ImageSets"/"Segmentation"/f"{split}.txt")]
    for i in ids:
        for folder in ("JPEGImages", "SegmentationClass"):
            Path("my/photos", folder, f"{i}.png").symlink_to(scenes/folder/f"{i}.png")
    rows = (scenes/"labels.csv").read_text().splitlines(keepends=True)
    Path("labels.csv").write_text("".join([rows[0], *(r for r in rows if r.split(",")[0].removesuffix(".png") in ids)]))

def photo(scenes):
    for name in ("photo.png", "new/photo.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes((scenes/"JPEGImages"/"val_00000.png").read_bytes())

def weights(scenes):
    import timm
    from safetensors.torch import save_file
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), "weights.safetensors")

def their_cams(scenes):
    "What IRN writes, for the training photos"
    assert cli.main(["wsss-data", *"new my/photos --labels labels.csv".split()]) == 0
    Path("their_cams").mkdir()
    for i in read_ids("my/photos/ImageSets/Segmentation/train.txt"):
        cam = np.random.RandomState(0).rand(1, 64, 64).astype(np.float32)
        np.save(f"their_cams/{i}.npy", {"keys": np.array([0]), "cam": cam[:, ::4, ::4], "high_res": cam})

def own_files(scenes):
    for name,text in (("my_method.py", METHOD), ("my_data.py", DATA), ("my_backbone.py", BACKBONE)):
        Path(name).write_text(text)

def voc(scenes): run(commands("wsss-data get voc sbd --out data")[0])

GIVEN = {"my/photos": photos, "photo.png": photo, "new/photo.jpg": photo, "weights.safetensors": weights,
         "their_cams": their_cams, "my_method.py": own_files, "voc:data": voc}

def budget(words, mirror=None):
    "Return further words for a command of the kit, by which it does the same in less time"
    if words[:2] == ["wsss-data", "get"]: return ["--mirror", mirror]
    if words[0] != "wsss-run": return []
    data,method = words[words.index("--data")+1],CHAINS.get(words[1], words[1])
    parts = method.split("+")
    small = list(chain(*parts)) if len(parts) > 1 else [*TINY, *SMALL.get(method, ())]
    if "--init" in words: small = small[2:]  # the preset that suits the weights
    return [*(["--data", SCENES] if data == "shapes" else []), *small]

@pytest.fixture
def desk(world, scenes, site, monkeypatch):  # noqa: F811
    "Return a function that lays out what a block names"
    counts = {"train": len(Voc.train), "val": len(Voc.val), "train_aug": len({*Voc.train, *Sbd.train, *Sbd.val}-{*Voc.val})}
    for split_name,n in counts.items(): monkeypatch.setitem(VOC_COUNTS, split_name, n)
    monkeypatch.setenv("DOCS_MIRROR", site.url)
    def lay(text):
        made = {make: None for name,make in GIVEN.items() if name in text}
        if voc in made and "wsss-data get" in text: del made[voc]
        for make in made: make(scenes)
    return lay


# %% Running
def run(words):
    "Run a command, which must succeed and complain about nothing"
    line = " ".join(words)
    if line in NOT_RUN: NOT_RUN[line][1](words)
    elif words[0] in ("torchrun",):
        done = subprocess.run([BIN/words[0], *words[1:], *budget(["wsss-run", *words[words.index("wsss_nb.cli")+1:]])],
                              capture_output=True, text=True, timeout=300, env=os.environ | {"PET_STANDALONE": "1"})
        assert done.returncode == 0, done.stderr
    else:
        assert words[0] in (*cli.COMMANDS, "wsss-data"), f"{line}: run it in tests/test_docs_blocks.py, or say why not"
        assert cli.main([*words, *budget(words, os.environ["DOCS_MIRROR"])]) == 0, line

def small_run(method, data, out, *more, overrides=(), **given):
    "What `run_method` does in a block of Python"
    words = ["wsss-run", method, "--data", data]
    small = budget(words)
    return RUN_METHOD(method, SCENES if data == "shapes" else data, out, "shapes", *more, device="cpu",
                      overrides=[*overrides, *small[small.index("--set")+1:]], **given)

RUN_METHOD = experiment.run_method

def launcher(function, args=(), num_processes=None, **more):
    "In place of accelerate's, which forks a process for each GPU: one, this one"
    from accelerate import notebook_launcher
    signature(notebook_launcher).bind(function, args, num_processes, **more)
    return function(*args)

def run_sh(text, monkeypatch):
    for words in commands(text): run(words)

def run_python(text, monkeypatch):
    "What a block defines as METHOD is also found in a file"
    monkeypatch.setattr(experiment, "run_method", small_run)
    monkeypatch.setattr("accelerate.notebook_launcher", launcher)
    names = {"__name__": "__block__"}
    exec(compile(text, "block", "exec"), names)
    if "METHOD" in names:
        Path("my_block.py").write_text(text)
        assert get_method("my_block.py").name == names["METHOD"].name

def run_toml(text, monkeypatch):
    "What `pip install` leaves of a package with these entry points"
    project = tomllib.loads(text)["project"]["entry-points"]
    lines = [f"[{group}]\n"+"".join(f"{k} = {v}\n" for k,v in points.items()) for group,points in project.items()]
    info = Path("installed/my_package-1.dist-info")
    info.mkdir(parents=True)
    (info/"METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (info/"entry_points.txt").write_text("".join(lines))
    for points in project.values():
        for source in points.values():
            file = Path("installed", *source.split(":")[0].split(".")).with_suffix(".py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(METHOD)
    monkeypatch.syspath_prepend("installed")
    for group,points in project.items():
        assert {*points} <= importlib.metadata.entry_points(group=group).names
        for name in points: assert get_method(name).name == "mine"

@pytest.mark.parametrize("block", RUN, ids=str)
def test_block(block, desk, monkeypatch, capfd):
    "It runs to its end, and nothing is said on the stream of errors"
    desk(block.text)
    {"sh": run_sh, "python": run_python, "toml": run_toml}[block.kind](block.text, monkeypatch)
