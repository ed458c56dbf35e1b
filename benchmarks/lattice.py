"""Speed of the compiled lattice: the bilateral filter and the dense energy loss, against the published way of working.

    python benchmarks/lattice.py --json FILE [--voc FOLDER] [--rounds 9] [--only SUBSTRING] [--plot FILE.png]

The peer of the filter is peer_filter.cpp, compiled here with -O3: one channel after the other, scalar, threads over
images only. It loops over a number of
channels it does not know, as a general filter does, and so takes as long as the published one; told that it is one, the
compiler makes it 2.3 times faster
(rows `...-tight`). The peer of the loss is PyTorch around that filter. Ours and the peer run in turn in this process;
times are medians, ratio = peer/ours.
Memory is the peak of a fresh process above what it held before the call (inputs included before, results after). Photos
are those of VOC under FOLDER;
without one, toy scenes take their place, which have fewer vertices, and `images` in the JSON says so. M/N is vertices
per pixel.
"""
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from PIL import Image

from wsss_nb import _lattice
from wsss_nb.ground.core import write_json
from wsss_nb.data.shapes import ShapesDataset
from wsss_nb.run.folder import machine

HERE = Path(__file__).resolve().parent
SIGMA_RGB, SIGMA_XY = 15., 50.  # what the loss passes for a 512 crop at half size


def photos(voc, count, toys=12):
    """Return up to `count` photos of VOC as uint8 arrays, or `toys` toy scenes where no folder is given

    And which they are."""
    if not voc: return [ShapesDataset(n=toys, size=512).load_image(i) for i in range(toys)], "toy scenes"
    files = sorted((Path(voc)/"JPEGImages").glob("*.jpg"))[:count]
    if not files: raise SystemExit(f"{voc}: no photos in JPEGImages/; without --voc toy scenes are used")
    return [np.array(Image.open(f).convert("RGB")) for f in files], "photos of VOC"


def crop(image, side, step=1):
    """The middle of an image whose shorter side was scaled to `side`, every `step`-th pixel, (3,side/step,side/step)
    float32"""
    h, w = image.shape[:2]
    s = side/min(h, w)
    image = np.array(Image.fromarray(image).resize((max(side, round(w*s)), max(side, round(h*s))), Image.BILINEAR))
    top, left = (image.shape[0]-side)//2, (image.shape[1]-side)//2
    return np.ascontiguousarray(image[top:top+side:step, left:left+side:step].transpose(2, 0, 1), np.float32)


def vertices(image, sigma_rgb, sigma_xy):
    "Vertices per pixel of an image (3,H,W)"
    y, x = np.indices(image.shape[1:]).astype(np.float32)
    points = np.concatenate([np.stack([x, y])/np.float32(sigma_xy), image/np.float32(sigma_rgb)]).reshape(5, -1).T
    return _lattice.Lattice(points).num_vertices/len(points)


def at_quantiles(images, density, quantiles):
    "The images at these quantiles of `density`, with it"
    ranked = sorted(((density(im), i) for i, im in enumerate(images)))
    return [(images[ranked[round(q*(len(ranked)-1))][1]], ranked[round(q*(len(ranked)-1))][0]) for q in quantiles]


def peer_library(folder):
    "Compile the peer and return its function (images, values, threads, tight) -> filtered"
    lib = Path(folder)/"peer.so"
    subprocess.run([os.environ.get("CXX", "g++"), "-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-o", lib,
                    HERE/"peer_filter.cpp"], check=True)
    f = ctypes.CDLL(str(lib)).peer_filter
    f.argtypes = [ctypes.c_void_p]*3+[ctypes.c_int]*4+[ctypes.c_float]*2+[ctypes.c_int]*2
    def run(images, values, threads, tight=False):
        out = np.empty_like(values)
        f(images.ctypes.data, values.ctypes.data, out.ctypes.data, *values.shape, SIGMA_RGB, SIGMA_XY,
          0 if tight else 1, threads)
        return out
    return run


