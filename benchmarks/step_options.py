"""What channels_last, a fused optimiser, torch.compile and bfloat16 do to a training step: each switched on alone,
in turn with the plain step.

    python benchmarks/step_options.py --json FILE [--methods toco,i2crc] [--backbones deit_tiny_patch16_224,resnet50] \\
        [--crop 224] [--batch 2] [--device auto] [--rounds 5] [--only bf16]

A step is what `Trainer` does: losses, backward, AdamW. It is taken after the warm-up of the VOC preset, with all
terms on, on toy scenes of 20 class names (the segmenter of a method with stages: on noise); all variants begin with
the same weights, and their first loss has to agree with that of the plain step to 1e-3; that of bf16 only has to be
a number, for thresholds on the maps of a random network fall otherwise. A variant that cannot run here says why.
Times are medians; ratio = plain/variant, above 1 means faster. By default processor time of one thread is counted on
a CPU, and wall time between synchronisations on a GPU; the time that `compile` needs before its first step stands
apart.
"""
import math
import statistics
import time

import torch
from fastcore.script import call_parse
from train_step import Scenes

from wsss_nb.ground.core import pick_device, seed_everything, write_json
from wsss_nb.data.loader import TrainingSet, training_batches
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.methods.core import MethodNet
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.names import get_method

VARIANTS = ("plain", "fused", "channels_last", "compile", "bf16")


class Side:
    "The network of a method with one of the variants"
    def __init__(self, variant, name, backbone, crop, batch, device):
        method = get_method(name)
        config = resolve_config(method.config(), method.presets, "voc", [f"crop_size={crop}", f"batch_size={batch}"],
                                backbone=backbone)
        seed_everything(0)
        self.net = method.network(config, VOC_CLASSES).train().to(device)
        self.at, self.device = getattr(config, "seg_start", 0)+1, device
        self.low = variant == "bf16"
        if isinstance(self.net, MethodNet):
            loaded = next(training_batches(TrainingSet(Scenes(), self.net.transform()), batch))
        else:
            loaded = {"input": torch.randn(batch, 3, crop, crop),
                      "label": torch.randint(len(VOC_CLASSES), (batch, crop, crop))}
        self.batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in loaded.items()}
        if variant == "channels_last":
            self.net = self.net.to(memory_format=torch.channels_last)
            self.batch = {k: v.to(memory_format=torch.channels_last) if isinstance(v, torch.Tensor) and v.ndim == 4
                          else v for k, v in self.batch.items()}
        if variant == "compile": self.net.encoder.forward = torch.compile(self.net.encoder.forward)
        self.optimizer = torch.optim.AdamW(self.net.param_groups(), weight_decay=config.weight_decay,
                                           fused=variant == "fused" or None)
    def step(self):
        torch.manual_seed(0)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            total = sum(w*v for w, v in self.net.training_losses(self.batch, self.at).values())
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda": torch.cuda.synchronize()
        return total.item()


def rows_of(name, backbone, crop, batch, device, rounds, variants, now):
    "Return a row for each variant"
    sides, rows, times = {}, {}, {}
    for v in ("plain", *variants):
        begin = time.perf_counter()
        try:
            side = Side(v, name, backbone, crop, batch, device)
            loss = side.step()
        except Exception as e:
            rows[v] = {"case": f"{name}-{backbone}-{v}", "cannot": (str(e) or type(e).__name__).splitlines()[0][:160]}
        else:
            sides[v], times[v], rows[v] = (side, [],
                                           {"case": f"{name}-{backbone}-{v}",
                                            "first_step_s": round(time.perf_counter()-begin, 1),
                                            "loss": round(loss, 6)})
    for v in sides:
        assert math.isfinite(rows[v]["loss"]) if v == "bf16" else abs(rows[v]["loss"]-rows["plain"]["loss"]) < 1e-3, \
            f"{v}: the loss is {rows[v]['loss']}, without it {rows['plain']['loss']}"
    for _ in range(rounds):
        for v, side in sides.items():
            begin = now()
            side.step()
            times[v].append(1e3*(now()-begin))
    for v, t in times.items():
        rows[v] |= {"ms": round(statistics.median(t), 1), "images_per_second": round(1e3*batch/statistics.median(t), 2),
                    "ratio": round(statistics.median(times["plain"])/statistics.median(t), 3)}
    return list(rows.values())


@call_parse
def main(
    json:str=None,             # write the rows to this file
    methods:str="toco",        # names, separated by commas
    backbones:str="deit_tiny_patch16_224", # names, separated by commas, with random weights
    crop:int=224,              # side of a sample
    batch:int=2,               # images
    device:str="auto",         # auto, cpu or cuda
    rounds:int=5,              # how often each is timed, in turn
    only:str="fused,channels_last,compile,bf16", # which to try
):
    "Time training steps with options of torch"
    device = pick_device(device)
    if device == "cpu": torch.set_num_threads(1)
    now = time.perf_counter if device == "cuda" else time.process_time
    rows = [r for name in methods.split(",") for b in backbones.split(",")
            for r in rows_of(name, b, crop, batch, device, rounds, only.split(","), now)]
    for r in rows: print(", ".join(f"{k}: {v}" for k, v in r.items()), flush=True)
    if json:
        write_json(json, {"machine": machine() | {"torch": torch.__version__}, "device": device, "crop": crop,
                          "batch": batch, "rows": rows})
