"""Weight files on their way: damaged, replaced by something else, packed with more than weights. And whose inference a
published file gets."""
import pickle
import shutil
import stat
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_bad_input import train
from test_fuzz_released import cpdgl, toco, tscd
from test_released import FAMILIES as SHAPES
from test_released import photos, random_tensors, saved  # noqa: F401

from wsss_nb.backbones.core import load_matching, read_weights
from wsss_nb.backbones.files import BESIDE, Beside, read_torch
from wsss_nb.ground.core import UserError
from wsss_nb.networks.decoders import multi_scale_logits
from wsss_nb.run.folder import Run, load_checkpoint
from wsss_nb.use.experiment import is_released, load_run
from wsss_nb.use.released import load_released


def flip(path, tensor):
    "Change one bit of the first value of a tensor in a file"
    whole, value = path.read_bytes(), tensor.detach().contiguous().numpy().tobytes()[:64]
    at = whole.index(value)
    path.write_bytes(whole[:at]+bytes([whole[at] ^ 1])+whole[at+1:])


# %% Damage
@pytest.fixture
def run(trained, here):
    shutil.copytree(trained[0], here/"out")
    return Run(here/"out")

def largest(state): return max(state.values(), key=torch.numel)

def test_a_damaged_checkpoint_is_named(run, fails, call, scenes, photos):  # noqa: F811
    weights = largest(load_checkpoint(run)["model"])
    shutil.copy(run.last, run.checkpoints/"other.pt")
    flip(run.last, weights)
    torch.load(run.last, weights_only=True)  # PyTorch sees nothing
    words = "out/checkpoints/last.pt: not a readable checkpoint (it is damaged, the sum of "
    evaluate = "wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages", "evaluate"
    assert words in fails(*evaluate)
    assert words in fails("wsss-predict", "out", photos, "--out", "labels")
    assert "last.pt: not a readable weight file (it is damaged" in \
        fails("wsss-predict", "out/checkpoints/last.pt", photos, "--out", "labels")
    assert words in fails(*train("--resume", data=scenes))
    (run.checkpoints/"other.pt").rename(run.previous)
    assert fails(*evaluate).endswith("; go on with --resume: the one before is there")
    assert call("wsss-predict", "out/checkpoints/previous.pt", photos, "--out", "labels")[::2] == (0, "")

def test_damaged_safetensors(run, fails, photos):  # noqa: F811
    weights = largest(load_file(run.best))
    assert stat.S_IMODE(run.best.stat().st_mode) == stat.S_IMODE(run.last.stat().st_mode)
    load_run(run.best)
    flip(run.best, weights)
    load_file(run.best)  # safetensors sees nothing
    assert "best.safetensors: not a readable weight file (it is damaged, its sum does not fit" in \
        fails("wsss-predict", run.best, photos, "--out", "labels")

def test_damaged_artefacts(run, fails, scenes):
    "Status 2 and one line, for CAMs and label maps"
    path = run.path/"cams"/"val_00000.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:90]+bytes([whole[90] ^ 4])+whole[91:])
    assert "val_00000.npz: is no CAM file" in fails("wsss-run", "baseline", "--data", scenes, "--out", "out",
                                                    "--stages", "evaluate")

def test_a_damaged_published_file(tmp_path, fails, photos):  # noqa: F811
    state = toco()
    torch.save(state, tmp_path/"w.pth")
    flip(tmp_path/"w.pth", state["decoder.conv6.weight"])
    assert "w.pth: not a readable weight file (it is damaged, the sum of " in \
        fails("wsss-predict", tmp_path/"w.pth", photos, "--out", tmp_path/"out")

def test_files_without_sums_are_read(tmp_path):
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(toco(), tmp_path/"w.pth")
    finally: torch.serialization.set_crc32_options(True)
    assert not load_released(tmp_path/"w.pth")[1].missing


