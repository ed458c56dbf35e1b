"""The stage `seeds` of I2CRC against its bare forward passes: the same squeezed images through the same classifier,
nothing read, nothing written.

    python benchmarks/seeds_stage.py --json FILE

The stage decodes photos, looks, enlarges the class maps, compresses and writes them; reading and writing go on in
other threads. `ratio` = peer/ours (1 = the stage costs what its forward passes cost); the goal is 0.91 (the stage
takes at most 1.1 times as long).
"""
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse

from wsss_nb.ground.core import peak_memory_mb, write_json
from wsss_nb.data.folder import write_voc_folder
from wsss_nb.data.datasets import open_dataset
from wsss_nb.ground.io import read_image, write_image
from wsss_nb.run.settings import resolve_config
from wsss_nb.run.stage import Job
from wsss_nb.methods.i2crc import METHOD, make_classifier, seeds
from wsss_nb.data.segment_transforms import SquareTransform
from wsss_nb.run.folder import Run, machine, save_checkpoint

CASES = {"seeds-toy-112": ("shapes", 112, ()), "seeds-vgg16-256": ("voc", 375, ("train_split=train",)),
         "seeds-mobilenet-224": ("photos", 375, ())}


def photos(root, n, side):
    """Write toy scenes as JPEG photos of the proportions of VOC's and of about their size on disk (toy scenes alone
    stay as they are)"""
    write_voc_folder([open_dataset(f"shapes:n={n},size={side}")], root)
    for p in sorted((root/"JPEGImages").iterdir()):
        if side == 112: continue
        image = read_image(p)
        write_image(p.with_suffix(".jpg"), np.concatenate([image, image[:, :side//3]], axis=1))
        p.unlink()


@torch.no_grad()
def bench(
    name:str,     # a key of `CASES`
    images:int,   # how many
    rounds:int,   # how often each is timed, in turn
)->dict:          # a row
    "Return the medians of the stage and of the bare passes"
    preset, side, settings = CASES[name]
    with tempfile.TemporaryDirectory() as d:
        root = Path(d)
        photos(root/"data", images, side)
        config = resolve_config(METHOD.config(), METHOD.presets, preset, settings)
        data = open_dataset(root/"data")
        torch.manual_seed(0)
        net = make_classifier(config, data.classes).eval()
        job = Job(METHOD, config, data.classes, str(root/"data"), Run(root/"run"))
        save_checkpoint(Run(root/"run", "classify"), net, torch.optim.SGD(net.parameters(), 1.), 0)
        inputs = [SquareTransform(config.cls_size, jitter=())(item.image, None)["input"][None] for item in data]
        def ours():
            shutil.rmtree(root/"run"/"cams", ignore_errors=True)
            seeds(job)
        def peer():
            for x in inputs: net(x)
        def timed(work):
            begin = time.perf_counter()
            work()
            return time.perf_counter()-begin
        ours(), peer()
        times = [(timed(ours), timed(peer)) for _ in range(rounds)]
    a, b = (1e3*statistics.median(t)/images for t in zip(*times))
    return {"case": name, "threads": torch.get_num_threads(), "ours_ms": round(a, 2), "peer_ms": round(b, 2),
            "ratio": round(statistics.median(p/o for o, p in times), 3), "ours_mb": peak_memory_mb()}


@call_parse
def main(
    json:str=None,  # write the rows to this file
    images:int=60,  # per case
    rounds:int=5,   # how often each is timed
    threads:int=2,  # of torch
    only:str=None,  # one case
):
    "Time the stage that makes CAMs"
    torch.set_num_threads(threads)
    rows = [bench(name, images, rounds) for name in CASES if only in (None, name)]
    for r in rows: print(r)
    if json: write_json(json, {"machine": machine(), "rows": rows})
