"""Every mistake of a user, given as a command

One line that names the file or option and says what to do, status 2, and nothing lost that was written."""
import ctypes
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from commands import BIN, TINY, run
from test_data_errors import BAD, NAME, folder, good, png16  # noqa: F401  (fixtures)
from wsss_nb.backbones.core import create_backbone
from wsss_nb.ground.io import read_label, write_label
from wsss_nb.run.folder import Run, load_checkpoint

# every image in the first step, every mask after it
ALL_AT_ONCE = (*TINY, "iters=1", "batch_size=6", "val_split=train")

def train(*more, data="scenes", out="out", options=TINY):
    return "wsss-run", "baseline", "--data", data, "--out", out, *options, *more
def names(path): return sorted(p.name for p in path.rglob("*")) if path.exists() else []


# %% Data
@pytest.mark.parametrize("case", BAD)
def test_data(fails, folder, here, case):  # noqa: F811
    "Also what is only found when an image is decoded, in the middle of a training: its steps are kept"
    spoil,words,file = BAD[case]
    spoil(folder)
    line = fails(*train(options=ALL_AT_ONCE))
    assert words in line and file in line
    if Run("out").config_file.exists(): assert load_checkpoint(Run("out"))["step"] in (0,1)


def test_a_mended_image_goes_on(call, fails, folder, here):  # noqa: F811
    "A damaged image stops the run; when it is replaced, the run goes on where it was"
    path = folder/"JPEGImages"/f"{NAME}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    options = (*TINY, "iters=6", "batch_size=1", "val_split=train")
    assert f"{NAME}.png: cannot be decoded" in fails(*train(options=options))
    step = load_checkpoint(Run("out"))["step"]
    path.write_bytes(whole)
    assert "--resume" in fails(*train(options=options))
    assert call(*train("--resume", options=options))[0] == 0
    assert step < load_checkpoint(Run("out"))["step"] == 6 and (here/"out"/"result.json").exists()


def test_loader_processes_complain_alike(fails, folder, here):  # noqa: F811
    (folder/"JPEGImages"/f"{NAME}.png").write_bytes(b"")
    assert f"{NAME}.png: the file is empty" in fails(*train(options=(*ALL_AT_ONCE, "workers=1")))


def test_odd_photos_are_converted(call, folder, here):  # noqa: F811
    "Greyscale, transparent, palette and CMYK files train, are scored and predicted like any other"
    for i,mode in enumerate(("L", "LA", "RGBA", "P", "CMYK")):
        path = folder/"JPEGImages"/f"train_{i:05d}.png"
        im = Image.open(path).convert("RGB")
        path.unlink()
        im.convert(mode).save(path.with_suffix(".jpg" if mode == "CMYK" else ".png"))
    assert call(*train(options=ALL_AT_ONCE))[0] == 0
    assert call("wsss-predict", "out", "scenes/JPEGImages", "--out", "labels")[0] == 0
    assert len(names(here/"labels")) == len(names(here/"scenes"/"JPEGImages"))


@pytest.mark.parametrize("spec,words", [("nowhere/at/all", "nowhere/at/all: no such folder"),
                                        ("voc:nowhere", "voc:ROOT needs"), ("shape", "did you mean shapes?"),
                                        ("shapes:szie=64", "did you mean size"),
                                        ("shapes:n=many", "n must be a whole number"), ("shapes:part=2", "[0,1]"),
                                        ("shapes:seed=-1", "seed 0 or more"),
                                        ("photos", "unknown dataset or folder 'photos'")])
def test_dataset_names(fails, here, spec, words):
    assert words in fails(*train(data=spec)) and not names(here)


