"Photos larger than any dataset's, odd machines and terminals, score files of other projects."
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from commands import BIN, SMALL, TINY, chain, run
from wsss_nb.data.folder import find_images
from wsss_nb.ground.io import read_image, read_label, write_image, write_label
from wsss_nb.run.evaluate import predict_image
from wsss_nb.scores.confusion import ConfusionMatrix
from wsss_nb.use.cli import COMMANDS, DATA_COMMANDS, main
from wsss_nb.use.experiment import load_run, predict_files
from wsss_nb.data.transforms import limited_size
from wsss_nb.use.photos import MAX_SIDE, predict_photo


def photo(h, w, seed=0):
    "Return a photo with large and small things in it"
    coarse = np.random.RandomState(seed).randint(0, 256, (h//41+1,w//41+1,3)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((41,41,1), np.uint8))[:h,:w])

def lines_with(text, word): return [line for line in text.splitlines() if word in line]


# %% Large photos
@pytest.fixture(scope="module")
def network(trained): return load_run(trained[0])

def test_images_of_datasets_are_predicted_as_they_are(network, scenes, tmp_path, capfd):
    "To the last bit, up to the limit itself"
    files = [*find_images(scenes/"JPEGImages").values()][:3]
    for name,size in (("voc",(375,500)), ("coco",(640,480)), ("limit",(96,MAX_SIDE))):
        write_image(tmp_path/"photos"/f"{name}.png", photo(*size))
        files.append(tmp_path/"photos"/f"{name}.png")
    for file,label in zip(files, predict_files(network, files, tmp_path/"out")):
        assert (read_label(label) == predict_image(network, read_image(file)).numpy()).all()
    assert capfd.readouterr().err == ""

@pytest.mark.trouble(
    "A photo `is 4000x3000 pixels, the network sees 1024x768 of it`",
    "Large photos take minutes and gigabytes at full size",
    "Nothing; or `--max-side 0` for the full size, `--tile 1024` for it in pieces",
)
def test_a_large_photo_is_reduced_and_that_is_said_once(trained, tmp_path, call):
    for k in range(2): write_image(tmp_path/"photos"/f"p{k}.jpg", photo(900, 1200, k))
    out = tmp_path/"out"
    status,_,err = call("wsss-predict", trained[0], tmp_path/"photos", "--out", out)
    assert status == 0
    (line,) = err.splitlines()
    assert "p0.jpg" in line and "1200x900" in line and f"{MAX_SIDE}x768" in line and "--max-side" in line
    assert all(read_label(out/f"p{k}.png").shape == (900,1200) for k in range(2))

@pytest.mark.parametrize("options", [("--max-side","0"), ("--tile","4000")])
def test_the_full_size_on_request(trained, network, tmp_path, call, options):
    write_image(tmp_path/"p.png", photo(60, 1300))
    status,_,err = call("wsss-predict", trained[0], tmp_path/"p.png", "--out", tmp_path/"out", *options)
    assert (status, err) == (0, "")
    assert (read_label(tmp_path/"out"/"p.png") == predict_image(network, read_image(tmp_path/"p.png")).numpy()).all()

class Spy:
    "Answers as a network would, and remembers what it saw"
    def __init__(self): self.seen = []
    def named_modules(self): return []
    def segmentation(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        return images

@pytest.mark.parametrize("size", [(3000,4000), (4000,3000), (200,9000), (1,2000)])
def test_memory_has_a_bound(size):
    "Neither the network nor its answer is larger than the limit, or than a piece"
    image = photo(*size)
    for options,bound in (({},MAX_SIDE), ({"max_side":512},512), ({"max_side":0, "tile":600},600)):
        label = predict_photo(spy := Spy(), image, **options)
        assert label.shape == size and label.dtype == np.uint8
        assert max(map(max, spy.seen)) <= bound
    assert spy.seen and limited_size(size, 0) == size

def test_labels_of_a_reduced_photo_lie_where_they_belong():
    image = np.zeros((1500,2000,3), np.uint8)
    image[300:700,1200:1800,1] = 255
    wanted = predict_image(Spy(), image).numpy()
    for options in ({}, {"tile":700, "max_side":0}, {"tile":400, "max_side":1000}):
        assert (predict_photo(Spy(), image, **options) == wanted).mean() > .995

@pytest.mark.parametrize("option", ["--max-side", "--tile"])
def test_a_limit_that_is_none_is_refused(trained, tmp_path, fails, option):
    write_image(tmp_path/"p.png", photo(60, 80))
    assert "16" in (line := fails("wsss-predict", trained[0], tmp_path/"p.png", "--out", tmp_path/"out", option, "16"))
    assert option[2:].replace("-", "_") in line

def test_progress_inside_a_photo(trained, tmp_path):
    write_image(tmp_path/"p.png", photo(400, 500))
    command = [
        BIN / "wsss-predict",
        trained[0],
        tmp_path / "p.png",
        "--out",
        tmp_path / "out",
        "--tile",
        "256",
        "--set",
        "infer_scales=1,0.5",
    ]
    code = ("import sys; from wsss_nb.use import photos, cli; sys.stderr.isatty = lambda: True; "
            "photos.PhotoWork.say.__globals__['time'].perf_counter = iter(range(0, 10**6, 10)).__next__; "
            f"sys.exit(cli.main({[str(c) for c in command]!r}))")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert "p.png, piece 1 of 6, look 2" in done.stderr
    assert "p.png, piece 6 of 6, look 2 of 2" in done.stderr


# %% Odd machines and terminals
FEW = (*TINY[:-3], "cam_scales=1,0.5", "infer_scales=1,0.5", "infer_par=1")

def copied(scenes, root, **images):
    "Return a copy of a dataset; `images` is the place in each split -> (H,W) of another photo there"
    shutil.copytree(scenes, root)
    for split in ("train","val"):
        ids = (root/"ImageSets"/"Segmentation"/f"{split}.txt").read_text().split()
        for k,size in images.items():
            write_image(root/"JPEGImages"/f"{ids[int(k[1:])]}.png", photo(*size))
            write_label(root/"SegmentationClass"/f"{ids[int(k[1:])]}.png", np.ones(size, np.uint8))
    return root

@pytest.mark.trouble(
    "`too_small` in `result.json`",
    "An image that is smaller than what the network can look at counts as background",
    "Leave it out of the list, or scale the data up",
)
@pytest.mark.parametrize("size", [(1,64), (64,1), (1,1)])
def test_an_image_too_small_for_a_network_is_named_and_counted(scenes, here, call, size):
    copied(scenes, here/"data", _1=size)
    for more in ((), ("--resume","--stages","evaluate")):  # from files too
        status,_,err = call("wsss-run", "baseline", "--data", "data", "--out", "run", *FEW, *more)
        assert status == 0, err
        assert lines_with(err, "too small") == ["val: 1 of 8 images are too small for this network, such as val_00001; "
                                                "they count as background everywhere (`too_small` in result.json)"]
        result = json.loads((here/"run"/"result.json").read_text())
        assert result["too_small"] == ["val_00001"]
    assert not read_label(here/"run"/"predictions"/"val_00001.png").any()
    masks = [read_label(here/"data"/"SegmentationClass"/f"val_{i:05d}.png") for i in range(8)]
    labels = [read_label(here/"run"/"predictions"/f"val_{i:05d}.png") for i in range(8)]
    matrix = ConfusionMatrix(len(result["classes"]))
    for label,mask in zip(labels, masks): matrix.add(label, mask)
    assert result["miou"]["prediction"] == pytest.approx(matrix.miou)

def test_scores_of_usual_images_say_nothing_of_small_ones(trained):
    assert "too_small" not in json.loads((trained[0]/"result.json").read_text())

@pytest.mark.parametrize("method", ["toco", "tscd"])
def test_small_images_in_every_method(scenes, here, call, method):
    copied(scenes, here/"data", _1=(1,64))
    status,_,err = call("wsss-run", method, "--data", "data", "--out", "run", *FEW, *SMALL[method])
    assert status == 0 and "val_00001" in err, err

def test_a_stage_that_needs_the_image_names_it(scenes, here, fails):
    copied(scenes, here/"data", _1=(1,64))
    line = fails("wsss-run", "toco+crf+deeplab", "--data", "data", "--out", "run", *chain("toco", "crf", "deeplab"))
    assert "train_00001: image of (1, 64) pixels" in line

def test_a_small_photo_among_others(trained, tmp_path, fails):
    for k,size in enumerate(((1,64), (60,80))): write_image(tmp_path/"photos"/f"p{k}.png", photo(*size))
    assert "p0.png: image of (1, 64) pixels" in fails(
        "wsss-predict", trained[0], tmp_path / "photos", "--out", tmp_path / "out"
    )
    assert (tmp_path/"out"/"p1.png").exists()

def without_shared_memory(*argv):
    "Run a command where /dev/shm holds 64 KB, as in some containers; skip where that cannot be had"
    if not shutil.which("unshare"): pytest.skip("no unshare here")
    inside = "mount -t tmpfs -o size=64k tmpfs /dev/shm && df -k /dev/shm | grep -q ' 64 ' || exit 77; exec \"$@\""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inside, "sh", str(BIN / argv[0]), *map(str, argv[1:])],
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and "wsss" not in done.stderr: pytest.skip(f"no namespaces here: {done.stderr}")
    return done

@pytest.mark.trouble(
    "`/dev/shm is too small`",
    "Processes that load images share memory there; containers have 64 MB, some 64 KB",
    "`--resume --set workers=0`, or `docker run --shm-size=2g`",
)
def test_hardly_any_shared_memory(scenes, here):
    command = "wsss-run", "baseline", "--data", scenes, "--out", here/"run", *TINY
    done = without_shared_memory(*command, "workers=2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "/dev/shm is too small" in line and "--resume --set workers=0" in line and len(line) < 300
    done = without_shared_memory(*command, "--resume")   # TINY says workers=0
    assert (done.returncode, done.stderr) == (0, "")

@pytest.mark.parametrize(
    "env",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
def test_terminals_without_some_characters(scenes, trained, here, env):
    def said(*argv):
        done = subprocess.run(
            [BIN / argv[0], *argv[1:]], capture_output=True, text=True, env=os.environ | env, encoding="latin1"
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done.stdout+done.stderr
    assert "mit_b0" in said("wsss-list")
    masks = scenes/"SegmentationClass"
    assert "100.0" in said("wsss-eval", masks, masks, "--classes", scenes/"classes.txt")
    assert "nothing is wrong" in said("wsss-data", "check", scenes)
    (here/"Bäume").mkdir()
    write_image(here/"Bäume"/"Föhre.png", photo(60, 80))
    said("wsss-predict", trained[0], "Bäume", "--out", "Bäume/out")
    assert (here/"Bäume"/"out"/"Föhre.png").exists()

def test_what_a_terminal_lacks_is_said_otherwise(monkeypatch, tmp_path):
    "Dashes of the score table, dots of ranges, and anything else as a question mark"
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["wsss-list", "methods"]) == 0
    print("0…20 – 3×3 → Föhre")
    stream.flush()
    assert raw.getvalue().endswith(b"0...20 - 3x3 -> F?hre\n")
    for command in COMMANDS:
        with pytest.raises(SystemExit): main([command, "--help"])
    for action in DATA_COMMANDS:
        with pytest.raises(SystemExit): main(["wsss-data", action, "--help"])

def test_a_backend_for_windows_that_there_are_none_of(scenes, here):
    status, _, err = run(
        "wsss-run",
        "baseline",
        "--data",
        scenes,
        "--out",
        here / "run",
        *TINY,
        env=os.environ | {"MPLBACKEND": "nonsense"},
    )
    assert (status, err) == (0, "")
    assert (here/"run"/"report"/"picture.png").exists()


# %% Score files of other projects
def test_score_files_are_scored(here, call, fails):
    "CAMs of IRN and SEAM at a threshold or swept; probabilities and logits as they are"
    mask = np.zeros((40,60), np.uint8)
    mask[10:30,15:45] = 1
    write_label(here/"masks"/"a.png", mask)
    (here/"classes.txt").write_text("background\ncat\ndog\n")
    cam = np.where(mask == 1, .8, .4).astype(np.float32)
    forms = {"irn":{"keys":np.array([0]), "high_res":cam[None]}, "seam":{0:cam}, "probs":np.stack([1-cam, cam, 0*cam]),
             "logits":np.log(np.stack([1-cam, cam, 0*cam+1e-3]))}
    for name,value in forms.items():
        (here/name).mkdir()
        np.save(here/name/"a.npy", value, allow_pickle=True)
        how = ("--threshold", "0.5") if name in ("irn","seam") else ()
        status,out,err = call("wsss-eval", name, "masks", "--classes", "classes.txt", "--json", "s.json", *how)
        assert (status, json.loads((here/"s.json").read_text())["miou"]) == (0, 1), err
    status, out, _ = call(
        "wsss-eval", "irn", "masks", "--classes", "classes.txt", "--threshold", "sweep", "--json", "s.json"
    )
    assert status == 0 and 0.4 <= json.loads((here/"s.json").read_text())["threshold"] < .8
    assert "--threshold" in fails("wsss-eval", "seam", "masks", "--classes", "classes.txt")
    assert "background of its own" in fails(
        "wsss-eval", "probs", "masks", "--classes", "classes.txt", "--threshold", "0.3"
    )
