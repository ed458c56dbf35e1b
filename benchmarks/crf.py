"""Speed of the compiled CRF against pydensecrf (pip install -e '.[crf]'), with the settings of the methods.

    python benchmarks/crf.py --json FILE [--voc FOLDER] [--rounds 5] [--only SUBSTRING] [--plot FILE.png]

A case is crf-WIDTHxHEIGHT-LABELS-SXY-SRGB: everything from unaries to probabilities, setup and 10 iterations, on photos
at three quantiles of vertices per
pixel (low, middle, high), times and ratio from the medians over photos; `build_ms` and `infer_ms` are ours apart.
`-labels` returns labels, no probabilities;
`-merged` has 16 of 21 classes at the floor of the unaries everywhere, which are then one channel. `crf-folder` is a
folder of six images, one per thread.
Both run in turn in this process. Photos, toy scenes and memory: see lattice.py. `agree` is the share of pixels with
equal labels, `max_dq` the largest difference of probabilities.
"""
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydensecrf.densecrf as dcrf
from fastcore.script import call_parse
from lattice import at_quantiles, draw, memory_of, peak_mb, photos, table, vertices
from PIL import Image

from wsss_nb import _lattice
from wsss_nb.ground.core import write_json
from wsss_nb.run.folder import machine

HEIGHT, WIDTH, ITERATIONS = 375, 500, 10
SETTINGS = {"80-13": (3, 3, 80, 13, 10), "67-3": (3, 3, 67, 3, 4), "121-5": (1, 1, 121, 5, 4),
            "67-3-g1": (1, 3, 67, 3, 4), "50-5": (3, 3, 50, 5, 10)}
CASES = [f"crf-{WIDTH}x{HEIGHT}-{k}-{s}" for k in (21, 3) for s in SETTINGS if (k, s) != (3, "67-3-g1")]


def unaries(classes, seed=0, present=None):
    """-log of smooth random probabilities with some noise, clipped at 1e-5

    Only the first `present` classes are above that"""
    rng = np.random.RandomState(seed)
    def noise(): return Image.fromarray(rng.randn(12, 16).astype(np.float32)*3).resize((WIDTH, HEIGHT), Image.BILINEAR)
    z = np.stack([np.array(noise()) for _ in range(classes)])
    z += .3*rng.randn(*z.shape).astype(np.float32)
    if present: z[present:] = -1e3
    p = np.exp(z-z.max(0))
    return -np.log(np.clip(p/p.sum(0), 1e-5, 1)).reshape(classes, -1).astype(np.float32)


def build(image, setting, threads):
    sg, wg, sxy, srgb, wb = SETTINGS[setting]
    return _lattice.CRF(HEIGHT, WIDTH,
                        [dict(kind="gaussian", sxy=sg, compat=wg),
                         dict(kind="bilateral", sxy=sxy, srgb=srgb, compat=wb)], image, threads=threads)


def peer(image, unary, setting):
    sg, wg, sxy, srgb, wb = SETTINGS[setting]
    crf = dcrf.DenseCRF2D(WIDTH, HEIGHT, len(unary))
    crf.setUnaryEnergy(unary)
    crf.addPairwiseGaussian(sxy=sg, compat=wg)
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=wb)
    return np.array(crf.inference(ITERATIONS))


def clock(f):
    begin = time.perf_counter()
    result = f()
    return 1e3*(time.perf_counter()-begin), result