# %% Names, options and settings
@pytest.mark.parametrize("argv,words", [
    (["baselin", "--data", "shapes", "--out", "out"], "unknown method 'baselin': did you mean baseline?"),
    (["baseline", "--out", "out"], "--data is missing"),
    (["baseline", "--data", "shapes"], "--out is missing"),
    (["--data", "shapes", "--out", "out"], "required: method"),
    ([*train()[1:], "--preset", "shape"], "unknown preset 'shape': did you mean shapes?"),
    ([*train()[1:], "--presets", "shapes"], "unknown option '--presets': did you mean --preset"),
    ([*train()[1:], "--pre", "shapes"], "unknown option '--pre'"),
    ([*train()[1:], "--backbone", "vit_toi"], "unknown backbone 'vit_toi': did you mean vit_toy or"),
    ([*train()[1:], "--backbone", "deit_tny_patch16_224"], "did you mean deit_tiny_patch16_224"),
    ([*train()[1:], "--stages", "train,eval"], "unknown stage of baseline 'eval': did you mean evaluate?"),
    ([*train()[1:], "--device", "gpu"], "unknown device 'gpu': choose one of: auto, cpu, cuda"),
    ([*train()[1:], "--labels", "list:a.txt", "--data", "shapes:n=8"], "list:a.txt: shapes:n=8 is made with labels"),
    (["baseline", "--data", "scenes", "--out", "out", "--iters", "0"], "iters=0: must be 1 or more"),
    (["baseline", "--data", "scenes", "--out", "out", "--iters", "-5"], "iters=-5: must be 1 or more"),
    ([*train()[1:], "--iters", "many"], "--iters: invalid int value: 'many'"),
    ([*train()[1:], "--seed", "-1"], "--seed -1: must be"),
    ([*train()[1:], "crop_sice=64"], "unknown setting 'crop_sice': did you mean crop_size"),
    ([*train()[1:], "lr=fast"], "--set lr=fast: must be a number"),
    ([*train()[1:], "iters=1.5"], "--set iters=1.5: must be a whole number"),
    ([*train()[1:], "sync_flip=perhaps"], "--set sync_flip=perhaps: must be true or false"),
    ([*train()[1:], "cam_scales=1,x"], "--set cam_scales=1,x: must be numbers such as 1,0.5"),
    ([*train()[1:], "lr"], "--set lr: write key=value"),
    ([*train()[1:], "log_every=0"], "log_every=0: must be 1 or more"),
    ([*train()[1:], "batch_size=0"], "batch_size=0: must be 1 or more"),
    ([*train()[1:], "workers=-1"], "workers=-1: must be 0 or more"),
    ([*train()[1:], "bg_thresh=2"], "bg_thresh=2.0: must be 1 or less"),
    ([*train()[1:], "low_thresh=0.9"], "low_thresh=0.9: must be no higher than high_thresh"),
    ([*train()[1:], "cam_scales=0"], "cam_scales=0: must be numbers above 0"),
    ([*train()[1:], "scale_range=1"], "scale_range=1: must be two numbers"),
    ([*train()[1:], "precision=half"], "precision=half: must be one of no, bf16, fp16"),
    ([*train()[1:], "fusion=max"], "fusion=max: must be one of sum-max"),
    ([*train()[1:], "supervision=mask"], "did you mean masks?"),
    ([*train()[1:], "aux_layer=99"], "aux_layer=99: vit_toy has no such block"),
    ([*train()[1:], "train_split=trian"], "did you mean train?"),
    ([*train()[1:], "val_split=vall"], "no split 'vall' to evaluate on (it has"),
])
def test_wrong_word(fails, scenes, here, argv, words):
    assert words in fails("wsss-run", *(scenes if a == "scenes" else a for a in argv)) and not names(here)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda(fails, scenes, trained, here):
    assert "--device cuda: this machine has no usable CUDA device" in fails(*train("--device", "cuda", data=scenes))
    assert ("--device cuda" in fails("wsss-predict", trained[0], scenes/"JPEGImages", "--out", "labels",
                                     "--device", "cuda"))


