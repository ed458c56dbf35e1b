"""Pixel-adaptive refinement: one pass a round, against the published form, in which a tensor holds the 48 neighbours of
every pixel (literal.py), image by image as ToCo does it.

    python benchmarks/par.py --json FILE [--rounds 3] [--only SUBSTRING] [--threads 1]

ours and peer, in turn, medians; `ratio` = peer/ours. Memory is what one call takes above its inputs, each in a fresh
process. `KERNEL-WxH-C-bB`: images of W×H pixels, C maps, a batch of B, ten rounds, on toy scenes; 224x224 is what
ToCo's crops of 448 are halved to. Before anything is timed, both have to agree to 1e-5.
"""

import literal
import torch
from fastcore.script import call_parse
from lattice import in_turn, memory_of, peak_mb, row, table

from wsss_nb.data.datasets import open_dataset
from wsss_nb.ground.core import write_json
from wsss_nb.refine.par import par
from wsss_nb.run.folder import machine

CASES = ("par-320x320-4-b1", "par-224x224-21-b4", "aprm-320x320-4-b1")


def refinements(case):
    "Return our refinement of what a case names, and the published one"
    kernel, size, channels, batch = case.split("-")
    side, batch = int(size.split("x")[0]), int(batch.removeprefix("b"))
    scenes = open_dataset(f"shapes:n={batch},size={side}")
    images = torch.stack([torch.as_tensor(s.image) for s in scenes]).permute(0, 3, 1, 2)/255
    masks = torch.rand(batch, int(channels), side, side, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    weights = {"par": literal.par_weights, "aprm": literal.aprm_weights}[kernel]
    def peer():
        with torch.no_grad():
            return torch.cat([literal.refine_masks(i[None], m[None], weights) for i, m in zip(images, masks)])
    return lambda: par(images, masks, kernel=kernel), peer


@call_parse
def main(
    json:str=None,    # write the rows to this file
    rounds:int=3,     # how often each is timed
    only:str="",      # only cases with this in their name
    memory:str=None,  # (internal) print the memory of this case
    who:str="ours",   # (internal) ours or peer
    threads:int=0,    # of torch; 0: one, then two
):
    "Time the refinement"
    if memory:
        torch.set_num_threads(threads)
        refinements("par-32x32-2-b1")[who == "peer"]()  # libraries load their parts with the first call
        return print(peak_mb(refinements(memory)[who == "peer"]))
    rows = []
    for case in (c for c in CASES if only in c):
        ours, peer = refinements(case)
        differ = (ours()-peer()).abs().max()
        assert differ <= 1e-5, (case, differ)
        for n in (threads,) if threads else (1, 2):
            torch.set_num_threads(n)
            took = {f"{who}_mb": memory_of(case, who, n, script=__file__) for who in ("ours", "peer")}
            rows.append(row(case, n, *in_turn((ours, peer), rounds), **took))
            table(rows[-1:])
    if json: write_json(json, {"machine": machine(), "rows": rows})
