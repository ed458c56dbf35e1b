"""The compiled pixel-adaptive refinement against the same in tensors, and alone: bad input, threads, memory.

The published numbers are in the golden tests of the methods, which take the compiled form where it was built."""
import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from wsss_nb.labels.pseudo import make_pseudo_label
from wsss_nb.refine.par import DILATIONS, KERNELS, par, pixel_affinity, propagate_affinity

ext = pytest.importorskip("wsss_nb._lattice",
                          reason="the extension is not compiled: pip install -e . with a C++ compiler")
if not hasattr(ext, "refine"): pytest.skip("the extension was compiled before this was in it", allow_module_level=True)

CLOSENESS = [.01/48]*48

def patches(height, width, batch=1, seed=0):
    "Images of flat squares, every other one with noise, (B,3,H,W)"
    r = np.random.RandomState(seed)
    squares = r.rand(batch, 3, height//5+1, width//5+1).repeat(5, 2).repeat(5, 3)[:, :, :height, :width]
    noise = .01*r.randn(batch, 3, height, width)*(np.arange(batch) % 2)[:, None, None, None]
    return torch.tensor((squares+noise).clip(0, 1), dtype=torch.float32)

def maps(batch, channels, height, width, seed=1):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))

def call(images=None, masks=None, distances=DILATIONS, rounds=2, sharpness=.3, closeness=CLOSENESS, variation=.01,
         threads=1):
    images = patches(9, 11).numpy() if images is None else images
    masks = maps(1, 2, 9, 11).numpy() if masks is None else masks
    return ext.refine(images, masks, list(distances), rounds, sharpness, closeness, variation, threads)


# %% Against the tensors
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3), (15, 16), (16, 17), (23, 24), (25, 24), (61, 83)])
def test_as_in_tensors(size, kernel):
    "Odd sizes, images smaller than the largest distance, one image and more, one map and many"
    for batch, channels in ((1, 1), (2, 6), (3, 7), (1, 21)):
        for dilations, num_iter in ((DILATIONS, 10), ((1,), 1), ((40, 2, 2), 3), ((0, 1), 2), ((1, 2), 0)):
            images, masks = patches(*size, batch), maps(batch, channels, *size)
            a, b = (par(images, masks, dilations, num_iter, kernel, backend) for backend in ("cpp", "torch"))
            assert a.dtype == b.dtype == torch.float32 and (a-b).abs().max() <= 1e-5, (batch, channels, dilations)

@pytest.mark.parametrize("kernel", KERNELS)
def test_any_images(kernel):
    "Noise, black, one bright pixel, steps of one grey level: where contrasts are small and exponents large"
    dot, step = torch.zeros(1, 3, 40, 40), torch.zeros(1, 3, 40, 40)
    dot[..., 20, 20], step[..., 20:] = 1, 1/255
    for images in (torch.rand(1, 3, 40, 40), dot*0, dot, step, dot+step, (patches(40, 40)*255).round()/255):
        a, b = (par(images, maps(1, 3, 40, 40), kernel=kernel, backend=backend) for backend in ("cpp", "torch"))
        assert (a-b).abs().max() <= 1e-5

@pytest.mark.parametrize("kernel", KERNELS)
def test_pixels_like_no_neighbour(kernel):
    "Their exponents are thousands, and float32 has no right answer: the compiled form is as near to it as the tensors"
    for dilations in (DILATIONS, (1,)):
        images, masks = patches(61, 83, 2), maps(2, 3, 61, 83)
        lone = torch.rand(2, 1, 61, 83, generator=torch.Generator().manual_seed(2)) < .02
        images = torch.where(lone, 1-images, images)
        affinity = pixel_affinity(images.double(), dilations, **KERNELS[kernel])
        truth = propagate_affinity(masks.double(), affinity, dilations, 3)
        compiled, tensors = ((par(images, masks, dilations, 3, kernel, b)-truth).abs() for b in ("cpp", "torch"))
        assert compiled.mean() <= 2*tensors.mean() and compiled.max() <= 4*tensors.max()

def test_masks_of_another_size():
    images = patches(37, 50, 2)
    for size in ((37, 50), (9, 13), (80, 99)):
        a, b = (par(images, maps(2, 3, *size), backend=backend) for backend in ("cpp", "torch"))
        assert a.shape == (2, 3, 37, 50) and (a-b).abs().max() <= 1e-5

def test_pseudo_labels_are_the_same(monkeypatch):
    "What training sees: labels of whole CAMs"
    import wsss_nb.labels.pseudo as module
    images, cam = patches(96, 80, 2), maps(2, 5, 96, 80)
    image_labels = torch.tensor([[1., 0, 1, 0, 0], [0, 1, 1, 1, 0]])
    box = torch.tensor([[0, 96, 0, 80], [5, 90, 0, 70]])
    found = []
    for backend in ("cpp", "torch"):
        monkeypatch.setattr(module, "par", lambda *args, b=backend: par(*args, backend=b))
        found.append(make_pseudo_label(images, cam, image_labels, .3, .6, box))
    assert torch.equal(*found)

