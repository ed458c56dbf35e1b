"""Speed of scoring two folders of label maps: ours, a plain loop, and decoding the files with Pillow without doing
anything with them.

    python benchmarks/evaluate.py --json FILE [--images 1449] [--repeats 5]

Writes VOC-sized palette PNGs (500x375, 21 classes, blobs with an ignored rim) to a temporary folder. All contestants
run in turn in this process; times are medians, ratio = peer/ours. Memory is the peak of a fresh process that scores
the folders once.
"""
import argparse, json, os, platform, resource, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
import cv2
import numpy as np
from PIL import Image

from wsss_nb.ground.core import IGNORE_INDEX, write_json
from wsss_nb.scores.confusion import evaluate_folders
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


def measure(folder, peers, threads, repeats):
    "Return the median milliseconds of ours and of each peer, run in turn"
    times = {f.__name__: [] for f in (ours, *peers)}
    for _ in range(repeats):
        for f in (ours, *peers):
            begin = time.perf_counter()
            f(folder, threads)
            times[f.__name__].append(1000*(time.perf_counter()-begin))
    return {k: float(np.median(v)) for k, v in times.items()}


def benchmark(images, repeats):
    "Return the rows"
    rows, cores = [], len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        write_pairs(folder, images)
        assert (ours(folder, cores) == plain_loop(folder, 1)).all()
        for threads in sorted({1, cores}):
            ms = measure(folder, (plain_loop, decode_only), threads, repeats)
            mb = {k: memory_mb(k, folder, threads) for k in ms}
            for case, peer in (("evaluate", "plain_loop"), ("evaluate-vs-decode-only", "decode_only")):
                rows.append({"case": f"{case}-{images}-{WIDTH}x{HEIGHT}-{CLASSES}", "threads": threads,
                             "ours_ms": round(ms["ours"], 1), "peer_ms": round(ms[peer], 1),
                             "ratio": round(ms[peer]/ms["ours"], 3), "ours_mb": mb["ours"], "peer_mb": mb[peer]})
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
