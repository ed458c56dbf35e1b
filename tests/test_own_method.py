"""A method, a backbone and a dataset of one's own: from a file, a module, an installed package, or as an object. A run
of theirs is resumed, evaluated, used and looked at like any other, and says so in one line where it cannot be."""
import json
import os
import signal
import sys
import time
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch

from commands import TINY, started
from wsss_nb.explore.cam import StageMaps, explorer_caption, explorer_picture
from wsss_nb.ground.core import UserError
from wsss_nb.run.folder import Run, load_checkpoint, read_log
from wsss_nb.use.experiment import load_run, run_method
from wsss_nb.use.names import get_method

METHOD = '''
"The baseline with one more loss: what is not there shall look alike"
from dataclasses import dataclass

from wsss_nb.methods import baseline
from wsss_nb.methods.core import single_stage

@dataclass(frozen=True)
class Config(baseline.Config):
    w_even:float = .1  # weight of the new loss
    def weights(self, step): return super().weights(step) | {"even":self.w_even}

class Step(baseline.Step):
    def even(self): return self.out["cls_logits"].var(1).mean()

class Network(baseline.Network):
    def training_losses(self, batch, step): return Step(self, batch, step).losses()

METHOD = single_stage("mine", Config, baseline.PRESETS, Network)
'''
# a part with settings of its own; its training draws numbers, keeps momentum, and takes larger batches later
PARTS = '''
from dataclasses import dataclass, replace
import torch
from torch.nn import functional as F
from wsss_nb.data.loader import TrainingSet
from wsss_nb.methods import baseline
from wsss_nb.run.settings import must
from wsss_nb.run.stage import Stage

@dataclass(frozen=True)
class Part:
    lr:float = .1   # of the part
    iters:int = 8   # its steps
    def check(self): must(self, "lr", self.lr > 0, "above 0")

@dataclass(frozen=True)
class Config(baseline.Config):
    part:Part = Part()

class Colours(torch.nn.Module):
    "Which classes are there, from the mean colour"
    loss_names = ("cls",)
    def __init__(self, lr, num_fg):
        super().__init__()
        self.lr,self.head = lr,torch.nn.Linear(3, num_fg)
    def param_groups(self): return [{"params":list(self.parameters()), "lr":self.lr}]
    def training_losses(self, batch, step):
        colours = F.dropout(batch["input"].mean((2,3)), .2)
        return {"cls":(1., F.multilabel_soft_margin_loss(self.head(colours), batch["image_labels"]))}

def growing(consumed): return 2 if consumed < 6 else 4

def grow(job):
    def transform(image, rng, mask): return {"input":torch.tensor(image).permute(2, 0, 1)/255 + .1*rng.rand()}
    def make(): return Colours(job.config.lr, len(job.classes)-1),TrainingSet(job.open("train"), transform, job.seed)
    return job.train("grow", make, iters=job.config.iters, batch_size=growing, warmup_iter=1, save_every=2, log_every=1)

METHOD = replace(baseline.METHOD, name="parts", config=Config,
                 stages=(*baseline.METHOD.stages, Stage("grow", grow, makes=("checkpoints/grow",), part="part")))
'''
BACKBONE = '''
import torch
from wsss_nb.backbones.core import Backbone

class Patches(Backbone):
    channels,strides = {"last":12,"aux":12},{"last":8,"aux":8}
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 12, 8, 8)
    def forward(self, images): return dict.fromkeys(("last","aux"), self.body(images).relu())

def build_backbone(pretrained=False, **options): return Patches()
'''
DATA = '''
from wsss_nb.data.core import Dataset
from wsss_nb.data.shapes import ShapesDataset

class Few(Dataset):
    has_masks = True
    def __init__(self, split, masks):
        self.scenes = ShapesDataset(split, n=12, size=64, masks=masks)
        super().__init__("few", split, self.scenes.classes, self.scenes.ids[:6], masks)
    def splits(self): return ["train","val"]
    def load_image(self, i): return self.scenes.load_image(i)
    def image_labels(self, i): return self.scenes.image_labels(i)
    def load_mask(self, i): return self.scenes.load_mask(i)

def open_split(split, masks): return Few(split, masks)
'''
ITERS = 24
SETTINGS = (*TINY, f"iters={ITERS}", "seg_start=4", "save_every=4", "log_every=1", "val_every=12")
# an object is run from Python: the words of `wsss-run`, then options
SCRIPT = ("import sys; from my_method import METHOD; from wsss_nb.use.experiment import run_method; "
          "run_method(METHOD, sys.argv[1], sys.argv[2], 'shapes', overrides=sys.argv[3:], device='cpu')")


