"""Images per second of one core that makes training samples, and where the time goes.

    python benchmarks/loader.py --json FILE [--data FOLDER] [--images 200] [--crop 448] [--rounds 3] [--clock wall] \\
        [--workers 0,1,2]

The pipeline is ToCo's at the VOC preset with all of its views: decode a JPEG, rescale, crop 448 x 448, three views
(`input`, `local`, `view2`) with mirror, colours and blur, normalise. The JPEGs are those of a folder in VOC layout
(--data), or else 48 of 500 x 375 pixels that are made here: smooth colours, edges and noise, which compress as
photos do. The peer is the same pipeline on Pillow and torchvision alone, as published codes have it; before anything
is timed, samples of both have to agree to two grey levels on average. Ours and the peer run in turn; a round gives a
rate, of which the median is reported; `parts` are ms per image. By default the processor time of the one thread is
counted, which a busy machine disturbs least. `--workers` adds rows for the whole loader (wall time, batches of 4):
what a training waits for.
"""
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from fastcore.script import call_parse
from PIL import Image, ImageFilter
from torchvision.transforms import functional as TF

from wsss_nb.ground.core import child_rng, write_json
from wsss_nb.data import transforms
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import TrainingSet, training_batches
from wsss_nb.data.transforms import IMAGENET_MEAN, IMAGENET_STD, VIEWS, TrainTransform, resize_to
from wsss_nb.ground.io import write_image
from wsss_nb.run.folder import machine

PARTS = {"rescale": "rescale", "hflip": "flip and crop", "crop_at": "flip and crop", "_resized_crop": "crop of view2",
         "colour_jitter": "jitter", "greyscale": "jitter", "solarise": "jitter", "gaussian_blur": "blur",
         "normalise": "normalise"}


def plain_jitter(image, rng, strengths=(.4, .4, .2, .1)):
    factors = [rng.uniform(-s, s)+(k < 3) for k, s in enumerate(strengths)]
    pil = Image.fromarray(image)
    for k in rng.permutation(4):
        pil = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[k](pil, factors[k])
    return np.asarray(pil)

def plain_normalise(image, grey_levels):
    assert not grey_levels  # which no method that is measured here asks for
    x = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).contiguous().div_(255)
    return x.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(torch.tensor(IMAGENET_STD)[:, None, None])

# the operations of `transforms` as Pillow and torchvision do them
PLAIN = {"rescale": lambda x, scale, quick: resize_to(x, [max(int(scale*n), 1) for n in x.shape[:2]]),
         "hflip": lambda x: np.ascontiguousarray(x[:, ::-1]), "normalise": plain_normalise,
         "colour_jitter": plain_jitter,
         "gaussian_blur": lambda x, radius: np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius))),
         "greyscale": lambda x: np.asarray(Image.fromarray(x).convert("L").convert("RGB")),
         "_resampled": lambda x, size, mode: np.asarray(
             Image.fromarray(x).resize(size[::-1], {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[mode]))}


@contextmanager
def replaced(**functions):
    "Put functions in the place of those of `transforms`"
    old = {k: getattr(transforms, k) for k in functions}
    for k, f in functions.items(): setattr(transforms, k, f)
    try: yield
    finally:
        for k, f in old.items(): setattr(transforms, k, f)

@contextmanager
def counted(spent, now):
    "Note how long each part takes; one inside another is not counted twice"
    inside = []
    def timed(name, f):
        def run(*a, **kw):
            begin = now()
            inside.append(0.)
            try: return f(*a, **kw)
            finally:
                whole = now()-begin
                spent[PARTS[name]] += whole-inside.pop()
                if inside: inside[-1] += whole
        return run
    names = [k for k in PARTS if hasattr(transforms, k)]
    with replaced(**{k: timed(k, getattr(transforms, k)) for k in names}): yield


