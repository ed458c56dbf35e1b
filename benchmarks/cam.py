"""Multi-scale CAM against its bare forward passes: the same batches through the same encoder, nothing done with the
output.

    python benchmarks/cam.py --json FILE [--only SUBSTRING]

`ratio` = peer/ours (1 = the whole CAM costs what its forward passes cost); the goal is 0.95 or more.

`map-KIND-BACKBONE-SIZE-bB` are maps of one class an image, [0,1] at image size, of a classifier with a linear head,
where CAM and Grad-CAM are the same map: our CAM, and our Grad-CAM, against GradCAM of pytorch-grad-cam (`grad-cam` on
PyPI). Before they are timed, all have to agree to 1e-5. Where that package is not installed, the rows say so.
"""
import copy
import statistics
import time

import torch
from fastcore.script import call_parse

from wsss_nb.backbones.core import create_backbone
from wsss_nb.cam.core import normalize_cam
from wsss_nb.cam.gradients import grad_cam, plain_cam, watch
from wsss_nb.cam.multiscale import multi_scale_cam
from wsss_nb.ground.core import peak_memory_mb, write_json
from wsss_nb.networks.single_stage import SingleStageNet
from wsss_nb.run.folder import machine
from wsss_nb.ground.tensors import resize

CASES = {"cam-toy-112-b1": ("vit_toy", 112, 1, 5), "cam-toy-112-b16": ("vit_toy", 112, 16, 5),
         "cam-deit-tiny-224-b8": ("deit_tiny_patch16_224", 224, 8, 20),
         "cam-deit-tiny-448-b1": ("deit_tiny_patch16_224", 448, 1, 20)}
SCALES = (1., .5, 1.5)
MAPS = {"resnet50-224-b4": ("resnet50", 224, 4, 20)}  # backbone, side, batch, classes


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


class Classifier(torch.nn.Module):
    "A backbone, the mean of its last features, a linear head"
    def __init__(self, backbone, num_fg):
        super().__init__()
        self.backbone, self.last = create_backbone(backbone), torch.nn.Identity()
        self.head = torch.nn.Linear(self.backbone.channels["last"], num_fg, bias=False)
    def forward(self, x): return self.head(self.last(self.backbone(x)["last"]).mean((-1, -2)))


def maps_of(name):
    "Return what makes maps (B,H,W) of one class an image, by name, and why the peer is not among them"
    backbone, side, batch, num_fg = MAPS[name]
    torch.manual_seed(0)
    net, images, rows = Classifier(backbone, num_fg).eval(), torch.randn(batch, 3, side, side), torch.arange(batch)
    wanted, look = rows % num_fg, watch(net, net.last)
    labels = torch.nn.functional.one_hot(wanted, num_fg)
    def at_image(cams):
        "Without the usual 1e-5 in the quotient, which the gradients of Grad-CAM are too small for"
        return normalize_cam(resize(cams[rows, wanted][:, None].relu(), (side, side)), eps=1e-12)[:, 0]
    found = {"cam": lambda: at_image(plain_cam(look, images, net.head.weight, labels)),
             "grad-cam": lambda: at_image(grad_cam(look, images, labels))}
    try: from pytorch_grad_cam import GradCAM
    except ImportError as e: return found, f"pytorch-grad-cam cannot be imported: {e}"
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    same = copy.deepcopy(net)  # it hangs hooks into a network
    theirs, targets = GradCAM(model=same, target_layers=[same.last]), [ClassifierOutputTarget(int(c)) for c in wanted]
    return found | {"peer": lambda: torch.from_numpy(theirs(input_tensor=images, targets=targets))}, None


def map_rows(name, rounds):
    "Return the rows of our maps beside those of pytorch-grad-cam"
    found, why = maps_of(name)
    rows = [{"case": f"map-{kind}-{name}", "threads": torch.get_num_threads()} for kind in ("cam", "grad-cam")]
    if why: return [r | {"cannot": why} for r in rows]
    first = {k: f() for k, f in found.items()}
    for kind in ("cam", "grad-cam"): assert (first[kind]-first["peer"]).abs().max() <= 1e-5, kind
    times = [{k: timed(f) for k, f in found.items()} for _ in range(rounds)]
    ms = {k: statistics.median(t[k] for t in times) for k in found}
    return [r | {"ours_ms": round(ms[k], 2), "peer_ms": round(ms["peer"], 2), "ratio": round(ms["peer"]/ms[k], 3)}
            for r, k in zip(rows, ("cam", "grad-cam"))]


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
    for name in MAPS: rows += map_rows(name, rounds) if only in f"map-cam-{name}" else []
    for r in rows: print(r)
    if json: write_json(json, {"machine": machine(), "rows": rows})