@pytest.fixture
def world(here, scenes, monkeypatch):
    "An empty working folder with data; what is imported from it is forgotten afterwards"
    monkeypatch.setattr(sys, "path", sys.path[:])
    (here/"scenes").symlink_to(scenes)
    yield here
    for name,module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(here)): del sys.modules[name]

@pytest.fixture
def mine(world, call):
    "A trained run of a method in a file"
    (world/"my_method.py").write_text(METHOD)
    assert call("wsss-run", "my_method.py", "--data", "scenes", "--out", "run", *TINY)[::2] == (0, "")
    return world/"run"

def in_file(here, monkeypatch):
    (here/"my_method.py").write_text(METHOD)
    return "my_method.py",str(here/"my_method.py")+":METHOD"

def in_module(here, monkeypatch):
    (here/"lab_methods").mkdir()
    (here/"lab_methods"/"even.py").write_text(METHOD)
    monkeypatch.setenv("PYTHONPATH", f"{here}:{os.environ.get('PYTHONPATH', '')}")
    return "lab_methods.even","lab_methods.even:METHOD"

def as_entry_point(here, monkeypatch):
    "What `pip install` leaves of a package that offers a method"
    site = here/"site"
    (site/"even_methods-1.0.dist-info").mkdir(parents=True)
    (site/"even_methods-1.0.dist-info"/"METADATA").write_text("Metadata-Version: 2.1\nName: even-methods\nVersion: 1\n")
    (site/"even_methods-1.0.dist-info"/"entry_points.txt").write_text("[wsss_nb.methods]\nmine = even_methods:METHOD\n")
    (site/"even_methods.py").write_text(METHOD)
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(site)
    return "mine",str(site/"even_methods.py")+":METHOD"

def as_object(here, monkeypatch):
    _,source = in_file(here, monkeypatch)
    monkeypatch.syspath_prepend(here)
    return import_module("my_method").METHOD,source

KINDS = in_file,in_module,as_entry_point,as_object

def run_to_the_end(call, method, out, *more):
    "Run a method, by command or, an object, by call"
    if not isinstance(method, str):
        run_method(method, "scenes", out, "shapes", resume="--resume" in more, device="cpu", overrides=SETTINGS[3:])
    else: assert call("wsss-run", method, "--data", "scenes", "--out", out, *SETTINGS, *more)[::2] == (0, "")

def start(method, out):
    "The same as a process of its own"
    if isinstance(method, str): return started("wsss-run", method, "--data", "scenes", "--out", out, *SETTINGS)
    Path("script.py").write_text(SCRIPT)
    return started("python", "script.py", "scenes", out, *SETTINGS[3:])

def kill(process, out, step, stage=None):
    "SIGKILL a process as soon as its run has logged a step"
    end = time.monotonic()+100
    while max((r["step"] for r in read_log(Run(out, stage).log)), default=0) < step:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(.002)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL

def same(a, b):
    "Are two values of checkpoints equal, bit for bit?"
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b

def assert_equal_runs(out, other, stage=None):
    "The same checkpoints, the same log, the same scores"
    one,two = Run(out, stage),Run(other, stage)
    assert same(load_checkpoint(one), load_checkpoint(two))
    logs = [[{k:v for k,v in r.items() if k != "images_per_second"} for r in read_log(r.log)] for r in (one, two)]
    assert logs[0] == logs[1] and [r["step"] for r in logs[0]] == list(range(1, len(logs[0])+1))
    a,b = (json.loads(r.result.read_text()) for r in (one, two))
    for k in ("miou","iou","precision","recall","config_hash","method"): assert a[k] == b[k], k