def test_what_is_not_finite_shows():
    "A colour that is none spoils the pixels that see it, and no others; as in tensors"
    images = patches(61, 83)
    images[0, 1, 30, 40] = torch.nan
    a, b = (par(images, maps(1, 2, 61, 83), num_iter=1, backend=backend) for backend in ("cpp", "torch"))
    assert torch.equal(a.isnan(), b.isnan()) and 0 < a.isnan().sum() <= 2*49
    assert (a-b).nan_to_num().abs().max() <= 1e-5

def test_input_is_left_alone():
    images, masks = patches(20, 30), maps(1, 2, 20, 30)
    before = images.clone(), masks.clone()
    assert par(images, masks, num_iter=0).data_ptr() != masks.data_ptr()
    par(images, masks)
    assert torch.equal(images, before[0]) and torch.equal(masks, before[1])


# %% The extension
@pytest.mark.parametrize("what,change", [
    ("numpy array", {"images": [[1.]]}), ("numpy array", {"masks": None, "images": torch.zeros(1, 3, 9, 11)}),
    ("expected floats", {"images": np.zeros((1, 3, 9, 11), np.uint8)}),
    (r"\(B,3,H,W\)", {"images": np.zeros((3, 9, 11))}),
    (r"\(B,3,H,W\), got \(1,4,9,11\)", {"images": np.zeros((1, 4, 9, 11))}),
    ("empty", {"masks": np.zeros((1, 0, 9, 11))}),
    ("does not fit", {"masks": np.zeros((2, 2, 9, 11))}), ("does not fit", {"masks": np.zeros((1, 2, 11, 9))}),
    ("distances: expected", {"distances": ()}), ("distances: expected", {"distances": [1]*65}),
    ("distances: must not be negative, got -1", {"distances": (1, -1)}), ("rounds: must be", {"rounds": -1}),
    ("rounds: must be", {"rounds": 10**5}), ("sharpness: must be a positive", {"sharpness": 0.}),
    ("sharpness", {"sharpness": float("nan")}), ("closeness: expected 48", {"closeness": [0.]}),
    ("closeness: not all", {"closeness": [float("inf")]*48}), ("variation: must be finite", {"variation": 1e300}),
    ("threads: must be", {"threads": 0}),
])
def test_bad_arguments(what, change):
    with pytest.raises(ValueError, match=what): call(**change)

def test_threads_change_nothing():
    "The same bits for any number of threads, also of torch, and from several Python threads at once"
    images, masks = patches(70, 91, 3).numpy(), maps(3, 9, 70, 91).numpy()
    def work(threads): return call(images, masks, rounds=5, threads=threads)
    alone, found, before = work(1), [None]*3, torch.get_num_threads()
    for threads in (2, 3, 5, 64): np.testing.assert_array_equal(work(threads), alone)
    def run(i): found[i] = work(2)
    workers = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for w in workers: w.start()
    for w in workers: w.join()
    for x in found: np.testing.assert_array_equal(x, alone)
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(par(torch.tensor(images), torch.tensor(masks)))
    finally: torch.set_num_threads(before)
    assert torch.equal(*results)

def test_plain_loops():
    "What runs on other processors gives the same numbers up to rounding"
    code = ("import numpy as np; from wsss_nb import _lattice as ext; r = np.random.RandomState(0); "
            "i,m = r.rand(1,3,40,51).astype('f'), r.rand(1,3,40,51).astype('f'); "
            "print(ext.kernels); print(*ext.refine(i, m, [1,3,24], 5, .3, [.001]*24, .01).ravel())")
    def run(**env):
        return subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True,
                              check=True).stdout.splitlines()
    native, plain = run(), run(WSSS_LATTICE="plain")
    assert plain[0] == "plain"
    np.testing.assert_allclose(*(np.array(x[1].split(), float) for x in (native, plain)), atol=1e-5)

def megabytes(key):
    with open("/proc/self/status") as f: return next(int(line.split()[1]) for line in f if line.startswith(key))/1024

@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc to read the memory from")
def test_no_leak():
    "A thousand calls, good and bad, leave the process as large as it was after the first hundred"
    def both():
        call(threads=2)
        with pytest.raises(ValueError): call(rounds=-1)
    for _ in range(100): both()
    gc.collect()
    before = megabytes("VmRSS")
    for _ in range(1000): both()
    gc.collect()
    assert megabytes("VmRSS")-before < 4

def test_kept_memory_is_of_one_image():
    "Blocks kept for the next call: the weights of an image, its maps twice; not those of a batch"
    ext.release_memory()
    call(patches(128, 128, 4).numpy(), maps(4, 3, 128, 128).numpy())
    weights, planes = 48*128*128*4/2**20, (2*3+3+2)*128*208*4/2**20
    assert ext.held_bytes()/2**20 <= weights+planes+5*2  # blocks are whole pages of 2 MB
    ext.release_memory()
    assert ext.held_bytes() == 0
