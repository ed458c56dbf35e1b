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
import tomllib
from functools import wraps
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from commands import BIN, SMALL, TINY, chain, of_longer_runs
from doc_blocks import KINDS, PROGRAMS, ROOT, blocks, commands, spans, split
from miniatures import Sbd, Voc
from test_own_method import BACKBONE, DATA, METHOD, world  # noqa: F401

import wsss_nb.use.experiment as experiment
from wsss_nb.data.folder import FolderDataset, read_ids
from wsss_nb.data.voc import VOC_COUNTS
from wsss_nb.ground.core import UserError, did_you_mean
from wsss_nb.ground.io import read_image, write_image
from wsss_nb.run.engine import preset_for
from wsss_nb.run.settings import resolve_config
from wsss_nb.use import cli
from wsss_nb.use.names import CHAINS, get_method

pytest.importorskip("scipy", reason="SBD's masks are MATLAB files")

BLOCKS = blocks()
RUN = [b for b in BLOCKS if b.kind != "text"]


# %% What is not run, and why
def parsed(words, known=True):
    "Read a command of the kit with its own parser and do nothing else; `known`: its method, preset, settings are those"
    program,words = words[0],words[1:]
    if program == "wsss-data":
        func = cli.DATA_COMMANDS[did_you_mean(words[0], cli.DATA_COMMANDS, "action of wsss-data")]
        program,words = f"wsss-data {words[0]}",words[1:]
    else: func = cli.COMMANDS[did_you_mean(program, cli.COMMANDS, "command")]
    told = {}
    @wraps(func)
    def told_only(**given): told.update(given)
    if cli.run_command(told_only, words, program): raise UserError("the command's parser refuses it")
    if program == "wsss-run" and known: settings_exist(**told)

def settings_exist(method, data, preset, set, **more):
    "Raise `UserError` unless there is such a method with such a preset and such settings"
    found = get_method(method)
    if str(more["labels"]).startswith("list:"): more["labels"] = None  # the dataset's business
    given = {found.options.get(k, k): more[k] for k in ("backbone", "init", "iters", "cams", "labels", "confidence")}
    preset = preset or preset_for(found, data or "voc:data")
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
    "The folder is there, and the notebook that the line names as the first"
    assert (ROOT/words[-1]).is_dir() and (ROOT/words[-1]/"00_start"/"10_tour.ipynb").is_file()

def in_venv(words):
    "The line names a file in the folder that the Makefile makes"
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
    "Photos with masks, the names that the masks count, and a table of labels: what is there before `wsss-data new`"
    for folder in ("JPEGImages", "SegmentationClass"): Path("my/photos", folder).mkdir(parents=True)
    ids = [i for split in ("train", "val") for i in read_ids(scenes/"ImageSets"/"Segmentation"/f"{split}.txt")]
    for i in ids:
        for folder in ("JPEGImages", "SegmentationClass"):
            Path("my/photos", folder, f"{i}.png").symlink_to(scenes/folder/f"{i}.png")
    Path("my/photos/classes.txt").write_bytes((scenes/"classes.txt").read_bytes())
    rows = (scenes/"labels.csv").read_text().splitlines(keepends=True)
    Path("labels.csv").write_text("".join([rows[0], *(r for r in rows if r.split(",")[0].removesuffix(".png") in ids)]))

def photo(scenes):
    for name in ("photo.png", "new/photo.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        write_image(name, read_image(scenes/"JPEGImages"/"val_00000.png"))

def weights(scenes):
    import timm
    from safetensors.torch import save_file
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), "weights.safetensors")

def their_cams(scenes):
    "Files as IRN writes them, for the training photos of what is a dataset by now"
    run(commands("wsss-data new my/photos --labels labels.csv")[0])
    Path("their_cams").mkdir()
    data = FolderDataset("my/photos", "train")
    for n,i in enumerate(data.ids):
        keys = np.flatnonzero(data.image_labels(n))
        cam = np.random.RandomState(n).rand(len(keys), 64, 64).astype(np.float32)
        np.save(f"their_cams/{i}.npy", {"keys": keys, "cam": cam[:, ::4, ::4], "high_res": cam})

def own_files(scenes):
    for name,text in (("my_method.py", METHOD), ("my_data.py", DATA), ("my_backbone.py", BACKBONE)):
        Path(name).write_text(text)

