"Every command answers for help at once, does what it promises, and leaves the files that others rely on."
import json
import shutil
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
from PIL import Image

from commands import BIN, TINY, run
from wsss_nb.use.cli import COMMANDS, DATA_COMMANDS
from wsss_nb.ground.core import IGNORE_INDEX
from wsss_nb.ground.io import read_cam, read_label, write_label

HELPS = [*([c] for c in COMMANDS), ["wsss-data"], *(["wsss-data", a] for a in DATA_COMMANDS)]


def values(x):
    "Return all values in nested lists and dictionaries"
    return ([v for y in (x.values() if isinstance(x, dict) else x) for v in values(y)]
            if isinstance(x, (dict, list)) else [x])


@pytest.mark.parametrize("argv", HELPS, ids=" ".join)
def test_help(argv):
    begin = time.perf_counter()
    status,out,err = run(*argv, "--help")
    print(f"{time.perf_counter()-begin:.2f} s")
    assert (status, err) == (0, "") and out.startswith(f"usage: {' '.join(argv)}")
    if argv != ["wsss-data"]:
        for line in out.splitlines():
            assert not line.startswith("  -") or line.strip().count("  "), f"an option without explanation: {line}"


def test_help_without_torch():
    script = f"""import sys
from wsss_nb.use.cli import main
for argv in {HELPS}:
    try: status = main([*argv, "--help"])
    except SystemExit as e: status = e.code
    assert status == 0, argv
print(*sorted({{"torch", "timm", "matplotlib", "accelerate", "cv2", "PIL"}} & set(sys.modules)), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr


def test_all_commands_are_installed():
    assert {p.name for p in BIN.glob("wsss-*")} == {*COMMANDS, "wsss-data"}


@pytest.mark.parametrize("what,words", [("methods", "baseline"), ("methods", "toco"), ("backbones", "vit_toy"),
                                        ("datasets", "voc:ROOT"), ("presets", "baseline photos"),
                                        ("presets", "toco coco"), ("settings", "baseline iters=20000  steps")])
def test_list(call, what, words):
    status,out,err = call("wsss-list", what)
    assert (status, err) == (0, "") and words in out
    assert words in call("wsss-list")[1]


def test_presets_are_listed_as_they_are_written(call, fails, here):
    "What is listed can be given after --set"
    lines = call("wsss-list", "presets")[1].splitlines()
    assert lines
    for line in lines:
        method,_,*settings = line.split()
        assert ("split" in fails("wsss-run", method, "--data", "shapes:n=1", "--out", "out", "--set", *settings,
                                 "train_split=nowhere"))


# %% The whole road
def test_make_shapes(call, here):
    "Images, masks, saliency maps and lists; called again it makes what is missing and touches nothing else"
    def make(): assert call("wsss-data", "make-shapes", "scenes", "--n", "3", "--size", "32")[0] == 0
    make()
    ids = {split: (here/"scenes"/"ImageSets"/"Segmentation"/f"{split}.txt").read_text().split()
           for split in ("train", "val", "test")}
    assert [len(i) for i in ids.values()] == [3, 50, 50]
    for folder in ("JPEGImages", "SegmentationClass", "Saliency"):
        assert {p.stem for p in (here/"scenes"/folder).glob("*.png")} == {*sum(ids.values(), [])}
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (here/"scenes").rglob("*.png")}
    lost = ids["val"][7]
    (here/"scenes"/"JPEGImages"/f"{lost}.png").unlink()
    make()
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (here/"scenes").rglob("*.png")}
    assert after.keys() == before.keys() and all(after[p][0] == before[p][0] for p in after)
    assert all(after[p] == before[p] for p in after if p.stem != lost)


def test_check(call, scenes):
    status,out,err = call("wsss-data", "check", scenes)
    assert (status, err) == (0, "") and "nothing is wrong" in out


def test_table(trained):
    out,printed = trained
    lines = {l.split()[0]:l.split() for l in printed.splitlines() if l.strip()}
    result = json.loads((out/"result.json").read_text())
    assert lines["mean"][1:] == [f"{100*result['miou'][k]:.1f}" for k in ("seed", "pseudo_label", "prediction")]
    assert lines.keys() >= {"background", "cat", "cloud", "seconds:"}
    for name in ("result.json", "report/index.html", "report/picture.png", "log.csv"):
        assert str(out/name) in printed and (out/name).stat().st_size


def test_result(trained, scenes):
    "The keys that others read; a value that was not computed is absent, and none is null"
    result = json.loads((trained[0]/"result.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert (result.keys() >= {"method", "data", "split", "classes", "miou", "iou", "seconds", "images_per_second",
                              "peak_memory_mb", "device", "config_hash"})
    assert ((result["method"], result["data"], result["split"], result["device"])
            == ("baseline", str(scenes), "val", "cpu"))
    assert result["classes"] == (scenes/"classes.txt").read_text().split()
    assert result["miou"].keys() == result["iou"].keys() == {"seed", "pseudo_label", "prediction"}
    for k,iou in result["iou"].items():
        assert iou.keys() <= set(result["classes"]) and result["miou"][k] == pytest.approx(np.mean(list(iou.values())))
    assert result["seconds"].keys() == {"train", "pseudo_label", "prediction", "evaluate"}
    assert min(result["seconds"].values()) >= 0
    assert result["images"] == {"train": 12, "val": 8} and result["supervision"] == "labels"
    assert all(v is not None for v in values(result))
    assert result["command"].startswith("wsss-run baseline --data") and result["machine"]["cpu"]
    assert result["versions"]["torch"]


def test_run_folder(trained, scenes):
    out = trained[0]
    config = tomllib.loads((out/"config.toml").read_text())
    # resolved to the last default
    assert config["settings"]["iters"] == 2 and config["settings"]["fusion"] and config["seed"] == 0
    assert {p.name for p in (out/"checkpoints").iterdir()} == {"last.pt", "best.safetensors"}
    assert list(out.glob("events.out.tfevents*"))
    ids = (scenes/"ImageSets"/"Segmentation"/"val.txt").read_text().split()
    for folder,suffix in (("cams", ".npz"), ("labels", ".png"), ("predictions", ".png")):
        assert sorted(p.name for p in (out/folder).iterdir()) == sorted(i+suffix for i in ids)
    assert (read_label(out/"labels"/f"{ids[0]}.png").shape == read_cam(out/"cams"/f"{ids[0]}.npz")[1].shape[1:]
            == (64,64))
    html = (out/"report"/"index.html").read_text()
    assert "<script" not in html and "baseline" in html and "http://" not in html.replace("http://www.w3.org", "")
    assert Image.open(out/"report"/"picture.png").width > 300


def test_eval_agrees_with_run(call, trained, scenes, here):
    "Prediction and pseudo labels, scored as any two folders, get the score of the run"
    folders,classes = [str(scenes/"SegmentationClass"), "--classes", str(scenes/"classes.txt")],scenes/"classes.txt"
    result = json.loads((trained[0]/"result.json").read_text())
    for kind,name in (("predictions", "prediction"), ("labels", "pseudo_label")):
        status,out,err = call("wsss-eval", trained[0]/kind, *folders, "--list",
                              scenes/"ImageSets"/"Segmentation"/"val.txt", "--json", "scores.json")
        scores = json.loads((here/"scores.json").read_text())
        assert (status, err) == (0, "") and scores["images"] == 8 and scores["classes"] == classes.read_text().split()
        assert scores["miou"] == pytest.approx(result["miou"][name]) and f"{100*scores['miou']:.1f}" in out
        assert "worst images" in out
        assert "\nin percent; missed: of a class's pixels, called background; taken: of the pixels called it," in out


def test_eval_can_leave_unsure_pixels_out(call, fails, scenes, here):
    for p in sorted((scenes/"SegmentationClass").glob("val*"))[:3]:
        mask = read_label(p)
        write_label(here/"masks"/p.name, mask)
        mask[:,:32] = IGNORE_INDEX
        write_label(here/"labels"/p.name, mask)
    argv = "wsss-eval", "labels", "masks", "--classes", scenes/"classes.txt", "--json", "scores.json"
    assert "--ignore-unsure" in fails(*argv)
    assert call(*argv, "--ignore-unsure")[0] == 0
    scores = json.loads((here/"scores.json").read_text())
    assert scores["miou"] == 1 and scores["coverage"] == .5


def test_predict(trained, scenes, here):
    "A folder and single files; nothing is known of them; palette PNGs come out, the same as in the run"
    photos = here/"photos"
    photos.mkdir()
    names = sorted(p.name for p in (trained[0]/"predictions").iterdir())[:3]
    for n in names: (photos/n).write_bytes((scenes/"JPEGImages"/n).read_bytes())
    (photos/"notes.txt").write_text("no image")
    Image.open(photos/names[0]).resize((90,40)).save(here/"wide.jpg")
    status,out,err = run("wsss-predict", trained[0], "photos", "wide.jpg", "--out", "labels", "--overlay")
    assert (status, err) == (0, "") and "4 label maps in labels" in out
    assert ({p.name for p in (here/"labels").iterdir()} == {f"{n[:-4]}{s}.png" for n in (*names, "wide.jpg")
                                                            for s in ("", "_overlay")})
    for n in names: assert (read_label(here/"labels"/n) == read_label(trained[0]/"predictions"/n)).all()
    assert read_label(here/"labels"/"wide.png").shape == (40,90) and Image.open(here/"labels"/"wide.png").mode == "P"
    assert Image.open(here/"labels"/"wide_overlay.png").size == (90,40)


def test_predict_takes_a_checkpoint(call, trained, scenes, here):
    photo = scenes/"JPEGImages"/next((trained[0]/"predictions").iterdir()).name
    for k in ("last.pt", "best.safetensors"):
        assert call("wsss-predict", trained[0]/"checkpoints"/k, photo, "--out", k)[0] == 0
    assert (here/"last.pt"/photo.name).read_bytes() == (trained[0]/"predictions"/photo.name).read_bytes()


# %% Stages, and other ways to call
def test_module_runs_like_the_command(here):
    "As torchrun and accelerate launch call it; trained only, nothing of an evaluation is there or claimed"
    done = subprocess.run([sys.executable, "-m", "wsss_nb.cli", "baseline", "--data", "shapes:n=8,size=64", "--out",
                           "out", "--stages", "train", *TINY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "--stages evaluate" in done.stdout and "report" in done.stdout.split("\n")[0]
    assert "index.html" not in done.stdout
    result = json.loads((here/"out"/"result.json").read_text())
    assert not {"miou", "iou", "split"} & result.keys() and result["seconds"].keys() == {"train"}
    assert not (here/"out"/"report").exists() and (here/"out"/"checkpoints"/"last.pt").exists()


def test_stages_apart_equal_both_at_once(call, trained, scenes, here):
    assert call("wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages", "train", *TINY)[0] == 0
    assert call("wsss-run", "baseline", "--data", scenes, "--out", "out", "--stages", "evaluate")[0] == 0
    a,b = (json.loads((o/"result.json").read_text()) for o in (here/"out", trained[0]))
    assert a["miou"] == b["miou"] and a["iou"] == b["iou"] and a["config_hash"] == b["config_hash"]


def test_evaluating_with_other_settings_makes_the_files_again(call, trained, scenes, here):
    "Another threshold, other scales, other data with the same names: no score is made of files from before"
    def evaluate(data, *settings):
        assert call("wsss-run", "baseline", "--data", data, "--out", "out", "--stages", "evaluate", *settings)[0] == 0
        return ({p: p.stat().st_mtime_ns for k in ("cams", "labels", "predictions") for p in (here/"out"/k).iterdir()},
                json.loads((here/"out"/"result.json").read_text())["miou"])
    shutil.copytree(trained[0], here/"out")
    shutil.copytree(scenes, here/"mirrored")
    for p in (here/"mirrored"/"JPEGImages").glob("val*"):
        Image.open(p).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(p)
    files,before = evaluate(scenes)
    for use,again in (((scenes,), False), ((scenes, "--set", "bg_thresh=0.8"), True), (("mirrored",), True),
                      ((scenes,), True)):
        old,(files,miou) = files,evaluate(*use)
        assert len(files) == 24 and all((files[p] != old[p]) == again for p in files), use
    assert miou == before


def test_photos_with_labels_only(call, fails, scenes, here):
    """Photos, one list and labels.csv are enough to train and to predict

    That there is nothing to score is said before the training"""
    root = here/"photos"
    (root/"ImageSets"/"Segmentation").mkdir(parents=True)
    (root/"JPEGImages").mkdir()
    ids = (scenes/"ImageSets"/"Segmentation"/"train.txt").read_text().split()
    for i in ids: (root/"JPEGImages"/f"{i}.png").write_bytes((scenes/"JPEGImages"/f"{i}.png").read_bytes())
    for f in ("classes.txt", "ImageSets/Segmentation/train.txt"): (root/f).write_bytes((scenes/f).read_bytes())
    (root/"labels.csv").write_text("".join(l for l in (scenes/"labels.csv").open()
                                           if not l.startswith(("val", "test"))))
    assert call("wsss-data", "check", "photos")[0] == 0
    line = fails("wsss-run", "baseline", "--data", "photos", "--out", "out", *TINY)
    assert "photos: has no split 'val'" in line and "--stages train" in line and "val_split" in line
    assert not (here/"out").exists()
    assert call("wsss-run", "baseline", "--data", "photos", "--out", "out", "--stages", "train", *TINY)[0] == 0
    assert call("wsss-predict", "out", "photos/JPEGImages", "--out", "labels")[0] == 0
    assert len(list((here/"labels").iterdir())) == len(ids)
    # a split without masks: predicted, not scored
    (root/"ImageSets"/"Segmentation"/"val.txt").write_text("\n".join(ids[:5]))
    status,out,err = call("wsss-run", "baseline", "--data", "photos", "--out", "out", "--stages", "evaluate")
    assert (status, err) == (0, "") and "nothing was scored: there is no ground truth" in out
    result = json.loads((here/"out"/"result.json").read_text())
    assert "miou" not in result and "iou" not in result and (here/"out"/"report"/"index.html").exists()
