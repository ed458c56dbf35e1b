"""Seconds and memory of a training step: each method against the same step written the plain way (literal.py), which
computes every term always.

    python benchmarks/train_step.py --json FILE [--backbone NAME] [--voc FOLDER] [--rounds 5] [--only SUBSTRING] \\
        [--threads 1 --cpu]

Settings are the method's VOC preset: its crop, batch 4, 20 classes, all scales, the published projection heads; only
the backbone is a small one, with random weights (mit_b0 for TSCD). A step is losses, backward and AdamW.
`step-METHOD` is a step after the warm-up of the preset, with all terms on; `-warmup` one before, where ours does not
compute what does not count yet. Both sides start from the same weights, see the same batch (photos of VOC under
FOLDER, else toy scenes) and the same random draws; before anything is timed the losses are compared, which have to
agree to 1e-5. Ours and the peer run in turn in this process; times are medians, ratio = peer/ours, and the goal is
1.43 (0.7 times the time). `ours_parts` and `peer_parts` say where it goes, in ms of a mean step. Memory is what the
first step of a fresh process takes above what it held before: network, batch, interpreter. `--cpu` counts processor
time of all threads instead of wall time: on a busy machine, with one thread, the ratio keeps its meaning.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import literal
import torch
from fastcore.script import call_parse
from lattice import peak_mb, peer_library
from literal_cpdgl import LiteralCPDGL
from literal_tscd import LiteralTSCD

from wsss_nb.ground.core import seed_everything, write_json
from wsss_nb.data.core import Dataset
from wsss_nb.data.datasets import open_dataset
from wsss_nb.data.loader import TrainingSet, training_batches
from wsss_nb.data.voc import VOC_CLASSES
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.names import get_method

METHODS = {
    "step-toco": ("toco", literal.LiteralToCo),
    "step-tsd-cam": ("tsd-cam", literal.LiteralTSD),
    "step-cpdgl": ("cpdgl", LiteralCPDGL),
    "step-tscd": ("tscd", LiteralTSCD),
}
SETTINGS = {"step-tscd": {"drop_path": 0.}}  # noise in the encoder would not be the same on both sides
CASES = [f"{case}{phase}" for case in METHODS for phase in ("", "-warmup")]
PARTS = {"encode": "the network's passes with gradient", "cam-encode": "its passes for CAMs and teachers, without",
         "cam-maps": "resizing and joining the maps", "refine": "pseudo labels by PAR or APRM",
         "energy": "forward of the dense energy",
         "contrast": "other terms on tokens, crops, maps", "backward": "all of it", "optimiser": "AdamW",
         "other": "decoder, resizing, classification, cross entropy"}
# whose time counts as which part: of the network or the peer's object, and of the module that it is from
WRAPPED = ({"cams": "cam-maps", "step_cams": "cam-maps", "training_cams": "cam-maps", "pseudo_label": "refine",
            "dense_energy": "energy", "energy_term": "energy"}
           | dict.fromkeys(("patch_contrast", "uncertain_crops", "project", "class_contrast_loss", "correlation_loss",
                            "affinity_term", "tagged_places", "cut_crops", "student_rows", "key_rows", "remember",
                            "see_classes", "follow_student", "local_contrast_loss", "prototype_contrast_loss",
                            "patch_term", "class_term", "correlation", "crops", "reservoir", "move_prototypes",
                            "local_contrast", "prototype_contrast"), "contrast"))


class Clock:
    "Time of nested parts; a part that is inside another is not counted twice"
    now = staticmethod(time.perf_counter)
    def __init__(self): self.spent, self.open, self.places = defaultdict(float), [], []
    @contextmanager
    def part(self, name):
        begin = self.now()
        self.open.append(0.)
        try: yield
        finally:
            whole = self.now()-begin
            self.spent[name] += whole-self.open.pop()
            if self.open: self.open[-1] += whole
    def wrap(self, owner, attribute, name):
        "Let a function of an object or a module count as a part, while `running`"
        inner = getattr(owner, attribute)
        def timed(*args, **kw):
            with self.part(name() if callable(name) else name): return inner(*args, **kw)
        self.places.append((owner, attribute, timed))
    @contextmanager
    def running(self):
        "Time what is wrapped; afterwards modules are as they were, for other sides read them too"
        with ExitStack() as stack:
            for place in self.places: stack.enter_context(patch.object(*place))
            yield


class Scenes(Dataset):
    "Toy scenes under VOC's names, where there are no photos"
    def __init__(self): self.scenes = open_dataset("shapes:n=8,size=480")
    def __getattr__(self, name): return getattr(self.scenes, name)
    def __len__(self): return len(self.scenes)
    def __getitem__(self, i):
        item = self.scenes[i]
        item.image_labels = torch.nn.functional.pad(torch.as_tensor(item.image_labels),
                                                    (0, len(VOC_CLASSES)-1-len(item.image_labels))).numpy()
        return item


def batch_for(net, voc):
    "A batch of the network's own transform"
    data = open_dataset(f"voc:{voc}", "train") if voc else Scenes()
    return next(training_batches(TrainingSet(data, net.transform()), net.config.batch_size))


class Side:
    "One contestant: `step()` does a step and returns the value of each term that counts"
    def __init__(self, who, case, backbone, voc=None, filter=None):
        row = case.removesuffix("-warmup")
        name, peer = METHODS[row]
        method = get_method(name)
        config = resolve_config(method.config(), method.presets, "voc", backbone=backbone, **SETTINGS.get(row, {}))
        seed_everything(0)
        net = method.network(config, VOC_CLASSES).train()
        self.batch, self.at = batch_for(net, voc), config.seg_start+(0 if case.endswith("-warmup") else 1)
        self.net, self.losses, self.clock, owner = net, net.training_losses, Clock(), net
        if who == "peer":
            owner = peer(net, lambda images, values: filter(images, values, torch.get_num_threads()))
            self.net, self.losses = owner.net, owner.losses
        self.optimizer = torch.optim.AdamW(self.net.param_groups(), weight_decay=config.weight_decay)
        for place in (owner, sys.modules[type(owner).__module__]):
            for attribute in WRAPPED.keys() & set(dir(place)): self.clock.wrap(place, attribute, WRAPPED[attribute])
        for encoder in {self.net.encoder, getattr(self.net, "encoder_k", self.net.encoder)}:
            self.clock.wrap(encoder, "forward", lambda: "encode" if torch.is_grad_enabled() else "cam-encode")
    def step(self):
        torch.manual_seed(0)  # the same draws on both sides
        with self.clock.running(), self.clock.part("other"):
            terms = self.losses(self.batch, self.at)
            total = sum(w*v for w, v in terms.values())
            with self.clock.part("backward"): total.backward()
            with self.clock.part("optimiser"):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        return {k: float(v.detach()) for k, (w, v) in terms.items() if w} | {"total": float(total.detach())}


def compare(case, ours, peer):
    "Assert that two steps from the same weights have the same losses"
    assert ours.keys() == peer.keys(), (ours.keys(), peer.keys())
    for k in ours:
        assert abs(ours[k]-peer[k]) <= 1e-5*max(1., abs(peer[k])), \
            f"{case}: {k} is {ours[k]}, in the plain loop {peer[k]}"
    print(f"{case}: same losses to 1e-5:", ", ".join(f"{k} {v:.6f} (differs by {abs(v-peer[k]):.0e})"
                                                     for k, v in ours.items()), flush=True)


def measured(case, rounds, *args):
    "One row"
    sides = {who: Side(who, case, *args) for who in ("ours", "peer")}
    compare(case, *(s.step() for s in sides.values()))
    for s in sides.values(): s.clock.spent.clear()
    times = {who: [] for who in sides}
    for _ in range(rounds):
        for who, s in sides.items():
            begin = Clock.now()
            s.step()
            times[who].append(1e3*(Clock.now()-begin))
    ms = {who: statistics.median(t) for who, t in times.items()}
    c = sides["ours"].net.config
    return {"case": case, "threads": torch.get_num_threads(), "ours_ms": round(ms["ours"], 1),
            "peer_ms": round(ms["peer"], 1), "ratio": round(ms["peer"]/ms["ours"], 3), "backbone": c.backbone,
            "crop": c.crop_size, "batch": c.batch_size} | \
        {f"{who}_parts": {k: round(1e3*s.clock.spent[k]/rounds, 1) for k in PARTS if k in s.clock.spent}
         for who, s in sides.items()}


def memory_of(case, who, backbone, voc):
    "Peak of a fresh process"
    args = [sys.executable, __file__, "--memory", case, "--who", who, "--backbone", backbone, "--threads",
            str(torch.get_num_threads())]
    return int(subprocess.run(args+(["--voc", str(voc)] if voc else []), capture_output=True, text=True,
                              check=True).stdout.split()[-1])


@call_parse
def main(
    json:str=None,   # write the rows to this file
    backbone:str=None, # of both sides, with random weights; by default deit_tiny_patch16_224, for TSCD mit_b0
    voc:str=None,    # VOC folder with JPEGImages/; None: toy scenes
    rounds:int=5,    # how often each is timed, in turn
    only:str="",     # only cases with this in their name
    threads:int=0,   # of torch; 0: as it finds
    cpu:bool=False,  # processor time instead of wall time
    memory:str=None, # (internal) print the memory of this case
    who:str="ours",  # (internal) ours or peer
):
    "Time training steps"
    if threads: torch.set_num_threads(threads)
    if cpu: Clock.now = staticmethod(time.process_time)
    with tempfile.TemporaryDirectory() as tmp:
        filter, rows = peer_library(tmp), []
        def small(case): return backbone or ("mit_b0" if "tscd" in case else "deit_tiny_patch16_224")
        if memory:
            side = Side(who, memory, small(memory), voc, filter)
            return print(round(peak_mb(side.step)))
        for case in (c for c in CASES if only in c):
            rows.append(measured(case, rounds, small(case), voc, filter)
                        | {f"{w}_mb": memory_of(case, w, small(case), voc) for w in ("ours", "peer")})
            for k, v in rows[-1].items(): print(f"  {k}: {v}", flush=True)
    if json:
        write_json(
            json,
            {
                "machine": machine() | {"torch": torch.__version__, "clock": "processor time" if cpu else "wall"},
                "images": "photos of VOC" if voc else "toy scenes",
                "parts": PARTS,
                "rows": rows,
            },
        )
