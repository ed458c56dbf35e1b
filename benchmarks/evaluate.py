"""Speed of scoring two folders of label maps: ours, a plain loop, and decoding the files with Pillow without doing
anything with them. And, without files, of counting label maps that are in memory: our confusion matrix, the three
histograms an image (hits, predicted, true) that segmentation libraries count, and torchmetrics.

    python benchmarks/evaluate.py --json FILE [--images 1449] [--repeats 5]

Writes VOC-sized palette PNGs (500x375, 21 classes, blobs with an ignored rim) to a temporary folder. All contestants
run in turn in this process; times are medians, ratio = peer/ours. Memory is the peak of a fresh process that scores
the folders once. The counts in memory are of at most 100 pairs, on one thread; before they are timed, all have to give
the same IoU of every class. Where torchmetrics is not installed, its row says so.
"""
import argparse, json, os, platform, resource, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
import cv2
import numpy as np
from PIL import Image

from wsss_nb.ground.core import IGNORE_INDEX, write_json
from wsss_nb.scores.confusion import ConfusionMatrix, evaluate_folders
from wsss_nb.ground.io import write_label

HEIGHT, WIDTH, CLASSES = 375, 500, 20+1


def write_pairs(folder, images, seed=0):
    "Write `images` predictions and masks: blobs with a rim of ignored pixels, and the same blobs displaced"
    rng = np.random.RandomState(seed)
    angle = np.linspace(0, 2*np.pi, 40, endpoint=False)
    for i in range(images):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for _ in range(rng.randint(1, 4)):
            radius = rng.randint(30, 130)*(1+.15*rng.randn(len(angle)))
            points = np.stack([rng.randint(50, WIDTH-50)+radius*np.cos(angle),
                               rng.randint(50, HEIGHT-50)+radius*np.sin(angle)], 1).astype(np.int32)
            cv2.fillPoly(mask, [points], int(rng.randint(1, CLASSES)))
            cv2.polylines(mask, [points], True, IGNORE_INDEX, 5)
        pred = np.roll(mask, rng.randint(-8, 9, size=2), (0, 1))
        write_label(folder/"masks"/f"{i:06}.png", mask)
        write_label(folder/"predictions"/f"{i:06}.png", np.where(pred == IGNORE_INDEX, 0, pred))


def ours(folder, threads):
    return evaluate_folders(folder/"predictions", folder/"masks", CLASSES, workers=threads)[0].counts


def plain_loop(folder, threads):
    "The usual script: one image after the other, `np.bincount` over the valid pixels"
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    for path in sorted((folder/"masks").glob("*.png")):
        mask, pred = (np.asarray(Image.open(path)).astype(np.int64),
                      np.asarray(Image.open(folder/"predictions"/path.name)).astype(np.int64))
        valid = mask < CLASSES
        counts += np.bincount(CLASSES*mask[valid]+pred[valid], minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    return counts


def decode_only(folder, threads):
    "Every file as Pillow reads it, on as many threads as ours"
    paths = sorted(folder.glob("*/*.png"))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda chunk: [np.array(Image.open(p)) for p in chunk],
                          [paths[i:i+16] for i in range(0, len(paths), 16)]):
            pass


def memory_mb(name, folder, threads):
    "Peak memory of a fresh process"
    done = subprocess.run([sys.executable, __file__, "--only", name, str(folder), str(threads)], capture_output=True,
                          text=True, check=True)
    return round(float(done.stdout))


def measure(contestants, repeats, *args):
    "Return the median milliseconds of each function, run in turn"
    times = {f.__name__: [] for f in contestants}
    for _ in range(repeats):
        for f in contestants:
            begin = time.perf_counter()
            f(*args)
            times[f.__name__].append(1000*(time.perf_counter()-begin))
    return {k: float(np.median(v)) for k, v in times.items()}


def our_matrix(pairs):
    "IoU of each class, of (prediction, mask) pairs of bytes"
    matrix = ConfusionMatrix(CLASSES)
    for pred, mask in pairs: matrix.add(pred, mask)
    return matrix.iou


