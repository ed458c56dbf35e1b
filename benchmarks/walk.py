"""IRN's random walk: a step as a sparse matrix, against the published form, the matrix of all pairs squared 8 times.

    python benchmarks/walk.py --json FILE [--rounds 3] [--only SUBSTRING] [--threads 1]

ours and peer, in turn, medians; `ratio` = peer/ours, and the goals are 5 and 300 MB. Memory is what one call takes
above its inputs, each in a fresh process. `walk-WxH` is the walk on a photo of W×H pixels at stride 4, two classes,
radius 5, 256 steps, from boundary map to scores. Before anything is timed, both have to agree to 1e-4.
"""

import torch
from fastcore.script import call_parse
from lattice import in_turn, memory_of, peak_mb, row, table

from wsss_nb.cam.strided import strided_size
from wsss_nb.ground.core import write_json
from wsss_nb.refine.paths import boundary_walk
from wsss_nb.run.folder import machine

CASES = ("walk-112x112", "walk-250x188", "walk-500x375")


def walks(case):
    "Return our walk on a map of the size that a case names, and the published one"
    width, height = map(int, case.removeprefix("walk-").split("x"))
    g, size = torch.Generator().manual_seed(0), strided_size((height, width))
    maps, boundary = torch.rand(2, *size, generator=g), .6*torch.rand(*size, generator=g)
    return lambda: boundary_walk(maps, boundary), lambda: boundary_walk(maps, boundary, dense=True)


@call_parse
def main(
    json:str=None,    # write the rows to this file
    rounds:int=3,     # how often each is timed
    only:str="",      # only cases with this in their name
    memory:str=None,  # (internal) print the memory of this case
    who:str="ours",   # (internal) ours or peer
    threads:int=2,    # of torch
):
    "Time the random walk with and without its matrix"
    torch.set_num_threads(threads)
    if memory:
        walks("walk-32x32")[who == "peer"]()  # libraries load their parts with the first call
        return print(peak_mb(walks(memory)[who == "peer"]))
    rows = []
    for case in (c for c in CASES if only in c):
        ours, peer = walks(case)
        a, b = ours(), peer()
        assert (a-b).abs().max() <= 1e-4*b.abs().max(), (case, (a-b).abs().max())
        took = {f"{who}_mb": memory_of(case, who, threads, script=__file__) for who in ("ours", "peer")}
        rows.append(row(case, threads, *in_turn((ours, peer), rounds), **took))
        table(rows[-1:])
    if json: write_json(json, {"machine": machine(), "rows": rows})
