"""Seconds and memory of a training step of BECO against the same step written the plain way (literal_beco.py).

    python benchmarks/beco_step.py --json FILE [--backbone NAME] [--segmenter NAME] [--crop 512] [--batch 4]
        [--rounds 5] [--only SUBSTRING] [--threads 1 --cpu]

Settings are those of the preset `voc`, but for the batch and the backbone, which is a small one with random weights. A
step is online labels, mixing, colours, losses, backward and SGD; `beco-warmup` is one before there are online labels.
Both sides start from the same weights and see the same batch of toy scenes with the same chance. The losses are
compared before anything is timed and have to agree to 1e-4. Ours and the peer run in turn; times are medians of those
of steps whose chance differs from step to step, ratio = peer/ours, and the goal is 1.43 (0.7 times the time). The
networks' own passes cost the same on both sides, but for those online labels that nobody would read: the larger the
network, the nearer to 1. `passes_ms` is what the three passes of a step (one to label, one to learn, one back) take of
the peer's time. Memory is what a step of a fresh process takes above what it held before."""
import statistics
import subprocess
import sys
import time

import literal_beco
import torch
from fastcore.script import call_parse
from lattice import peak_mb

from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import TrainingSet, training_batches
from wsss_nb.data.mixing import MixTransform
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.ground.core import seed_everything, write_json
from wsss_nb.methods.beco import PRESETS, Config, Network
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config

CASES = "beco", "beco-warmup"
clock = [time.perf_counter]


class Side:
    "One contestant: `step()` does a step and returns the value of each term"
    def __init__(self, who, case, options):
        config = resolve_config(Config(), PRESETS, "voc", **options)
        seed_everything(0)
        self.net = Network(config, VOC_CLASSES).train()
        data = open_dataset("shapes:n=16,size=480", masks=True)
        transform = MixTransform(config.crop_size, len(VOC_CLASSES), config.crop_area)
        self.batches = training_batches(TrainingSet(data, transform, parts=("mask",)), config.batch_size)
        self.epoch, self.losses = config.warmup-case.endswith("warmup"), self.net.training_losses
        if who == "peer": self.losses = lambda batch, step: literal_beco.losses(self.net, batch, step)
        self.optimizer = torch.optim.SGD(self.net.param_groups(), momentum=.9, weight_decay=config.weight_decay)
        half = torch.rand(config.batch_size, config.crop_size, config.crop_size,
                          generator=torch.Generator().manual_seed(0)) < .5
        self.trust = half.to(torch.uint8)
    def step(self):
        batch = next(self.batches) | {"epoch": self.epoch, "trust": self.trust}
        begin = clock[0]()
        terms = self.losses(batch, 0)
        total = sum(w*v for w, v in terms.values())
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {k: v.item() for k, (w, v) in terms.items() if w}, 1e3*(clock[0]()-begin)
    def passes(self):
        "Milliseconds of the passes alone"
        x = next(self.batches)["input"]
        begin = clock[0]()
        if self.epoch >= self.net.config.warmup:
            with torch.no_grad(): self.net.eval().logits(x)
        sum(z.sum() for z in self.net.train().logits(x)).backward()
        return 1e3*(clock[0]()-begin)


def measured(case, rounds, options):
    "One row"
    sides = {who: Side(who, case, options) for who in ("ours", "peer")}
    (ours, _), (peer, _) = (s.step() for s in sides.values())
    for k, v in ours.items():
        assert abs(v-peer[k]) <= 1e-4*max(1., abs(peer[k])), f"{case}: {k} is {v}, in the plain loop {peer[k]}"
    print(f"{case}: same losses to 1e-4: {ours}", flush=True)
    times = {who: [] for who in sides}
    for _ in range(rounds):
        for who, s in sides.items(): times[who].append(s.step()[1])
    passes = statistics.median(sides["peer"].passes() for _ in range(min(rounds, 3)))
    ms = {who: statistics.median(t) for who, t in times.items()}
    c = sides["ours"].net.config
    return {"case": case, "threads": torch.get_num_threads(), "ours_ms": round(ms["ours"], 1),
            "peer_ms": round(ms["peer"], 1), "ratio": round(ms["peer"]/ms["ours"], 3), "passes_ms": round(passes, 1),
            "backbone": c.backbone, "segmenter": c.segmenter, "crop": c.crop_size, "batch": c.batch_size}


def memory_of(case, who, options):
    "Peak of a fresh process"
    told = {"--backbone": "backbone", "--segmenter": "segmenter", "--crop": "crop_size", "--batch": "batch_size"}
    args = [sys.executable, __file__, "--memory", case, "--who", who, "--threads", str(torch.get_num_threads())]
    args += [str(a) for name, k in told.items() for a in (name, options[k])]
    return int(subprocess.run(args, capture_output=True, text=True, check=True).stdout.split()[-1])


@call_parse
def main(
    json:str=None,   # write the rows to this file
    backbone:str="resnet_toy", # of both sides, with random weights
    segmenter:str="deeplab",   # a name of `SEGMENTERS`
    crop:int=512,    # side of a piece, pixels
    batch:int=4,     # images per step
    rounds:int=5,    # how often each is timed, in turn
    only:str="",     # only cases with this in their name
    threads:int=0,   # of torch; 0: as it finds
    cpu:bool=False,  # processor time instead of wall time
    memory:str=None, # (internal) print the memory of this case
    who:str="ours",  # (internal) ours or peer
):
    "Time training steps of BECO"
    if threads: torch.set_num_threads(threads)
    if cpu: clock[0] = time.process_time
    options = {"backbone": backbone, "segmenter": segmenter, "crop_size": crop, "batch_size": batch}
    if memory: return print(round(peak_mb(Side(who, memory, options).step)))
    rows = []
    for case in (c for c in CASES if only in c):
        rows.append(measured(case, rounds, options)
                    | {f"{w}_mb": memory_of(case, w, options) for w in ("ours", "peer")})
        for k, v in rows[-1].items(): print(f"  {k}: {v}", flush=True)
    if json:
        told = machine() | {"torch": torch.__version__, "clock": "processor time" if cpu else "wall"}
        write_json(json, {"machine": told, "images": "toy scenes", "rows": rows})
