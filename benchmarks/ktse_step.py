"""Seconds of a training step of KTSE's classifier against the same step written the plain way (literal_ktse.py).

    python benchmarks/ktse_step.py --json FILE [--backbone wrn_toy] [--batch 16] [--crop 320] [--rounds 3] \\
        [--threads 1 --cpu]

Settings are those of the preset `voc` after its tenth epoch: crop 320, batch 16, four stacks, all terms, 20 classes;
only the backbone is a small one, with random weights, and dropout is off (both sides would draw other masks). A step
is losses, backward and SGD. Both sides start from the same weights and see the same batch of toy scenes; before
anything is timed the losses are compared, which have to agree to 1e-5, those on labels to 1e-3 (of the labels that both
make of the maps some pixels in ten thousand lie on a tie, and fall either way). They run in turn in this process;
times are medians, ratio = peer/ours, and the goal is 1.43 (0.7 times the time). `--cpu` counts processor time instead
of wall time.
"""
import statistics
import time

import torch
from fastcore.script import call_parse
from literal_ktse import LiteralKTSE
from train_step import Scenes

from wsss_nb.data.loader import TrainingSet, one_class_partner, training_batches
from wsss_nb.data.pair_transforms import PairTransform
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.ground.core import seed_everything, write_json
from wsss_nb.methods.ktse import PRESETS, Config, Network, sgd
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config


class Pairs(Scenes):
    "Toy scenes under VOC's names that know the labels of each by itself"
    def image_labels(self, i): return self[i].image_labels


class Side:
    "One contestant: `step()` does a step and returns the value of each term that counts"
    def __init__(self, who, config):
        seed_everything(0)
        net, self.at = Network(config, VOC_CLASSES).train(), config.start
        transform = PairTransform(config.crop_size, config.long_side)
        samples = TrainingSet(Pairs(), transform, parts=(), partner=one_class_partner)
        self.batch = next(training_batches(samples, config.late_batch))
        peer = LiteralKTSE(net)
        self.losses, self.net = (net.training_losses, net) if who == "ours" else (peer.losses, peer.net)
        self.optimizer = sgd(config)(self.net.param_groups(), weight_decay=config.weight_decay)
    def step(self):
        terms = self.losses(self.batch, self.at)
        total = sum(w*v for w, v in terms.values())
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {k: float(v.detach()) for k, (w, v) in terms.items()} | {"total": float(total.detach())}


def measured(case, config, rounds, now):
    "One row"
    sides = {who: Side(who, config) for who in ("ours", "peer")}
    first = {who: s.step() for who, s in sides.items()}
    for k, v in first["peer"].items():
        near = 1e-3 if k.startswith("seg") or k == "total" else 1e-5
        assert abs(first["ours"][k]-v) <= near*max(1., abs(v)), f"{case}: {k} is {first['ours'][k]}, not {v}"
    times = {who: [] for who in sides}
    for _ in range(rounds):
        for who, s in sides.items():
            begin = now()
            s.step()
            times[who].append(1e3*(now()-begin))
    ms = {who: statistics.median(t) for who, t in times.items()}
    return {"case": case, "threads": torch.get_num_threads(), "ours_ms": round(ms["ours"], 1),
            "peer_ms": round(ms["peer"], 1), "ratio": round(ms["peer"]/ms["ours"], 3), "backbone": config.backbone,
            "crop": config.crop_size, "batch": config.late_batch}


@call_parse
def main(
    json:str=None,          # write the rows to this file
    backbone:str="wrn_toy", # of both sides, with random weights
    batch:int=16,           # images per step
    crop:int=320,           # side of a training crop, pixels
    rounds:int=3,           # how often each is timed, in turn
    threads:int=0,          # of torch; 0: as it finds
    cpu:bool=False,         # processor time instead of wall time
):
    "Time training steps"
    if threads: torch.set_num_threads(threads)
    config = resolve_config(Config(), PRESETS, "voc", backbone=backbone)
    config = resolve_config(config, {"x": {}}, "x", [f"late_batch={batch}", f"crop_size={crop}", "dropout=0"])
    rows = [measured("step-ktse", config, rounds, time.process_time if cpu else time.perf_counter)]
    print(rows[0], flush=True)
    if json:
        about = machine() | {"torch": torch.__version__, "clock": "processor time" if cpu else "wall"}
        write_json(json, {"machine": about, "images": "toy scenes", "rows": rows})