# %% A method
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_road(call, world, monkeypatch, kind):
    "Run, killed and resumed; evaluated alone; predicted with; explored; reported"
    method,source = kind(world, monkeypatch)
    run_to_the_end(call, method, "whole")
    kill(start(method, "run"), "run", 9)
    assert 4 <= load_checkpoint(Run("run"))["step"] < ITERS and not Path("run/report").exists()
    run_to_the_end(call, method, "run", "--resume")
    assert_equal_runs("run", "whole")
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert (config["method"], config["source"]) == ("mine", source) and len(config["source_hash"]) == 12
    assert config["settings"]["w_even"] == .1 and read_log(Run("run").log)[-1].keys() >= {"cls","seg","even"}

    before = json.loads(Path("run/result.json").read_text())
    named = method if isinstance(method, str) else "my_method.py"
    for p in Path("run/predictions").iterdir(): p.unlink()
    assert call("wsss-run", named, "--data", "scenes", "--out", "run", "--stages", "evaluate")[::2] == (0, "")
    after = json.loads(Path("run/result.json").read_text())
    assert after["miou"] == before["miou"] and after["method"] == "mine"

    photo = sorted(Path("run/predictions").iterdir())[0].name
    assert call("wsss-predict", "run", f"scenes/JPEGImages/{photo}", "--out", "labels")[::2] == (0, "")
    assert Path("labels", photo).read_bytes() == Path("run/predictions", photo).read_bytes()

    maps = StageMaps("run")
    assert type(maps.method).__module__ == type(load_run("run")).__module__ == get_method(named).network.__module__
    assert f"{Path(photo).stem} · " in explorer_caption(maps, 0) and explorer_picture(maps, 0).width > 300
    html = Path("run/report/index.html").read_text()
    assert "mine" in html and "even" in html and Path("run/report/picture.png").exists()


def test_listed_when_installed(call, fails, world, monkeypatch):
    as_entry_point(world, monkeypatch)
    assert "mine" in call("wsss-list", "methods")[1].split()
    assert "mine  train,evaluate" in call("wsss-list", "stages")[1]
    assert "mine w_even=0.1  weight of the new loss" in call("wsss-list", "settings", "--method", "mine")[1]
    assert "did you mean mine" in fails("wsss-run", "mien", "--data", "scenes", "--out", "run")

def test_listed_from_a_file(call, world):
    (world/"my_method.py").write_text(METHOD)
    assert "mine w_even=0.1  weight of the new loss" in call("wsss-list", "settings", "--method", "my_method.py")[1]
    assert "mine photos  backbone=deit_tiny" in call("wsss-list", "presets", "--method", "my_method.py")[1]


def predict(call, run, *more):
    return call("wsss-predict", run, "scenes/JPEGImages/val_00000.png", "--out", "labels", *more)

def test_the_file_is_gone(call, fails, mine):
    "It says which file; the method given by hand does, if it is the same"
    os.rename("my_method.py", "elsewhere.py")
    line = fails("wsss-predict", "run", "scenes/JPEGImages", "--out", "labels")
    assert f"run: its method 'mine' came from {mine.parent/'my_method.py'}:METHOD" in line and "no such file" in line
    assert "--method FILE" in line
    with pytest.raises(UserError, match="put it back"): StageMaps(mine)
    assert "my_method.py: no such file" in fails("wsss-run", "my_method.py", "--data", "scenes", "--out", "run")
    assert predict(call, "run", "--method", "elsewhere.py")[::2] == (0, "")
    assert ("run: is a run of mine, not of toco"
            in fails("wsss-predict", "run", "scenes/JPEGImages", "--out", "labels", "--method", "toco"))

def test_the_file_has_changed(call, mine):
    "Predicting, evaluating and going on say so and do it; a comment is enough"
    said = f"{mine.parent/'my_method.py'}:METHOD has changed since run was made\n"
    Path("my_method.py").write_text(METHOD+"# better\n")
    assert predict(call, "run")[::2] == (0, said)
    argv = "wsss-run", "my_method.py", "--data", "scenes", "--out", "run"
    assert call(*argv, "--stages", "evaluate")[::2] == (0, said)
    assert call(*argv, *TINY, "--resume")[::2] == (0, said)
    assert predict(call, "run")[::2] == (0, ""), "it is its method now"