def test_other_commands(fails, scenes, trained, here):
    run_folder,photos,masks,classes = trained[0],scenes/"JPEGImages",scenes/"SegmentationClass",scenes/"classes.txt"
    (here/"empty").mkdir()
    (here/"text.png").write_text("no image")
    for argv,words in [
        (["wsss-list", "method"], "did you mean methods?"),
        (["wsss-list", "methods", "backbones"], "unrecognized arguments: backbones"),
        (["wsss-data", "chek"], "did you mean check?"), (["wsss-data", "check"], "required: root"),
        (["wsss-data", "check", "nowhere"], "nowhere: no such folder"),
        (["wsss-data", "check", scenes, "--workers", "0"], "--workers 0: must be 1 or more"),
        (["wsss-data", "make-shapes", "new", "--n", "0"], "n must be 1 or more"),
        (["wsss-data", "make-shapes", "new", "--thin", "7"], "thin=7.0"),
        (["wsss-data", "make-shapes", scenes], "already holds"), (["wsss-data", "make-shapes", photos], "is not empty"),
        (["wsss-predict", "nowhere", photos, "--out", "labels"], "nowhere: no such run folder or checkpoint"),
        (["wsss-predict", "empty", photos, "--out", "labels"], "empty: not a run folder"),
        (["wsss-predict", "text.png", photos, "--out", "labels"], "text.png: is neither a run folder nor"),
        (["wsss-predict", run_folder, "empty", "--out", "labels"], "empty: no images there"),
        (["wsss-predict", run_folder, "no.jpg", "--out", "labels"], "no.jpg: no such image or folder"),
        (["wsss-predict", run_folder, photos], "--out is missing"),
        (["wsss-predict", run_folder, photos, photos, "--out", "labels"], "two images have this name"),
        (["wsss-predict", run_folder, photos, "--out", photos], "would be overwritten"),
        (["wsss-predict", run_folder, "--out", "labels"], "required: images"),
        (["wsss-predict", run_folder, photos, "--out", "labels", "--crfs"], "unknown option"),
        (["wsss-eval", masks, masks], "--classes is missing"), (["wsss-eval", masks, masks, "--classes", "nowhere.txt"],
                                                                "nowhere.txt: no such file"),
        (["wsss-eval", masks, masks, "--classes", scenes/"labels.csv"], "the first line is not 'background'"),
        (["wsss-eval", "nowhere", masks, "--classes", classes], "nowhere: no such folder"),
        (["wsss-eval", "empty", masks, "--classes", classes], "empty: holds no PNG"),
        (["wsss-eval", run_folder/"predictions", masks, "--classes", classes], "no prediction for"),
        (["wsss-eval", masks, masks, "--classes", classes, "--list", "nowhere.txt"], "nowhere.txt: no such file"),
        (["wsss-eval", masks, masks, "--classes", classes, "--json", "text.png/x.json"], "text.png: cannot be written"),
    ]: assert words in fails(*argv), argv
    assert names(here) == ["empty", "text.png"]


