"""Multi-scale CAM against its bare forward passes: the same batches through the same encoder, nothing done with the
output.

    python benchmarks/cam.py --json FILE [--only SUBSTRING]

`ratio` = peer/ours (1 = the whole CAM costs what its forward passes cost); the goal is 0.95 or more.
"""
import statistics
import time

import torch
from fastcore.script import call_parse

from wsss_nb.backbones.core import create_backbone
from wsss_nb.cam.multiscale import multi_scale_cam
from wsss_nb.ground.core import peak_memory_mb, write_json
from wsss_nb.networks.single_stage import SingleStageNet
from wsss_nb.run.folder import machine
from wsss_nb.ground.tensors import resize

CASES = {"cam-toy-112-b1": ("vit_toy", 112, 1, 5), "cam-toy-112-b16": ("vit_toy", 112, 16, 5),
         "cam-deit-tiny-224-b8": ("deit_tiny_patch16_224", 224, 8, 20),
         "cam-deit-tiny-448-b1": ("deit_tiny_patch16_224", 448, 1, 20)}
SCALES = (1., .5, 1.5)


def timed(work):
    begin = time.perf_counter()
    work()
    return 1e3*(time.perf_counter()-begin)


@torch.no_grad()
def bench(
    name:str,     # a key of `CASES`
    rounds:int,   # how often each is timed, in turn
    present:bool, # only the classes that occur (two), as in training, or all
)->dict:          # a row
    "Return the medians of ours and of the bare passes"
    backbone, side, batch, num_fg = CASES[name]
    torch.manual_seed(0)
    net, images = SingleStageNet(create_backbone(backbone), num_fg).eval(), torch.randn(batch, 3, side, side)
    keep = torch.arange(num_fg) < 2 if present else None
    pyramid = [torch.cat([x, x.flip(-1)]) for x in (resize(images, (int(s*side), int(s*side))) for s in SCALES)]
    def ours(): multi_scale_cam(net.raw_cam, images, SCALES, keep=keep)
    def peer():
        for x in pyramid: net.encoder(x)
    ours(), peer()
    times = [(timed(ours), timed(peer)) for _ in range(rounds)]
    ours_ms, peer_ms = (statistics.median(t) for t in zip(*times))
    return {"case": f"{name}-{'present' if present else 'all'}", "threads": torch.get_num_threads(),
            "ours_ms": round(ours_ms, 2), "peer_ms": round(peer_ms, 2),
            "ratio": round(statistics.median(p/o for o, p in times), 3), "ours_mb": peak_memory_mb()}


@call_parse
def main(
    json:str=None,  # write the rows to this file
    rounds:int=9,   # how often each is timed
    threads:int=2,  # of torch
    only:str="",    # only cases with this in their name
):
    "Time multi-scale CAMs"
    torch.set_num_threads(threads)
    rows = [bench(name, rounds, present) for name in CASES if only in name for present in (True, False)]
    for r in rows: print(r)
    if json: write_json(json, {"machine": machine(), "rows": rows})
