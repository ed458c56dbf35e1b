"Every colour there is, changed as Pillow changes it: by the compiled loops, by those for any processor, and by tables."
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from torchvision.transforms import functional as TF

from wsss_nb.data import transforms

try: from wsss_nb import _lattice as ext
except ImportError: ext = None
compiled = pytest.mark.skipif(ext is None, reason="the extension is not compiled: pip install -e . with a C++ compiler")

@cache
def every_colour():
    return np.ascontiguousarray(np.arange(2**24, dtype="<u4").view(np.uint8).reshape(4096, 4096, 4)[..., :3])
@cache
def in_pillow(): return Image.fromarray(every_colour())
@cache
def some_colours():
    return every_colour().reshape(-1, 3)[np.random.RandomState(0).randint(2**24, size=300*333)].reshape(300, 333, 3)

@pytest.fixture(params=("compiled", "tables"))
def way(request, monkeypatch):
    if request.param == "tables": monkeypatch.setattr(transforms, "_compiled", lambda: None)
    elif transforms._compiled() is None: pytest.skip("not compiled, or a processor without AVX2")


# %% Against Pillow
@pytest.mark.parametrize("turn", (-.31, .1))
def test_hue_of_every_colour(way, turn):
    assert np.array_equal(transforms.turn_hue(every_colour(), turn), TF.adjust_hue(in_pillow(), turn))

@pytest.mark.parametrize("factor", (.6137, 1.3791))
def test_saturation_of_every_colour(way, factor):
    assert np.array_equal(transforms._faded(every_colour(), factor), ImageEnhance.Color(in_pillow()).enhance(factor))

def test_grey_of_every_colour(way):
    grey = np.asarray(in_pillow().convert("L"))
    assert np.array_equal(transforms.greyscale(every_colour()), np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    assert transforms._mean_grey(every_colour()) == grey.sum(dtype=np.int64)/grey.size

def test_all_turns_and_factors(way):
    x = some_colours()
    for turn in np.linspace(-.5, .5, 129):
        assert np.array_equal(transforms.turn_hue(x, turn), TF.adjust_hue(Image.fromarray(x), turn)), turn
    for f in (0, 1, *np.random.RandomState(1).uniform(0, 2, 60)):
        for ours, theirs in ((transforms._faded(x, f), TF.adjust_saturation),
                             (transforms._faded(x, f, 0), TF.adjust_brightness),
                             (transforms._faded(x, f, int(transforms._mean_grey(x)+.5)), TF.adjust_contrast)):
            assert np.array_equal(ours, theirs(Image.fromarray(x), f)), (theirs.__name__, f)


# %% The extension
@compiled
def test_any_size_and_layout():
    x = some_colours()
    for n in (*range(1, 40), 255, 256, 257, 300):
        for part in (x[:1, :n], x[:n, :1], x[:n, 7:9], x[:3, n-1::-1], x[2:0:-1, :n]):
            want = np.asarray(Image.fromarray(part).convert("L"))
            assert np.array_equal(ext.fade(part, 0.)[..., 1], want) and ext.grey_mean(part) == want.mean()
            assert np.array_equal(ext.turn_hue(part, 25), TF.adjust_hue(Image.fromarray(part), .1))
    assert ext.turn_hue(x[:0], 3).shape == (0, 333, 3) and ext.fade(x[:, :0], 1., 3).shape == (300, 0, 3)

@compiled
def test_input_is_left_alone():
    x = some_colours()
    before = x.copy()
    ext.turn_hue(x, 9), ext.fade(x, .3), ext.fade(x, .3, 200)
    assert np.array_equal(x, before)

@compiled
def test_bad_arguments():
    x = np.zeros((4, 5, 3), np.uint8)
    for what, call in {"uint8": lambda: ext.turn_hue(x.astype(int), 1), "numpy array": lambda: ext.fade(x.tolist(), 1.),
                       r"\(4,5\)": lambda: ext.grey_mean(x[..., 0]), r"\(H,W,3\)": lambda: ext.turn_hue(x[..., :2], 1),
                       "turn: must be 0 to 255, got 256": lambda: ext.turn_hue(x, 256),
                       "turn: must": lambda: ext.turn_hue(x, -1),
                       "level: must be 0 to 255, got -1": lambda: ext.fade(x, 1., -1),
                       "level: must": lambda: ext.fade(x, 1., 256),
                       "factor: must be a finite": lambda: ext.fade(x, float("nan")),
                       "factor: must": lambda: ext.fade(x, 1e300), "is empty": lambda: ext.grey_mean(x[:0])}.items():
        with pytest.raises(ValueError, match=what): call()

@compiled
def test_plain_loops():
    "What runs on other processors gives the same bits; the transforms take tables there, which are faster"
    code = ("import hashlib, numpy as np; from wsss_nb import _lattice as ext; from wsss_nb.data import transforms; "
            "x = np.random.RandomState(0).randint(256, size=(500, 501, 3)).astype('u1');"
            "print(ext.kernels, transforms._compiled() is None); "
            "print(*(hashlib.sha1(y).hexdigest() for y in "
            "(ext.turn_hue(x, 200), ext.fade(x, 1.2), ext.fade(x, .7, 99))), ext.grey_mean(x))")
    def run(**env):
        return subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True,
                              check=True).stdout.splitlines()
    native, plain = run(), run(WSSS_LATTICE="plain")
    assert plain[0] == "plain True" and native[1] == plain[1]