def test_the_file_has_another_network_now(call, mine):
    more = ("    def __init__(self, config, classes):\n        super().__init__(config, classes)\n"
            "        import torch\n        self.more = torch.nn.Linear(2, 2)\n")
    Path("my_method.py").write_text(METHOD.replace("    def training_losses", f"{more}    def training_losses"))
    status,_,err = predict(call, "run")
    changed,refused = err.splitlines()
    assert status == 2 and "has changed since run was made" in changed
    assert refused.startswith("wsss-predict: run: these weights are of another architecture: more")

def test_two_methods_in_one_file(call, fails, world):
    (world/"my_method.py").write_text(METHOD.replace("METHOD =", "EVEN =")+
                                      'ODD = single_stage("odd", Config, baseline.PRESETS, Network)\n')
    argv = "--data", "scenes", "--out", "run", "--stages", "train", *TINY
    assert ("my_method.py: holds 2 methods; say which (my_method.py:EVEN, my_method.py:ODD)"
            in fails("wsss-run", "my_method.py", *argv))
    assert "my_method.py: has no method EVE" in fails("wsss-run", "my_method.py:EVE", *argv)
    assert not Path("run").exists()
    assert call("wsss-run", "my_method.py:ODD", *argv)[::2] == (0, "")
    assert tomllib.loads(Path("run/config.toml").read_text())["method"] == "odd"
    assert predict(call, "run")[::2] == (0, "")
    assert "run: was trained with method=odd, not method=mine" in \
        fails("wsss-run", "my_method.py:EVEN", "--data", "scenes", "--out", "run", "--stages", "evaluate")

@pytest.mark.parametrize("text,words", [
    ("x = 1\n", "my_method.py: holds no method; define METHOD"), ("x = 1\nx = \n", "my_method.py: line 2: SyntaxError"),
    ("x = 1\n1/0\n", "my_method.py: line 2: ZeroDivisionError"),
    ("import nowhere_at_all\n", "my_method.py: line 1: ModuleNotFoundError: No module named 'nowhere_at_all'")])
def test_a_file_that_is_none(fails, world, text, words):
    (world/"my_method.py").write_text(text)
    assert words in fails("wsss-run", "my_method.py", "--data", "scenes", "--out", "run") and not Path("run").exists()

def test_a_method_of_a_session(world):
    "An object whose class is in no file: its run is used with the object at hand, and says so without"
    module = {"__name__":"__session__"}
    exec(METHOD, module)
    method = module["METHOD"]
    run_method(method, "scenes", "run", "shapes", ["train"], device="cpu", overrides=TINY[3:])
    assert tomllib.loads(Path("run/config.toml").read_text())["source"] == "a session"
    with pytest.raises(UserError, match=r"run: its method 'mine' came from a session .* give the method"):
        load_run("run")
    assert isinstance(load_run("run", method=method), module["Network"])
    run_method(method, "scenes", "run", stages=["evaluate"], device="cpu")
    assert "miou" in json.loads(Path("run/result.json").read_text())


# %% A run folder from a stranger
EVIL = "from pathlib import Path\nPath('owned').touch()\n"

def test_nothing_in_a_run_folder_is_executed(fails, mine):
    "Whatever its settings ask for, written as file or as module, for whatever is done with it"
    (mine/"sub").mkdir()
    for p in (mine/"evil.py", mine/"__init__.py", mine/"sub"/"evil.py"): p.write_text(EVIL)
    text = (mine/"config.toml").read_text()
    config = tomllib.loads(text)
    values = {"source":config["source"], "data":config["data"], "backbone":config["settings"]["backbone"]}
    for key,was in values.items():
        for place in ("run/evil.py", "run.evil", "run.sub.evil", "./run/../run/evil.py:X"):
            (mine/"config.toml").write_text(text.replace(f'{key} = "{was}"', f'{key} = "{place}"'))
            assert f'{key} = "{place}"' in (mine/"config.toml").read_text()
            with pytest.raises(UserError, match=f"run: asks for {place}, inside the run folder"): StageMaps("run")
            assert "is not executed" in fails("wsss-predict", "run", "scenes/JPEGImages", "--out", "labels")
            argv = "--data", "scenes", "--out", "run", "--stages", "evaluate"
            if key == "backbone": assert "is not executed" in fails("wsss-run", "my_method.py", *argv)
    assert not Path("owned").exists() and not Path("labels").exists()

