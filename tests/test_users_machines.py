"Photos larger than any dataset's, odd machines and terminals, score files of other projects."
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from commands import BIN, TINY, run
from wsss_nb.data.folder import find_images
from wsss_nb.ground.io import read_image, read_label, write_image
from wsss_nb.run.evaluate import predict_image
from wsss_nb.use.experiment import load_run, predict_files
from wsss_nb.use.photos import MAX_SIDE, limited_size, predict_photo


def photo(h, w, seed=0):
    "Return a photo with large and small things in it"
    coarse = np.random.RandomState(seed).randint(0, 256, (max(h//40, 1),max(w//40, 1),3)).astype(np.uint8)
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
    command = [BIN/"wsss-predict", trained[0], tmp_path/"p.png", "--out", tmp_path/"out", "--tile", "256", "--set", "infer_scales=1,0.5"]
    code = ("import sys; from wsss_nb.use import photos, cli; sys.stderr.isatty = lambda: True; "
            "photos.PhotoWork.say.__globals__['time'].perf_counter = iter(range(0, 10**6, 10)).__next__; "
            f"sys.exit(cli.main({[str(c) for c in command]!r}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE":"0"})
    assert done.returncode == 0, done.stderr
    assert "p.png, piece 1 of 6, look 2" in done.stderr
    assert "p.png, piece 6 of 6, look 2 of 2" in done.stderr