def space(scenes): Path("space.toml").write_text('[train]\nlr = ["1e-4", "1e-3"]\n')

def voc(scenes): run(commands("wsss-data get voc sbd --out data")[0])

GIVEN = {"my/photos": photos, "photo.png": photo, "new/photo.jpg": photo, "weights.safetensors": weights,
         "their_cams": their_cams, "space.toml": space, "my_method.py": own_files, "voc:data": voc}

def budget(words, mirror=None):
    "Return further words for a command of the kit, by which it does the same in less time"
    if words[:2] == ["wsss-data", "get"]: return ["--mirror", mirror]
    if words[0] not in ("wsss-run", "wsss-search"): return []
    data,method = words[words.index("--data")+1],CHAINS.get(words[1], words[1])
    parts = method.split("+")
    small = list(chain(*parts)) if len(parts) > 1 else [*TINY, *SMALL.get(method, ())]
    if "--init" in words: small = small[2:]  # the preset that suits the weights
    return [*(["--data", few(data)] if few(data) != data else []), *small]

def few(data):
    "Return a dataset's words with a dozen small scenes in place of the 2000 of `shapes`"
    if data.partition(":")[0] != "shapes" or "n=" in data: return data
    return f"{data}{',' if ':' in data else ':'}n=12,size=64"

@pytest.fixture
def desk(world, scenes, site, monkeypatch):  # noqa: F811
    "Return a function that lays out what a block names"
    splits = {"train": Voc.train, "val": Voc.val, "train_aug": {*Voc.train, *Sbd.train, *Sbd.val}-{*Voc.val}}
    for name,ids in splits.items(): monkeypatch.setitem(VOC_COUNTS, name, len(ids))
    monkeypatch.setenv("DOCS_MIRROR", site.url)
    def lay(text):
        makers = dict.fromkeys(make for name,make in GIVEN.items() if name in text)
        if "wsss-data get" in text: makers.pop(voc, None)  # the block makes it
        for make in makers: make(scenes)
    return lay


# %% Running
def run(words):
    "Run a command, which must succeed and complain about nothing"
    line = " ".join(words)
    if line in NOT_RUN: NOT_RUN[line][1](words)
    elif words[0] == "torchrun":
        by_torchrun(words)
        small = budget(["wsss-run", *words[words.index("wsss_nb.cli")+1:]])
        done = subprocess.run([BIN/words[0], *words[1:], *small], capture_output=True, text=True, timeout=300,
                              env=os.environ | {"PET_STANDALONE": "1"})  # a port that nobody else has
        assert done.returncode == 0, done.stderr
    else:
        assert words[0] in (*cli.COMMANDS, "wsss-data"), f"{line}: run it in tests/test_docs_blocks.py, or say why not"
        parsed(words)  # as it is, for what is changed below hides a preset
        assert cli.main([*words, *budget(words, os.environ["DOCS_MIRROR"])]) == 0, line