def test_nor_put_there_on_purpose(fails, world):
    "A run that could not be loaded again is refused at once"
    Path("run").mkdir()
    for name,text in (("my_method", METHOD), ("my_data", DATA), ("my_backbone", BACKBONE)):
        Path(f"run/{name}.py").write_text(text)
    for argv in (("run/my_method.py", "--data", "scenes"), ("baseline", "--data", "run/my_data.py"),
                 ("baseline", "--data", "scenes", "--backbone", "run/my_backbone.py")):
        assert "inside the run folder" in fails("wsss-run", *argv, "--out", "run", *TINY)
    assert not Path("run/config.toml").exists()


# %% A backbone and a dataset
OWN = {"my_backbone.py": (BACKBONE, ("--data", "scenes", "--backbone", "my_backbone.py")),
       "my_data.py": (DATA, ("--data", "my_data.py"))}
USUAL = {"my_backbone.py":"build_backbone", "my_data.py":"open_split"}

@pytest.mark.parametrize("name", OWN)
def test_own_backbone_and_data(call, fails, world, name):
    text,argv = OWN[name]
    Path(name).write_text(text)
    argv = ("wsss-run", "baseline", *argv)
    assert call(*argv, "--out", "whole", *SETTINGS)[::2] == (0, "")
    kill(started(*argv, "--out", "run", *SETTINGS), "run", 9)
    assert call(*argv, "--out", "run", *SETTINGS, "--resume")[::2] == (0, "")
    assert_equal_runs("run", "whole")
    config = tomllib.loads(Path("run/config.toml").read_text())
    assert {"my_backbone.py":config["settings"]["backbone"], "my_data.py":config["data"]}[name] == name
    assert config["files"].keys() == {name}
    before = json.loads(Path("run/result.json").read_text())["miou"]
    for p in Path("run/predictions").iterdir(): p.unlink()
    alone = ("wsss-run", "baseline", "--data", "my_data.py" if name == "my_data.py" else "scenes", "--out", "run",
             "--stages", "evaluate")
    assert call(*alone)[::2] == (0, "") and json.loads(Path("run/result.json").read_text())["miou"] == before
    assert predict(call, "run")[::2] == (0, "")
    assert explorer_picture(StageMaps("run"), 0).width > 300
    if name == "my_data.py": assert len(list(Path("run/predictions").iterdir())) == 6
    assert "baseline" in Path("run/report/index.html").read_text()

    said = f"{name} has changed since run was made\n"  # and each way of use says it
    Path(name).write_text(text+"# better\n")
    assert predict(call, "run")[::2] == (0, said) and call(*alone)[::2] == (0, said)
    assert call(*argv, "--out", "run", *SETTINGS, "--resume")[::2] == (0, said)
    assert predict(call, "run")[::2] == (0, "")
    os.rename(name, "elsewhere.py")
    assert f"{name}: no such file" in fails(*argv, "--out", "run", *SETTINGS, "--resume")
    if name == "my_backbone.py":
        assert f"{name}: no such file" in fails("wsss-predict", "run", "scenes/JPEGImages", "--out", "labels")
    else:  # a prediction does without
        assert predict(call, "run")[::2] == (0, "")
        with pytest.raises(UserError, match="my_data.py: no such file"): StageMaps("run")

@pytest.mark.parametrize("name", OWN)
def test_own_files_say_what_is_missing(fails, world, name):
    _,argv = OWN[name]
    argv = ("wsss-run", "baseline", *argv, "--out", "run", *TINY)
    for text,words in (("x = 1\n1/0\n", "line 2: ZeroDivisionError"), ("x = 1\n", f"has no {USUAL[name]}")):
        Path(name).write_text(text)
        assert f"{name}: {words}" in fails(*argv)
    assert f"{name}: has no other" in fails(*(a.replace(name, f"{name}:other") for a in argv))
    assert not Path("run").exists()