def in_turn(contestants, rounds, seconds=20.):
    "Median milliseconds of each function, all run in turn `rounds` times or until the time is up"
    times = [[] for _ in contestants]
    for f in contestants: f()
    begin = time.perf_counter()
    for r in range(rounds):
        if r >= 3 and time.perf_counter()-begin > seconds: break
        for t, f in zip(times, contestants):
            start = time.perf_counter()
            f()
            t.append(1e3*(time.perf_counter()-start))
    return [statistics.median(t) for t in times]


def peak_mb(call):
    "Memory that a call takes above what the process held: meant for a fresh process"
    def kb(key): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
    _lattice.release_memory(), ctypes.CDLL(None).malloc_trim(0)  # what setting up left behind must not hide anything
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
    before = kb("VmRSS")
    call()
    return (kb("VmHWM")-before)/1024


def row(case, threads, ours_ms, peer_ms, **more):
    return ({"case": case, "threads": threads, "ours_ms": round(ours_ms, 2), "peer_ms": round(peer_ms, 2),
             "ratio": round(peer_ms/ours_ms, 2)} | more)


class Cases:
    "All cases by name: (ours, peer, what is fixed)"
    def __init__(self, voc, peer):
        images, self.kind = photos(voc, 60)
        crops = [crop(im, 512, 2) for im in images]
        self.picked = at_quantiles(crops, lambda im: vertices(im, SIGMA_RGB, SIGMA_XY), (.1, .5, .9))
        self.peer, self.rng = peer, np.random.RandomState(0)
        self.values = self.rng.rand(4, 21, 256, 256).astype(np.float32)
        self.values /= self.values.sum(1, keepdims=True)
        self.noise = self.rng.randint(0, 256, (1, 3, 256, 256)).astype(np.float32)
        (self.low, m0), (self.mid, m1), (self.high, m2) = self.picked
        four = np.stack([self.low, self.mid, self.high, self.mid[:, ::-1]])
        v = self.values
        noisy = np.clip(self.mid+self.rng.randn(3, 256, 256).astype(np.float32)*8, 0, 255)[None]
        self.filters = {"filter-256-21-b1": (self.mid[None], v[:1], m1),
            "filter-low-256-21-b1": (self.low[None], v[:1], m0), "filter-high-256-21-b1": (self.high[None], v[:1], m2),
                        "filter-256-4-b1": (self.mid[None], v[:1, :4].copy(), m1),
            "filter-256-2-b1": (self.mid[None], v[:1, :2].copy(), m1), "filter-256-21-b4": (four, v, (m0+2*m1+m2)/4),
                        "filter-noisy-256-21-b1": (noisy, v[:1], vertices(noisy[0], SIGMA_RGB, SIGMA_XY)),
                        "filter-noise-256-21-b1": (self.noise, v[:1], vertices(self.noise[0], SIGMA_RGB, SIGMA_XY))}
        self.four = four

    def filter(self, case, threads):
        images, values, density = self.filters[case]
        return ((lambda: _lattice.bilateral_filter(images, values, SIGMA_RGB, SIGMA_XY, threads=threads)),
                (lambda: self.peer(images, values, threads)),
                (lambda: self.peer(images, values, threads, True)), density)

    def energy(self, threads):
        "Forward and backward from logits (4,21,512,512) to their gradient, image and ROI already at half size"
        torch.set_num_threads(threads)
        logits = torch.from_numpy(self.rng.randn(4, 21, 512, 512).astype(np.float32)*2)
        rois, free = np.ones((4, 256, 256), np.float32), self.rng.rand(4, 256, 256) < .3
        rois[:, :20] = 0
        images = self.four
        def ours():
            x = logits.numpy()
            probs = _lattice.halve_softmax(x, threads=threads)
            value, gated = _lattice.energy(images, probs, rois, free, SIGMA_RGB, SIGMA_XY, threads=threads)
            return value, _lattice.halve_softmax_backward(x, gated, rois, -2/4, threads=threads)
        def peer():
            x = logits.detach().requires_grad_()
            probs = F.interpolate(x.softmax(1), scale_factor=.5, mode="bilinear", align_corners=False)
            with torch.no_grad():
                roi = torch.from_numpy(rois)[:, None]
                s = probs*roi
                gate = roi-probs.amax(1, keepdim=True)
                gate[torch.from_numpy(free)[:, None]] = 1
                gated = torch.from_numpy(self.peer(images, s.numpy(), threads))*gate.clamp(min=0)
                value = -float(s.flatten() @ gated.flatten())/4
            probs.backward(-2/4*gated*roi)
            return value, x.grad.numpy()
        return ours, peer