@pytest.mark.parametrize("spoil,words", [
    (lambda p: p.write_text("no image"), "cannot be decoded"), (lambda p: p.write_bytes(b""), "is empty"),
    (lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be decoded"),
    (lambda p: write_label(p, np.zeros((4,4))), "the prediction is 4x4, the ground truth 64x64"),
    (lambda p: write_label(p, np.full((64,64), 99)), "label 99"),
    (lambda p: Image.new("RGB", (64,64)).save(p), "is no label map"), (lambda p: p.unlink(), "no prediction for 1 of")])
def test_bad_predictions(fails, scenes, here, spoil, words):
    ids = sorted((scenes/"SegmentationClass").glob("val*"))[:3]
    for folder in ("labels", "masks"):  # noqa: F402
        for p in ids: write_label(here/folder/p.name, read_label(p))
    spoil(here/"labels"/ids[1].name)
    line = fails("wsss-eval", "labels", "masks", "--classes", scenes/"classes.txt", "--json", "scores.json")
    assert words in line and ids[1].name in line and not (here/"scores.json").exists()


def test_damaged_photos_among_good_ones(fails, trained, scenes, here):
    "The others are predicted, and the line says so"
    photos = here/"photos"
    photos.mkdir()
    for i in range(4): shutil.copy(scenes/"JPEGImages"/f"train_{i:05d}.png", photos/f"{i}.png")
    (photos/"1.png").write_bytes((photos/"1.png").read_bytes()[:500])
    line = fails("wsss-predict", trained[0], "photos", "--out", "labels", "--overlay")
    assert "1.png: cannot be decoded" in line and "the other 3 are in labels" in line
    assert names(here/"labels") == sorted(f"{i}{s}.png" for i in (0,2,3) for s in ("", "_overlay"))
    (photos/"0.jpg").write_bytes(b"")
    (photos/"0.png").write_bytes(png16(np.zeros((8,8,3), np.uint8)))
    (photos/"0.jpg").unlink()
    Image.new("RGB", (3,90)).save(photos/"2.png")
    line = fails("wsss-predict", trained[0], "photos", "--out", "again")
    assert "0.png: has 16 bits" in line and "8 bits" in line and "3 images cannot be used" in line
    assert "the other 1 are in again" in line
    assert names(here/"again") == ["3.png"]


# %% Weight files
@pytest.fixture(scope="module")
def toy_weights(): return create_backbone("vit_toy").state_dict()

@pytest.mark.parametrize("file,words", [("other.safetensors", "another architecture"),
                                        ("small.pth", "another architecture"),
                                        ("torn.safetensors", "not a readable weight file"),
                                        ("torn.pth", "not a readable weight file"),
                                        ("text.pth", "not a readable weight file"),
                                        ("pickle.pth", "not a readable weight file"), ("list.pth", "holds list"),
                                        ("none.pth", "no such weight file"),
                                        ("empty.safetensors", "not a readable weight file")])
def test_init(fails, toy_weights, scenes, here, file, words):
    class Attack:
        def __reduce__(self): return os.system, (f"touch {here/'owned'}",)
    save_file({"patch.weight": torch.ones(3)}, here/"other.safetensors")
    torch.save({k:v[...,:2] for k,v in toy_weights.items()}, here/"small.pth")
    torch.save(toy_weights, here/"torn.pth")
    save_file(toy_weights, here/"torn.safetensors")
    for name in ("torn.pth", "torn.safetensors"): (here/name).write_bytes((here/name).read_bytes()[:5000])
    (here/"text.pth").write_text("weights")
    (here/"empty.safetensors").touch()
    torch.save({"model": Attack()}, here/"pickle.pth")
    torch.save([1,2], here/"list.pth")
    line = fails(*train("--init", file, data=scenes))
    assert words in line and f"--init {file}" in line
    assert not (here/"out").exists() and not (here/"owned").exists()


# %% Run folders
def test_a_run_is_not_overwritten(fails, trained, scenes, here):
    shutil.copytree(trained[0], here/"out")
    before = {p: p.read_bytes() for p in (here/"out").rglob("*") if p.is_file()}
    assert "out: holds a run already; continue it with --resume" in fails(*train(data=scenes))
    assert "other settings (settings.hidden: 16 -> 24)" in fails(*train("hidden=24", "--resume", data=scenes))
    assert "other settings (seed: 0 -> 3)" in fails(*train("--resume", "--seed", "3", data=scenes))
    line = fails(*train("--resume", "--iters", "9", data=scenes, options=[o for o in TINY if o != "iters=2"]))
    assert "other settings (settings.iters: 2 -> 9); its learning rate was planned for its length" in line
    assert "another --out" in line and "save_encoder of wsss_nb.use.experiment writes a file for --init" in line
    assert {p: p.read_bytes() for p in (here/"out").rglob("*") if p.is_file()} == before


def test_evaluation_must_fit_its_run(fails, trained, scenes, folder, here):  # noqa: F811
    shutil.copytree(trained[0], here/"out")
    def evaluate(*more, data=scenes):
        return fails("wsss-run", "baseline", "--data", data, "--out", "out", "--stages", "evaluate", *more)
    assert "was trained with preset=shapes, not preset=photos" in evaluate("--preset", "photos")
    assert "was trained with iters=2, not iters=9" in evaluate("--iters", "9")
    assert "unknown setting" in evaluate("--set", "bg_tresh=0.3")
    (folder/"classes.txt").write_text("background\ncat\ndog\nboat\nchair\ncloud\ncow\n")
    assert "scenes: its classes" in evaluate(data="scenes")
    assert ("no such run folder" in fails("wsss-run", "baseline", "--data", scenes, "--out", "none",
                                          "--stages", "evaluate"))


@pytest.mark.parametrize("file,spoil,words", [
    ("config.toml", lambda p: p.write_text("method = "), "put a copy of it back, or begin anew with another --out"),
    ("config.toml", lambda p: p.write_text("method = "), "config.toml: not readable as TOML"),
    ("config.toml", lambda p: p.write_text("a = 1"), "config.toml: 'method' is missing"),
    ("config.toml", lambda p: p.write_text("a = 1"), "put that back, or begin anew with another --out"),
    ("config.toml", lambda p: p.unlink(), "not a run folder"),
    ("config.toml", lambda p: p.write_text(p.read_text().replace("hidden =", "hiden =")), "unknown setting in"),
    ("config.toml", lambda p: p.write_text(p.read_text().replace("hidden = 16", "hidden = 24")),
     "another architecture"),
    ("checkpoints/last.pt", lambda p: p.unlink(), "last.pt: no checkpoint; train first"),
    ("checkpoints/last.pt", lambda p: p.write_bytes(p.read_bytes()[:3000]), "last.pt: not a readable checkpoint"),
    ("result.json", lambda p: p.write_text("{"), "result.json: not readable as JSON"),
    ("cams/val_00000.npz", lambda p: p.write_bytes(b"x"),
     "val_00000.npz: is no CAM file (it is cut off, or something else); make it again"),
    ("predictions/val_00000.png", lambda p: p.write_bytes(b"x"), "val_00000.png: cannot be decoded")])
def test_damaged_run(fails, trained, scenes, here, file, spoil, words):
    shutil.copytree(trained[0], here/"out")
    spoil(here/"out"/file)
    assert words in fails("wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages", "evaluate")


def test_no_checkpoint_to_go_on_from(fails, trained, scenes, here):
    "A training that is gone on with: the line says what to do, and nothing that was written is lost"
    shutil.copytree(trained[0], here/"out")
    (here/"out"/"result.json").unlink()
    last = here/"out"/"checkpoints"/"last.pt"
    last.write_bytes(last.read_bytes()[:3000])
    (here/"out"/"checkpoints"/"previous.pt").unlink(missing_ok=True)
    kept = {p: p.read_bytes() for p in (here/"out").rglob("*") if p.suffix in (".npz", ".png", ".csv", ".pt")}
    line = fails(*train("--resume", data=scenes))
    assert "last.pt: not a readable checkpoint" in line
    assert "move it away, and the training begins from its start" in line
    assert all(p.read_bytes() == held for p,held in kept.items())


# %% Disks (a full one, and what else the world does to a run: `failures/`)
def below_a_file(here):
    (here/"file").touch()
    return here/"file"/"out"
def a_file(here):
    (here/"file").touch()
    return here/"file"
def in_proc(here):
    if not os.path.isdir("/proc/self"): pytest.skip("this system has no /proc, where nobody can make a folder")
    return "/proc/wsss/out"
def forbidden(here):
    (here/"closed").mkdir(mode=0o500)
    return here/"closed"/"out"

@pytest.fixture
def bound():
    """Permissions bind this thread, though it be root's

    The capabilities to override them (numbers 1 and 2) are laid down, and taken up again."""
    if os.geteuid(): return (yield)
    if sys.platform != "linux": pytest.skip("root may write everywhere, permissions do not bind it")
    libc, header, sets = (
        ctypes.CDLL(None, use_errno=True),
        (ctypes.c_uint32 * 2)(0x20080522, 0),
        (ctypes.c_uint32 * 6)(),
    )  # effective, permitted, inheritable; the higher 32 after the lower
    assert libc.capget(header, sets) == 0
    held = sets[0]
    def hold(effective):
        sets[0] = effective
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    hold(held & ~0b110)
    yield
    hold(held)

@pytest.mark.parametrize("where", [below_a_file, a_file, in_proc, forbidden])
def test_unwritable_output(fails, trained, scenes, here, bound, where):
    out = where(here)
    labels,photo = scenes/"SegmentationClass",scenes/"JPEGImages"/"train_00000.png"
    for argv in (train(data=scenes, out=out), ("wsss-predict", trained[0], photo, "--out", out),
                 ("wsss-data", "make-shapes", out, "--n", "2", "--size", "32"), ("wsss-demo", "--out", out),
                 ("wsss-eval", labels, labels, "--classes", scenes/"classes.txt", "--json", f"{out}/scores.json")):
        line = fails(*argv)
        assert "cannot be written" in line and str(out) in line, line


def test_true_processes(scenes, here):
    "The same as a process of its own: status, one line on standard error, nothing else"
    for argv,words in ((train(data="nowhere/x"), "nowhere/x: no such folder"),
                       (train("--presett", "x", data=scenes), "did you mean --preset"),
                       (("wsss-eval", "a", "b", "--classes", "c"), "c: no such file"),
                       (("wsss-data", "check", "a"), "a: no such folder")):
        status,out,err = run(*argv)
        assert status == 2 and out == "" and len(err.splitlines()) == 1 and words in err, (argv, out, err)


def test_a_misspelt_method_is_answered_before_torch_is_loaded(here):
    "Which takes seconds"
    argv = sys.executable, "-X", "importtime", BIN/"wsss-run", "basline", "--data", "shapes", "--out", "out"
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=120)
    loaded = [l.rpartition("|")[2].strip() for l in done.stderr.splitlines() if l.startswith("import time:")]
    said = [l for l in done.stderr.splitlines() if not l.startswith("import time:")]
    assert (done.returncode, said) == (2, ["wsss-run: unknown method 'basline': did you mean baseline?"])
    assert "wsss_nb.use.known" in loaded and not any(m.partition(".")[0] == "torch" for m in loaded)

def test_the_option_that_was_meant(fails, here):
    "An option that is cut short is told alone, and never one that is no option of a command"
    for wrong,meant in (("--iter", "--iters"), ("--pre", "--preset"), ("--stage", "--stages")):
        assert fails("wsss-run", "baseline", wrong, "10").endswith(f"unknown option {wrong!r}: did you mean {meant}?")
    assert "xtra" not in fails("wsss-run", "baseline", "--xtrs", "1")

@pytest.mark.parametrize("while_loading", ["numpy.", "torch."])
def test_stopped_while_it_is_being_loaded(here, while_loading):
    "Ctrl-C before a command has begun: status 130 and no traceback out of an import"
    argv = sys.executable, "-X", "importtime", BIN/"wsss-run", "baseline", "--data", "nowhere", "--out", "out"
    process = subprocess.Popen([*map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:  # a line for each module that has been loaded
        if while_loading in line: break
    process.send_signal(signal.SIGINT)
    out,err = process.communicate(timeout=120)
    said = [l for l in err.splitlines() if not l.startswith("import time:")]
    assert (process.returncode, out, said) == (130, "", [])