def test_a_backbone_with_a_name(call, world):
    "Behind a colon, where a file has several"
    Path("my_backbone.py").write_text(BACKBONE.replace("def build_backbone", "def small"))
    assert call("wsss-run", "baseline", "--data", "scenes", "--out", "run", "--backbone", "my_backbone.py:small",
                *TINY)[::2] == (0, "")
    assert predict(call, "run")[::2] == (0, "")


# %% Parts
@pytest.fixture
def parts(world):
    Path("my_parts.py").write_text(PARTS)
    return ("wsss-run", "my_parts.py", "--data", "scenes", "--out", "run", *TINY)

def test_settings_that_nest(call, fails, parts):
    "Dotted in --set, a table in the file; a run is of one value"
    assert "unknown setting 'part.rl': did you mean part.lr" in fails(*parts, "part.rl=1")
    assert "--set part.lr=fast: must be a number" in fails(*parts, "part.lr=fast")
    assert "part: setting lr=-1.0: must be above 0" in fails(*parts, "part.lr=-1")
    assert not Path("run").exists()
    assert call(*parts, "part.lr=0.05")[::2] == (0, "")
    assert tomllib.loads(Path("run/config.toml").read_text())["settings"]["part"] == {"lr":.05, "iters":8}
    assert "[settings.part]" in Path("run/config.toml").read_text()
    assert "other settings (settings.part.lr: 0.05 -> 0.2)" in fails(*parts, "part.lr=0.2", "--resume")
    line = fails(*parts[:6], "--stages", "grow", "--set", "part.lr=0.2")
    assert "begun with other settings (part.lr: 0.05 -> 0.2)" in line
    assert call(*parts, "part.lr=0.05", "--resume")[::2] == (0, "")
    assert "parts part.lr=0.1  of the part" in call("wsss-list", "settings", "--method", "my_parts.py")[1]
    result = json.loads(Path("run/result.json").read_text())
    assert result["seconds"].keys() >= {"train","evaluate","grow"}
    assert result["stage_memory_mb"].keys() == {"train","evaluate","grow"}

def test_the_stage_of_a_part(call, fails, parts):
    "It works with the settings of its part, and alone"
    begun = parts[:6]
    assert call(*parts[:6], "--stages", "train", *TINY, "part.iters=3")[::2] == (0, "")
    assert "unknown stage of parts 'gorw': did you mean grow?" in fails(*begun, "--stages", "gorw")
    assert call(*begun, "--stages", "grow")[::2] == (0, "")
    assert load_checkpoint(Run("run", "grow"))["step"] == 3 and load_checkpoint(Run("run"))["step"] == 2

def test_a_batch_that_grows(call, parts):
    "Killed where it grows and after, a training goes on at the sample where it was: bit for bit"
    settings = (*parts[:4], "--out", "{}", *TINY, "part.iters=40")
    def argv(out): return [a.format(out) for a in settings]
    assert call(*argv("whole"))[::2] == (0, "")
    whole = load_checkpoint(Run("whole", "grow"))
    assert (whole["step"], whole["consumed"]) == (40, 3*2+37*4)
    for step in (4, 9):  # the checkpoint is of two steps before, or later
        out = f"run_{step}"
        kill(started(*argv(out)), out, step, "grow")
        then = load_checkpoint(Run(out, "grow"))
        assert 0 < then["step"] < 40 and then["consumed"] == sum(2 if n < 3 else 4 for n in range(then["step"]))
        assert call(*argv(out), "--resume")[::2] == (0, "")
        assert_equal_runs(out, "whole", "grow")
        assert same(load_checkpoint(Run(out)), load_checkpoint(Run("whole")))

# %% What an author gets wrong
@pytest.mark.parametrize("was,now,words", [
    (".var(1).mean()", ".var(1)", "loss 'even': must be a tensor of one number, it has the shape"),
    (".var(1).mean()", ".var(1).mean().item()", "loss 'even': must be a tensor of one number, it is a float"),
    ("baseline.PRESETS", '{"shapes":{"w_evne":1}}', "unknown setting in preset shapes 'w_evne': did you mean w_even"),
    ("METHOD =", "raise SystemExit\nMETHOD =", "my_method.py: line 19: SystemExit")])