# %% Something else
@pytest.mark.parametrize("content,words", [
    (b"", "it is empty, 0 bytes"), (b"<!DOCTYPE html><html><head>", "it is a web page"),
    (b"\n <html lang='en'>", "it is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "it is a photo (JPEG)"), (b"\x89PNG\r\n\x1a\n", "it is an image (PNG)"),
    (b"\x1f\x8b\x08\0", "packed by gzip"), (b"PK\x03\x04 torn", "it is cut off or damaged"),
    (b"Not found", "it does not begin like a file of PyTorch")])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pth.tar"])
def test_what_is_named_like_weights(name, content, words, tmp_path, fails, photos):  # noqa: F811
    (tmp_path/name).write_bytes(content)
    line = fails("wsss-predict", tmp_path/name, photos, "--out", tmp_path/"out")
    safe = name.endswith("safetensors") and ("PyTorch" in words or "cut off" in words)
    assert f"{name}: not a readable weight file (" in line and (safe or words in line)


@pytest.mark.parametrize("name", ["w.pth", "w.PTH", "w.pt", "w.ckpt", "w.pth.tar", "W.PTH.TAR", "w.bin"])
def test_names_of_files(name, tmp_path):
    torch.save({"state_dict": toco()}, tmp_path/name)
    assert is_released(tmp_path/name) and load_run(tmp_path/name).config.hidden == 24

def test_without_num_batches_tracked(tmp_path):
    state = tscd()
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    torch.save(old, tmp_path/"w.pth")
    method, report = load_released(tmp_path/"w.pth")
    assert all(k.endswith("num_batches_tracked") for k in report.missing)
    for k, v in old.items(): assert torch.equal(method.state_dict()[k], v)
    assert load_matching(method, old) == []


# %% More than weights
class Calls:
    "Unpickling this calls a function"
    def __init__(self, function, *args): self.function, self.args = function, args
    def __reduce__(self): return self.function, self.args

def renamed(data, name, module, new):
    "A pickle of protocol 2 in which a global has another name"
    return data.replace(
        f"c{module}\n{name}\n".encode(), f"c{new.rpartition('.')[0]}\n{new.rpartition('.')[2]}\n".encode()
    )


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_stand_ins_do_nothing(name, zipped, tmp_path, monkeypatch):
    "Whatever a file does with an allowed name: the class that it names is never made, its methods are never called"
    made = []
    monkeypatch.setattr(Namespace, "__init__", lambda *a, **k: made.append(a))
    class Odd:
        def __reduce__(self): return Namespace, ("first",), {"__class__": "x", "__setstate__": 1}
    torch.save({"w": torch.ones(2), "odd": Odd()}, tmp_path/"a.pth", pickle_protocol=2,
               _use_new_zipfile_serialization=zipped)
    whole = tmp_path/"w.pth"
    if zipped:
        with zipfile.ZipFile(tmp_path/"a.pth") as a, zipfile.ZipFile(whole, "w") as b:
            for m in a.namelist():
                data = a.read(m)
                b.writestr(m, renamed(data, "Namespace", "argparse", name) if m.endswith("data.pkl") else data)
    else: whole.write_bytes(renamed((tmp_path/"a.pth").read_bytes(), "Namespace", "argparse", name))
    found = read_torch(whole, BESIDE)
    assert type(found["odd"]) is Beside and not vars(found["odd"]) and torch.equal(found["w"], torch.ones(2))
    assert list(read_weights(whole)) == ["w"] and not made

@pytest.mark.parametrize("function,args", [(np.fromfile, ("/etc/hostname",)), (pickle.loads, (b"N.",)), (print, ("x",)),
                                           (getattr, (Namespace, "__init__")), (map, (print, ["x"]))])
def test_other_names_are_refused_beside_allowed_ones(function, args, tmp_path, capsys):
    for evil in (Calls(function, *args), [Namespace(a=Calls(function, *args))], {"k": np.float64(1),
                 "e": Calls(function, *args)}):
        torch.save({"w": torch.ones(2), "best": np.float64(3), "evil": evil}, tmp_path/"w.pth")
        with pytest.raises(UserError, match="and was not executed"): read_weights(tmp_path/"w.pth")
    assert capsys.readouterr().out == ""

def test_a_run_holds_nothing_beside(run):
    "What the kit wrote itself has no such objects, so none are allowed there"
    state = torch.load(run.last, weights_only=True)
    torch.save(state | {"note": Namespace(a=1)}, run.last)
    with pytest.raises(UserError, match="argparse.Namespace, which is no tensor, and was not executed"):
        load_checkpoint(run)


# %% Whose inference
def test_tscd_and_afa(tmp_path):
    "TSCD's own evaluation is one look at the native size; AFA's has 512 pixels, three scales and mirrors (TSCD 6)"
    torch.save(tscd(), tmp_path/"w.pth")
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    method, report = load_released(tmp_path/"w.pth")
    c = method.config
    assert (report.method, report.also, c.infer_size, c.infer_scales, c.infer_flip) == (
        "tscd",
        ("afa",),
        0,
        (1.0,),
        False,
    )
    with torch.no_grad():
        one_look = torch.nn.functional.interpolate(method.seg_logits(x), x.shape[-2:], mode="bilinear")
    assert torch.allclose(method.segmentation(x), one_look, atol=1e-6)
    assert "infer_size=0 infer_scales=1 infer_flip=false" in str(report)
    assert "also     --method afa: longer side 512, three scales, mirrors" in str(report)
    other, report = load_released(tmp_path/"w.pth", "afa")
    c = other.config
    assert (report.method, report.preset, report.also) == ("afa", "afa", ("tscd",))
    assert (c.infer_size, c.infer_fit, c.infer_scales, c.infer_flip, c.fusion) == \
        (512, "long", (1., .5, .75), True, "mean-max") and c.symmetric_affinity
    expected = multi_scale_logits(other.seg_logits, x, None, (1., .5, .75), True, "mean-max", (384, 512))
    assert torch.equal(other.segmentation(x), expected)
    method, _ = load_released(tmp_path/"w.pth", overrides=["infer_flip=true", "infer_size=512"])
    assert method.config.infer_flip and method.config.infer_size == 512

def test_seco_and_tsd_cam(tmp_path):
    torch.save(cpdgl(), tmp_path/"w.pth")
    (a, one), (b, two) = load_released(tmp_path/"w.pth"), load_released(tmp_path/"w.pth", "seco")
    assert (one.method, two.method) == ("cpdgl", "seco") and a.config == b.config
    saved(random_tensors(SHAPES["toco"](80)), tmp_path/"coco.pth")
    _, report = load_released(tmp_path/"coco.pth")
    assert report.preset == "coco" and "also     --method tsd-cam: its dense CRF" in str(report)

def test_the_command_changes_inference(tmp_path, call, fails, photos):  # noqa: F811
    torch.save(tscd(), tmp_path/"w.pth")
    def out(*more): return call("wsss-predict", tmp_path/"w.pth", photos, "--out", tmp_path/"labels", *more)[1]
    assert "infer_size=0 infer_scales=1 infer_flip=false" in out()
    assert "read as afa" in (text := out("--method", "afa")) and "infer_size=512 infer_scales=1,0.5,0.75" in text
    assert "infer_scales=1,0.5 infer_flip=true" in out("--set", "infer_flip=true", "infer_scales=1,0.5")
    assert "unknown setting" in fails("wsss-predict", tmp_path/"w.pth", photos, "--out", "x", "--set", "flip=no")
