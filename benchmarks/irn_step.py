"""Seconds and memory of IRN's training step against the same step written the plain way (literal_irn.py).

    python benchmarks/irn_step.py --json FILE [--rounds 5] [--only SUBSTRING] [--threads 1] [--cpu]

`step-irn-BACKBONE`: crop 512, radius 10, two images, the heads of the published width, random weights; labels are toy
masks of which a band around every edge is unknown. A step is losses, backward and SGD. Both sides start from the same
weights and see the same batch; before anything is timed the losses have to agree to 1e-5. Ours and peer run in turn;
times are medians, ratio = peer/ours, the goal is 1.43 (0.7 times the time). Memory is what the first step of a fresh
process takes above what it held before. `--cpu` counts processor time instead of wall time.
"""
import statistics
import subprocess
import sys
import time

import torch
from fastcore.script import call_parse
from lattice import peak_mb, table
from literal_irn import LiteralIRN

from wsss_nb.cam.strided import strided_size
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.transforms import normalise
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.ground.core import IGNORE_INDEX, seed_everything, write_json
from wsss_nb.methods.irn import Config, Network
from wsss_nb.run.folder import machine

CASES = ("step-irn-resnet50", "step-irn-resnet_toy")
CROP, BATCH = 512, 2


def batch_of(size):
    "Scenes of one size, and labels that are unknown within 4 pixels of an edge"
    data = open_dataset(f"shapes:n=8,size={size}", masks=True)
    items = [data[i] for i in range(BATCH)]
    masks = torch.stack([torch.as_tensor(i.mask) for i in items])[:, None].float()
    def widest(x): return torch.nn.functional.max_pool2d(x, 9, 1, 4)
    label = torch.where(widest(masks)+widest(-masks) > 0, IGNORE_INDEX, masks).to(torch.uint8)[:, 0]
    return {"input": torch.stack([normalise(i.image) for i in items]), "label": label}


class Side:
    "One contestant: `step()` does a step and returns the value of each term"
    def __init__(self, who, case):
        seed_everything(0)
        config = Config(backbone=case.removeprefix("step-irn-"), crop_size=CROP, batch_size=BATCH,
                        radius=10 if CROP >= 256 else 5)
        net = Network(config, VOC_CLASSES)
        self.batch, self.net, self.losses = batch_of(CROP), net, lambda batch: net.training_losses(batch, 0)
        if who == "peer":
            peer = LiteralIRN(net, strided_size((CROP, CROP)), config.radius)
            self.net, self.losses = peer.net, peer.losses
        groups = [{**g, "params": [*g["params"]]} for g in self.net.param_groups() if g["name"] != "encoder"]
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    def step(self):
        terms = self.losses(self.batch)
        sum(w*v for w, v in terms.values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {k: float(v.detach()) for k, (_, v) in terms.items()}


def memory_of(case, who, threads):
    "Peak of a fresh process"
    args = [sys.executable, __file__, "--memory", case, "--who", who, "--threads", str(threads)]
    return int(subprocess.run(args, capture_output=True, text=True, check=True).stdout.split()[-1])


@call_parse
def main(
    json:str=None,   # write the rows to this file
    rounds:int=5,    # how often each is timed, in turn
    only:str="",     # only cases with this in their name
    threads:int=2,   # of torch
    cpu:bool=False,  # processor time instead of wall time
    memory:str=None, # (internal) print the memory of this case
    who:str="ours",  # (internal) ours or peer
):
    "Time IRN's training step"
    torch.set_num_threads(threads)
    if memory: return print(round(peak_mb(Side(who, memory).step)))
    rows, now = [], time.process_time if cpu else time.perf_counter
    for case in (c for c in CASES if only in c):
        sides = {w: Side(w, case) for w in ("ours", "peer")}
        first = {w: s.step() for w, s in sides.items()}
        for k, v in first["peer"].items(): assert abs(first["ours"][k]-v) <= 1e-5*max(1., abs(v)), (case, k, first)
        times = {w: [] for w in sides}
        for _ in range(rounds):
            for w, s in sides.items():
                begin = now()
                s.step()
                times[w].append(1e3*(now()-begin))
        ms = {w: statistics.median(t) for w, t in times.items()}
        rows.append({"case": case, "threads": threads, "ours_ms": round(ms["ours"], 1), "peer_ms": round(ms["peer"], 1),
                     "ratio": round(ms["peer"]/ms["ours"], 3), "ours_mb": memory_of(case, "ours", threads),
                     "peer_mb": memory_of(case, "peer", threads)})
        table(rows[-1:])
    if json: write_json(json, {"machine": machine(), "rows": rows})