def test_a_mistake_of_an_author(fails, world, was, now, words):
    (world/"my_method.py").write_text(METHOD.replace(was, now))
    assert words in fails("wsss-run", "my_method.py", "--data", "scenes", "--out", "run", *TINY)

def test_a_changed_network_does_not_go_on(call, mine):
    "Its weights are of another shape, and so is what the optimiser keeps"
    Path("my_method.py").write_text(METHOD.replace("    def training_losses", """\
    def __init__(self, config, classes):
        super().__init__(config, classes)
        import torch
        self.more = torch.nn.Linear(2, 2)
    def training_losses"""))
    status,_,err = call("wsss-run", "my_method.py", "--data", "scenes", "--out", "run", *TINY, "--resume")
    assert status == 2 and "Traceback" not in err
    assert "last.pt: is of another network than these settings make (" in err.splitlines()[-1]

def test_settings_of_every_type(call, world):
    "What may be absent, what begins empty, words: from the command line, into the file, back again, in the list"
    more = ('    scale:float|None = None\n    sure:bool|None = None\n    sizes:tuple[int,...] = ()\n'
            '    names:tuple[str,...] = ("a","b")\n    marks:tuple[float,...]|None = None\n    def weights')
    (world/"my_method.py").write_text(METHOD.replace("    def weights", more, 1))
    argv = "wsss-run", "my_method.py", "--data", "scenes", "--out", "run", *TINY
    own = "scale=0.3", "sure=true", "sizes=1,2", "names=c,d", "marks=1,.5"
    assert call(*argv, *own)[::2] == (0, "") and predict(call, "run")[::2] == (0, "")
    c = load_run("run").config
    assert (c.scale, c.sure, c.sizes, c.names, c.marks) == (.3, True, (1,2), ("c","d"), (1.,.5))
    assert {type(n) for n in c.sizes} == {int}
    assert call(*argv[:5], "plain", *TINY, "lr=0.001")[::2] == (0, "") and predict(call, "plain")[::2] == (0, "")
    listed = call("wsss-list", "settings", "--method", "my_method.py")[1]
    assert "mine names=a,b" in listed and "mine sizes=  \n" in listed and "mine marks=none" in listed

def test_presets_of_parts_are_listed_dotted(call, world):
    (world/"my_parts.py").write_text(PARTS+'METHOD = replace(METHOD, presets={"shapes":{"lr":.1, "part":{"lr":.2}}})\n')
    assert call("wsss-list", "presets", "--method", "my_parts.py")[1] == "parts shapes  lr=0.1 part.lr=0.2\n"

@pytest.mark.parametrize("file,text,words", [
    ("result.json", "[]", "run/result.json: not the file of a run"),
    ("config.toml", 'seed = 0\n', "'seed' is missing"), ("config.toml", 'preset = "shapes"\n', "'preset' is missing")])
def test_a_damaged_record(fails, mine, file, text, words):
    path = mine/file
    path.write_text(path.read_text().replace(text, "") if file == "config.toml" else text)
    assert words in fails("wsss-run", "my_method.py", "--data", "scenes", "--out", "run", "--stages", "evaluate")


def test_a_file_of_the_name_of_a_kits_method_is_not_taken_for_it(call, fails, scenes, here):
    (here/"mine.py").write_text("from dataclasses import replace\nfrom wsss_nb.methods import baseline\n"
                                "METHOD = replace(baseline.METHOD)\n")
    assert call("wsss-run", "mine.py", "--data", scenes, "--out", "out", *TINY)[::2] == (0, "")
    for more in (("--stages", "evaluate"), ("--resume", *TINY)):
        line = fails("wsss-run", "baseline", "--data", scenes, "--out", "out", *more)
        assert "is not that of the kit; give the file" in line
    (here/"out"/"config.toml").unlink()
    line = fails("wsss-run", "mine.py", "--data", scenes, "--out", "out", "--resume", *TINY)
    assert "holds checkpoints but no config.toml" in line