def measured(case, images, threads, rounds, labels=False):
    "One row: medians over images of the medians over rounds, run in turn"
    classes, setting = case.removesuffix("-labels").removesuffix("-merged").split("-", 3)[2:]
    unary = unaries(int(classes), present=5 if case.endswith("-merged") else None)
    per_image = []
    for image, _ in images:
        times = []
        for r in range(rounds+1):
            a, crf = clock(lambda: build(image, setting, threads))
            b, ours = clock(lambda: crf.infer(unary, ITERATIONS, threads=threads, labels=labels))
            crf = None  # its memory, before the other begins
            c, theirs = clock(lambda: peer(image, unary, setting))
            if r: times.append((a+b, c, a, b))
        found = ours if labels else ours.argmax(0)
        agree = float((found == theirs.argmax(0)).mean())
        max_dq = 0. if labels else float(np.abs(ours-theirs).max())
        per_image.append([statistics.median(t) for t in zip(*times)]+[agree, max_dq])
    ours_ms, peer_ms, build_ms, infer_ms = (statistics.median(v) for v in list(zip(*per_image))[:4])
    return {"case": case, "threads": threads, "ours_ms": round(ours_ms, 1), "peer_ms": round(peer_ms, 1),
            "ratio": round(peer_ms/ours_ms, 2),
            "ratios": [round(t[1]/t[0], 2) for t in per_image], "vertices_per_pixel": [round(d, 2) for _, d in images],
            "build_ms": round(build_ms, 1), "infer_ms": round(infer_ms, 1),
            "agree": min(t[4] for t in per_image), "max_dq": max(t[5] for t in per_image)}


def folder(images, threads, rounds, setting="80-13"):
    "A folder of images: one per thread against one after the other"
    unary = unaries(21)
    six = [images[i % len(images)][0] for i in range(6)]
    def ours():
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda im: build(im, setting, 1).infer(unary, ITERATIONS, labels=True), six))
    times = [(clock(ours)[0], clock(lambda: [peer(im, unary, setting).argmax(0) for im in six])[0])
             for _ in range(max(2, rounds//2))]
    a, b = (statistics.median(t)/6 for t in zip(*times))
    return {"case": f"crf-folder-{WIDTH}x{HEIGHT}-21-{setting}", "threads": threads, "ours_ms": round(a, 1),
            "peer_ms": round(b, 1), "ratio": round(b/a, 2)}


@call_parse
def main(
    json:str=None,   # write the rows to this file
    voc:str=None,    # VOC folder with JPEGImages/; None: toy scenes
    rounds:int=3,    # how often each is timed on each photo
    only:str="",     # only cases with this in their name
    plot:str=None,   # draw the ratios into this file
    memory:str=None, # (internal) print the memory of this case
    who:str="ours",  # (internal) ours or peer
    threads:int=0,   # only this number of threads; 0: one and two
):
    "Time the CRF"
    pool, kind = photos(voc, 90)
    if not voc: pool = [np.ascontiguousarray(im[:HEIGHT, :WIDTH]) for im in pool]
    pool = [im for im in pool if im.shape[:2] == (HEIGHT, WIDTH)][:40]
    if not pool: raise SystemExit(f"{voc}: none of the first photos has {WIDTH} x {HEIGHT} pixels")
    def at(setting, quantiles=(.1, .5, .9)):
        _, _, sxy, srgb, _ = SETTINGS[setting]
        return at_quantiles(pool, lambda im: vertices(im.transpose(2, 0, 1).astype(np.float32), srgb, sxy), quantiles)
    if memory:
        classes, setting = memory.removesuffix("-labels").removesuffix("-merged").split("-", 3)[2:]
        (image, _), unary = at(setting, (.5,))[0], unaries(int(classes))
        return print(peak_mb(lambda: build(image, setting, threads).infer(unary, ITERATIONS, threads=threads) if who
                             == "ours" else peer(image, unary, setting)))
    rows = []
    def add(r, with_memory=True):
        if with_memory: r |= {f"{w}_mb": memory_of(r["case"], w, r["threads"], voc, __file__) for w in ("ours", "peer")}
        rows.append(r), table([r])
    for t in (threads,) if threads else (1, 2):
        for case in CASES:
            if only in case: add(measured(case, at(case.split("-", 3)[3]), t, rounds))
        for case, labels in ((f"{CASES[0]}-labels", True), (f"{CASES[0]}-merged", False)):
            if only in case: add(measured(case, at("80-13", (.5,)), t, rounds, labels), False)
        if only in "crf-folder" and t > 1: add(folder(at("80-13"), t, rounds), False)
    result = {"machine": machine() | {"kernels": _lattice.kernels}, "images": kind, "rows": rows}
    if json: write_json(json, result)
    if plot: draw(rows, plot)