def make_photos(folder, n=48, h=375, w=500):
    "Write JPEGs of VOC's size, two classes, in VOC layout"
    for k in range(n):
        rng = np.random.RandomState(k)
        smooth = cv2.resize(rng.randint(0, 256, (6, 8, 3)).astype(np.uint8), (w, h),
                            interpolation=cv2.INTER_CUBIC).astype(float)
        edges = 60*(cv2.resize(rng.rand(9, 12), (w, h), interpolation=cv2.INTER_NEAREST)[..., None]-.5)
        write_image(folder/"JPEGImages"/f"photo_{k:03d}.jpg",
                    (smooth+edges+rng.normal(0, 8, (h, w, 1))).clip(0, 255).astype(np.uint8))
    ids = [f"photo_{k:03d}" for k in range(n)]
    lists = folder/"ImageSets"/"Segmentation"
    lists.mkdir(parents=True)
    (lists/"train.txt").write_text("\n".join(ids)+"\n")
    (folder/"classes.txt").write_text("background\ncat\n")
    (folder/"labels.csv").write_text("image,labels\n"+"".join(f"{i},cat\n" for i in ids))
    return folder


def agree(data, transform, n=8):
    "Assert that both sides make the same samples, but for roundings"
    for k in range(n):
        image, rngs = data[k].image, [child_rng(0, 0, k) for _ in range(2)]
        ours = transform(image, rngs[0])
        with replaced(**PLAIN): peer = transform(image, rngs[1])
        assert (ours["box"] == peer["box"]).all()
        for v in VIEWS:
            levels = 255*.226*float((ours[v]-peer[v]).abs().mean())
            assert levels < 2, f"{v} of image {k} differs by {levels:.2f} grey levels on average"


def rate(data, transform, n, now):
    "Return images per second and ms per image of each part"
    spent = defaultdict(float)
    begin = now()
    with counted(spent, now):
        for k in range(n):
            tick = now()
            image = data[k % len(data)].image
            spent["decode"] += now()-tick
            transform(image, child_rng(0, 0, k))
    whole = now()-begin
    spent["other"] = whole-sum(spent.values())
    return n/whole, {k: round(1e3*v/n, 2) for k, v in spent.items()}


def loaded(data, transform, n, workers):
    "Images per second of the whole loader, wall time"
    batches = training_batches(TrainingSet(data, transform), 4, workers=workers)
    next(batches)
    begin = time.perf_counter()
    for _ in range(n//4): next(batches)
    return 4*(n//4)/(time.perf_counter()-begin)


@call_parse
def main(
    json:str=None,     # write the rows to this file
    data:str=None,     # folder in VOC layout, or voc:ROOT; by default JPEGs are made
    images:int=200,    # per round
    crop:int=448,      # side of a sample
    rounds:int=3,      # of each side, in turn
    clock:str="cpu",   # cpu: time of the thread; wall: time of the day
    workers:str="",    # numbers of loader processes, such as 0,1,2: rows for the whole loader
):
    "Time the making of training samples"
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    now = {"cpu": time.thread_time, "wall": time.perf_counter}[clock]
    with tempfile.TemporaryDirectory() as tmp:
        photos = open_dataset(data or str(make_photos(Path(tmp))), "train")
        transform, rows = TrainTransform(crop, views=VIEWS), []
        agree(photos, transform)
        found = {"ours": [], "peer": []}
        for _ in range(rounds):
            found["ours"].append(rate(photos, transform, images, now))
            with replaced(**PLAIN): found["peer"].append(rate(photos, transform, images, now))
        ours, peer = (sorted(found[k], key=lambda r: r[0])[len(found[k])//2] for k in ("ours", "peer"))
        rows.append({"case": f"loader-toco-{crop}", "threads": 1, "ours_ms": round(1e3/ours[0], 2),
                     "peer_ms": round(1e3/peer[0], 2), "ratio": round(ours[0]/peer[0], 2),
                     "ours_images_per_second": round(ours[0], 1),
                     "peer_images_per_second": round(peer[0], 1), "ours_parts": ours[1], "peer_parts": peer[1],
                     "spread": [round(r[0], 1) for r in found["ours"]], "views": len(VIEWS)})
        for w in map(int, filter(None, workers.split(","))):
            rates = [loaded(photos, transform, images, w) for _ in range(rounds)]
            rows.append({"case": f"batches-{w}-workers", "threads": 1,
                         "ours_images_per_second": round(statistics.median(rates), 1)})
    for r in rows: print(*(f"{k}: {v}" for k, v in r.items()), sep="\n  ", flush=True)
    if json:
        write_json(json,
                   {"machine": machine() | {"torch": torch.__version__, "opencv": cv2.__version__, "clock": clock},
                    "data": "made here" if data is None else Path(data).name, "rows": rows})