def histograms(pairs):
    "What segmentation libraries do: of each image the labels that agree, those predicted and the true ones"
    sums = np.zeros((3, CLASSES), np.int64)
    for pred, mask in pairs:
        valid = mask != IGNORE_INDEX
        pred, mask = pred[valid], mask[valid]
        for total, labels in zip(sums, (pred[pred == mask], pred, mask)):
            total += np.bincount(labels, minlength=CLASSES)
    hits, predicted, true = sums
    return hits/(predicted+true-hits)


def torchmetrics(pairs):
    "Its confusion matrix, without the checks of its arguments"
    import torch
    from torchmetrics.classification import MulticlassConfusionMatrix
    torch.set_num_threads(1)
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE_INDEX, validate_args=False)
    for pred, mask in pairs: metric.update(torch.from_numpy(pred).long(), torch.from_numpy(mask).long())
    counts = metric.compute().numpy()
    hits = counts.diagonal()
    return hits/(counts.sum(0)+counts.sum(1)-hits)


def in_memory(folder, repeats):
    "Return the rows of counting label maps that are in memory"
    paths = sorted((folder/"masks").glob("*.png"))[:100]
    pairs = [[np.array(Image.open(folder/kind/p.name)) for kind in ("predictions", "masks")] for p in paths]
    size, rows, threads = f"{len(pairs)}-{WIDTH}x{HEIGHT}-{CLASSES}", [], cv2.getNumThreads()
    cv2.setNumThreads(1)
    for peer in (histograms, torchmetrics):
        rows.append({"case": f"confusion-vs-{peer.__name__}-{size}", "threads": 1})
        if peer is torchmetrics and not find_spec("torchmetrics"):
            rows[-1]["cannot"] = "torchmetrics is not installed"
            continue
        with np.errstate(invalid="ignore"):  # a class that occurs nowhere has no IoU
            assert np.allclose(our_matrix(pairs), peer(pairs), equal_nan=True)
            ms = measure((our_matrix, peer), repeats, pairs)
        rows[-1] |= {"ours_ms": round(ms["our_matrix"], 1), "peer_ms": round(ms[peer.__name__], 1),
                     "ratio": round(ms[peer.__name__]/ms["our_matrix"], 3)}
    cv2.setNumThreads(threads)
    return rows


def benchmark(images, repeats):
    "Return the rows"
    rows, cores = [], len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_pairs(folder, images)
        assert (ours(folder, cores) == plain_loop(folder, 1)).all()
        for threads in sorted({1, cores}):
            ms = measure((ours, plain_loop, decode_only), repeats, folder, threads)
            mb = {k: memory_mb(k, folder, threads) for k in ms}
            for case, peer in (("evaluate", "plain_loop"), ("evaluate-vs-decode-only", "decode_only")):
                rows.append({"case": f"{case}-{images}-{WIDTH}x{HEIGHT}-{CLASSES}", "threads": threads,
                             "ours_ms": round(ms["ours"], 1), "peer_ms": round(ms[peer], 1),
                             "ratio": round(ms[peer]/ms["ours"], 3), "ours_mb": mb["ours"], "peer_mb": mb[peer]})
        rows += in_memory(folder, repeats)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--json", help="also write the result to this file")
    p.add_argument("--images", type=int, default=1449, help="pairs to score")
    p.add_argument("--repeats", type=int, default=5, help="runs of each contestant")
    p.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.only:
        name, folder, threads = args.only
        globals()[name](Path(folder), int(threads))
        return print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == "darwin" else 2**10))
    result = {"machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                          "python": platform.python_version(), "numpy": np.__version__,
                          "pillow": Image.__version__, "opencv": cv2.__version__},
              "rows": benchmark(args.images, args.repeats)}
    print(json.dumps(result, indent=2))
    if args.json: write_json(args.json, result)


if __name__ == "__main__": main()
