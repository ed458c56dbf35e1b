"""Milliseconds and memory of a training step on a GPU, and where they go.

    python benchmarks/gpu_step.py --json FILE [--only toco] [--rounds 5]

Settings are those of train_step.py: the method's VOC preset, its crop, batch 4, 20 classes, all terms on, a step
being losses, backward and AdamW; but the backbones are the published ones, with random weights. Single precision,
torch's defaults. Parts are timed between synchronisations, means over the rounds after three steps that do not
count. Memory is the peak of what torch allocated.
"""
import time

import torch
from fastcore.script import call_parse
from train_step import METHODS, PARTS, Clock, Side

from wsss_nb.ground.core import pick_device, write_json
from wsss_nb.run.folder import machine

BACKBONES = {"step-tscd": "mit_b1"}


def now():
    torch.cuda.synchronize()
    return time.perf_counter()


def measured(case, rounds):
    "One row"
    backbone = BACKBONES.get(case, "deit_base_patch16_224")
    side = Side("ours", case, backbone)
    side.net.to("cuda")
    side.batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in side.batch.items()}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3): side.step()
    side.clock.spent.clear()
    begin = now()
    for _ in range(rounds): side.step()
    ms, c = 1e3*(now()-begin)/rounds, side.net.config
    return {"case": case, "backbone": c.backbone, "crop": c.crop_size, "batch": c.batch_size, "ms": round(ms, 1),
            "images_per_second": round(1e3*c.batch_size/ms, 1), "mb": round(torch.cuda.max_memory_allocated()/2**20),
            "parts": {k: round(1e3*side.clock.spent[k]/rounds, 1) for k in PARTS if k in side.clock.spent}}


@call_parse
def main(
    json:str=None, # write the rows to this file
    only:str="",   # only cases with this in their name
    rounds:int=5,  # steps that are timed
):
    "Time training steps on a GPU"
    pick_device("cuda")
    Clock.now, rows = staticmethod(now), []
    for case in (c for c in METHODS if only in c):
        rows.append(measured(case, rounds))
        print(", ".join(f"{k}: {v}" for k, v in rows[-1].items()), flush=True)
    if json: write_json(json, {"machine": machine() | {"torch": torch.__version__}, "parts": PARTS, "rows": rows})