def memory_of(case, who, threads, voc=None, script=__file__):
    "Ask a fresh process; None where the system does not tell"
    args = [sys.executable, script, "--memory", case, "--who", who, "--threads",
            str(threads)]+(["--voc", str(voc)] if voc else [])
    done = subprocess.run(args, capture_output=True, text=True)
    return round(float(done.stdout.split()[-1]), 1) if done.returncode == 0 else None


def draw(rows, file):
    "Bars of the ratios"
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(8, .3*len(rows)+1))
    ax.barh([f"{r['case']}, {r['threads']} thr." for r in rows][::-1], [r["ratio"] for r in rows][::-1],
            color="#4878a8")
    ax.axvline(1, color="k", lw=1)
    ax.set_xlabel("times faster than the peer")
    fig.tight_layout()
    fig.savefig(file, dpi=120)


def table(rows):
    for r in rows: print("  ".join(f"{k}={v}" if k != "case" else f"{v:36}" for k, v in r.items()), flush=True)


@call_parse
def main(
    json:str=None,      # write the rows to this file
    voc:str=None,       # VOC folder with JPEGImages/; None: toy scenes
    rounds:int=9,       # how often each is timed
    only:str="",        # only cases with this in their name
    plot:str=None,      # draw the ratios into this file
    memory:str=None,    # (internal) print the memory of this case
    who:str="ours",     # (internal) ours or peer
    threads:int=0,      # only this number of threads; 0: one and two
):
    "Time the filter and the energy loss"
    with tempfile.TemporaryDirectory() as tmp:
        cases = Cases(voc, peer_library(tmp))
        if memory:
            ours, peer = cases.energy(threads)[:2] if memory.startswith("energy") else cases.filter(memory, threads)[:2]
            return print(peak_mb(ours if who == "ours" else peer))
        rows = []
        def measured(case, t, ours, peer, **more):
            rows.append(row(case, t, *in_turn((ours, peer), rounds), ours_mb=memory_of(case, "ours", t, voc),
                            peer_mb=memory_of(case, "peer", t, voc), **more))
            table(rows[-1:])
        for t in (threads,) if threads else (1, 2):
            for case in (c for c in cases.filters if only in c):
                ours, peer, tight, density = cases.filter(case, t)
                a, b = ours(), peer()
                assert np.abs(a-b).max() <= 1e-5*np.abs(b).max(), case
                measured(case, t, ours, peer, vertices_per_pixel=round(density, 2))
                if case == "filter-256-21-b1":
                    rows.append(row(f"{case}-tight", t, *in_turn((ours, tight), rounds))), table(rows[-1:])
            if only in "energy-4x21x512x512":
                ours, peer = cases.energy(t)
                (v, g), (w, h) = ours(), peer()
                assert abs(v-w) <= 1e-4*abs(w) and np.abs(g-h).max() <= 1e-4*np.abs(h).max()
                measured("energy-4x21x512x512", t, ours, peer)
    result = {"machine": machine() | {"kernels": _lattice.kernels}, "images": cases.kind, "rows": rows}
    if json: write_json(json, result)
    if plot: draw(rows, plot)
