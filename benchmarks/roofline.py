"""What a machine allows at best: moving the data, or the arithmetic, whichever takes longer (the roofline of Williams,
Waterman and Patterson 2009).

The two ceilings are measured on the machine: how fast arrays are added, and how fast matrices are multiplied. What has
to be moved and computed is counted here for the cases of the lattice: each input is read and each result written once,
and the vertices never leave the cache. No program can be faster; gathers and scatters keep all from coming close.
"""
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

EXP = 12  # operations of one exponential: a polynomial of degree 5, rounding, scaling


class Work(NamedTuple):
    "What a case needs at least"
    megabytes:float
    gigaflop:float


class Ceilings(NamedTuple):
    "What the machine can do"
    gigabytes:float   # a second
    gigaflops:float


def _median(f, times=5):
    "Return the median time of a call, in seconds; the first is not counted"
    def once():
        begin = time.perf_counter()
        f()
        return time.perf_counter()-begin
    once()
    return statistics.median(once() for _ in range(times))

def bandwidth(
    threads:int=1,    # that work at the same time, each on arrays of its own
    megabytes:int=64, # of each of three arrays
):                    # GB/s of all together
    "Return how fast a = b + c is moved, the limit of everything that does not fit into the caches"
    arrays = [[np.ones(megabytes*2**20//4, np.float32) for _ in range(3)] for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        took = _median(lambda: [*pool.map(lambda x: np.add(x[1], x[2], out=x[0]), arrays)])
    return threads*3*arrays[0][0].nbytes/took/1e9

def arithmetic(
    threads:int=1, # of PyTorch
    side:int=1024, # of the matrices
):                 # Gflop/s of float32
    "Return how fast two matrices are multiplied"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.ones(side, side)
        return 2*side**3/_median(lambda: a@a)/1e9
    finally: torch.set_num_threads(before)

def ceilings(
    threads:int, # as in `bandwidth`
):               # of this machine
    "Return what is measured here"
    return Ceilings(bandwidth(threads), arithmetic(threads))

def _lattice(dims, channels, points, density):
    "Return the operations of one filter: splat, blur along each axis, slice"
    return (dims+1)*channels*points*(2*2+4*density)

def work_of(
    row:dict, # of lattice.py or crf.py: `case`, `vertices_per_pixel`
):            # None: not counted
    "Return the least work of a case"
    density = row.get("vertices_per_pixel", 0)
    density = statistics.median(density) if isinstance(density, list) else density
    if found := re.fullmatch(r"filter-(?:[a-z]+-)?(\d+)-(\d+)-b(\d+)", row["case"]):
        side, channels, batch = map(int, found.groups())
        points = batch*side**2
        return Work(4*points*(3+2*channels)/1e6, _lattice(5, channels, points, density)/1e9)
    if found := re.fullmatch(r"energy-(\d+)x(\d+)x(\d+)x(\d+)", row["case"]):
        batch, channels, height, width = map(int, found.groups())
        logits = batch*channels*height*width  # read forward and backward, their gradient written
        points = batch*height*width//4        # probabilities and filtered ones at half size, written and read
        return Work(4*(3*logits+4*points*channels)/1e6, (2*EXP*logits+_lattice(5, channels, points, density))/1e9)
    if found := re.fullmatch(r"crf-(\d+)x(\d+)-(\d+)-[\d-]+(?:-g1)?", row["case"]):
        width, height, classes = map(int, found.groups())
        points = 10*width*height              # ten iterations: unaries, vertex and weight of 6 and 3 corners
        flop = _lattice(5, classes, points, density)+_lattice(2, classes, points, 0)+(EXP+4)*classes*points
        return Work(points*(4*classes+8*(6+3))/1e6, flop/1e9)
    return None

def limit_ms(
    work:Work,         # of a case
    ceilings:Ceilings, # of the machine, with as many threads
)->float:              # ms
    "Return the time below which no program comes"
    return max(work.megabytes/ceilings.gigabytes, 1e3*work.gigaflop/ceilings.gigaflops)