def small_run(method, data, out, *more, overrides=(), **given):
    "What `run_method` does in a block of Python"
    words = ["wsss-run", method, "--data", data]
    small = budget(words)
    return RUN_METHOD(method, few(data), out, "shapes", *more, device="cpu",
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
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(METHOD)
    monkeypatch.syspath_prepend("installed")
    for group,points in project.items():
        assert {*points} <= importlib.metadata.entry_points(group=group).names
        for name in points: assert get_method(name).name == "mine"

@pytest.mark.parametrize("block", RUN, ids=str)
def test_block(block, desk, monkeypatch, capfd):
    "It runs to its end, and nothing is said on the stream of errors but what two steps deserve"
    desk(block.text)
    capfd.readouterr()
    {"sh": run_sh, "python": run_python, "toml": run_toml}[block.kind](block.text, monkeypatch)
    assert not of_longer_runs(capfd.readouterr().err)


# %% What stands in the texts
def test_every_block_says_what_it_is():
    "Its tag is one of `KINDS`: commands, code, or text, in which no line begins as a command does"
    assert {*KINDS} == {b.kind for b in BLOCKS}, [str(b) for b in BLOCKS if b.kind not in KINDS]
    hidden = [f"{b}: {line}" for b in BLOCKS for line in b.text.splitlines()
              if b.kind == "text" and line.lstrip().startswith(PROGRAMS)]
    assert not hidden, "\n".join(hidden)

def test_the_table_is_not_stale():
    "What is not run is written somewhere, and has a reason"
    written = {" ".join(words) for b in BLOCKS if b.kind == "sh" for words in commands(b.text)}
    assert NOT_RUN.keys() <= written, NOT_RUN.keys()-written
    assert all(reason for reason,_ in NOT_RUN.values())
    text = "".join(b.text for b in RUN)
    assert all(name in text for name in GIVEN), [name for name in GIVEN if name not in text]

# words that stand for others in a line of prose, and what does in their place here
MEANT = {"S": "0", "voc|sbd|coco": "voc", "URL...": "URL", "METHOD": "baseline"}
# methods of somebody's own, and names in the wrong place, which are shown to say what happens then
NAMES = ("small-maps", "mit_b1", "twice.py", "small_maps.py", "my_method.py", "package.module", "my_file.py",
         "my_refinement.py")

def understood(words, known):
    """Read a command that may be cut short, such as `wsss-data check` or `wsss-predict --set`: what lacks is filled in

    Raises what the first try raised, if none succeeds."""
    after,errors = 1+(words[0] == "wsss-data"),[]
    for front in ([], ["baseline"], ["voc", "X"]):
        for back in ([], ["1"]):
            try: return parsed([*words[:after], *front, *words[after:], *back], known)
            except SystemExit as e: return pytest.fail(str(e)) if e.code else None  # of --help
            except UserError as e: errors.append(e)
    raise errors[0]

def test_commands_in_prose_are_understood():
    "Commands of the kit between backticks: options, methods, presets and settings are there"
    wrong,count = [],0
    for page,text in spans():
        words = [MEANT.get(w, w) for w in re.split(r" \.\.\.| …", text)[0].split()]
        if "..." in words[-1] or words[-1] == "--set" and "..." in text: words.pop()
        count += 1
        try: understood(words, not {*NAMES} & {*re.split(r"[+ ]", text)})
        except UserError as e: wrong.append(f"{page}: `{text}`: {e}")
    assert count > 80 and not wrong, "\n".join(wrong)

@pytest.mark.parametrize("markdown,found", [
    ("a\n```sh\nmake demo\n```\nb", [("sh", "make demo\n")]), ("```\na\n\nb\n```", [("", "a\n\nb\n")]),
    ("1. a\n\n   ~~~python\n   x = 1\n     y\n   ~~~\n", [("python", "x = 1\n  y\n")]), ("a `b` ```c```\n", []),
    ("a:\n\n    wsss-list\n", [(None, "    wsss-list\n")]), ("* a\n\n    b\n", []), ("a\n    b\n", [])])
def test_what_a_block_is(markdown, found): assert split(markdown)[0] == found

@pytest.mark.parametrize("line", [
    "wsss-run toco --data shapes --out runs/a --itres 3", "wsss-run toocs --data shapes --out runs/a",
    "wsss-run toco --data shapes --out runs/a --preset shape", "wsss-run toco --data shapes --set croop_size=3",
    "wsss-data check", "wsss-data chek data", "wsss-data get voc --mirrors x", "wsss-predict", "wsss-runs toco"])
def test_wrong_commands_are_found(line):
    with pytest.raises(UserError): parsed(line.split())

@pytest.mark.parametrize("line", [
    "make demos", "torchrun --nproc=4 -m wsss_nb.clix toco --data shapes",
    "torchrun --nproc-per-node=4 -m wsss_nb.cli toco --dat shapes", "sbatch docs/slurm.sh toco --data shapes",
    "accelerate launch --multi_gpu -m wsss_nb.cli tocco --data shapes", "python -m pip install -e .[dat]"])
def test_wrong_lines_of_others_are_found(line):
    words = line.split()
    check = next(check for known,(_,check) in NOT_RUN.items() if known.split()[0] == words[0])
    with pytest.raises((AssertionError, UserError, SystemExit)): check(words)

def test_what_is_not_known_is_not_passed_over():
    with pytest.raises(AssertionError, match="or say why not"): run(["curl", "x"])
    with pytest.raises(ValueError, match="is unknown here"): commands("wsss-list > list.txt")
