"""What the affinity of patches costs: the random walk dense and with the memory of the neighbourhood, the head and
the decoder against their published forms.

    python benchmarks/affinity.py --json FILE [--rounds 9] [--only SUBSTRING]

ours and peer, in turn, medians; `ratio` = peer/ours. Memory is what one call takes above its inputs, each in a fresh
process. `walk-G-K`: G×G patches, K classes, radius 8, from an affinity that is there already. Peer: dense.
`attention-walk-G-K`: the same from queries and keys of two blocks, so that the affinity has to be made. Peer: dense.
`head-G`: affinity of all pairs and its gradients, two images. Peer: sixteen matrices of logits and a 1×1
convolution, as published. `decoder-S`: SegFormer's decoder for a crop of S pixels, widths of mit_b1, two images,
with gradients; without ReLU, which one rounding can switch. Peer: enlarge, stack, convolve, as published.
"""

import torch
from fastcore.script import call_parse
from lattice import in_turn, memory_of, peak_mb, row, table
from torch.nn import functional as F

from wsss_nb.backbones.mit import attention_logits
from wsss_nb.ground.core import write_json
from wsss_nb.refine.affinity import near_pairs
from wsss_nb.refine.walk import near_affinity, random_walk
from wsss_nb.run.folder import machine
from wsss_nb.networks.segformer import AffinityHead, AllMLP
from wsss_nb.ground.tensors import resize

RADIUS, HEADS, WIDTHS = 8, 16, (64, 128, 320, 512)
CASES = ("walk-32-20", "walk-48-20", "walk-64-20", "attention-walk-32-20", "attention-walk-48-20",
         "attention-walk-64-20", "head-32", "decoder-512")


def attention(side, batch):
    "Queries and keys of two blocks with eight heads of 64 channels"
    g = torch.Generator().manual_seed(0)
    return [tuple(.3*torch.randn(batch, HEADS//2, side*side, 64, generator=g) for _ in range(2)) for _ in range(2)]


def walks(side, classes, made):
    """Return the walk with the memory of the neighbourhood, and the dense one

    With `made` from an affinity that is there"""
    torch.manual_seed(0)
    grid, pairs, head = (side, side), attention(side, 1), AffinityHead(HEADS).requires_grad_(False)
    cam, labels = torch.rand(1, classes, *grid), (torch.arange(classes) < 2).float()[None]
    near = near_pairs(grid, RADIUS)
    if made:
        dense = head(pairs)
        bands = near_affinity(dense, grid, RADIUS)
        return lambda: random_walk(cam, bands, labels, .35), lambda: random_walk(cam, dense, labels, .35, near)
    return (lambda: random_walk(cam, head(pairs, grid, RADIUS), labels, .35),
            lambda: random_walk(cam, head(pairs), labels, .35, near))


def heads(side):
    "Return affinity and gradients as one product, and as published"
    torch.manual_seed(0)
    head, pairs = AffinityHead(HEADS), [tuple(x.requires_grad_() for x in p) for p in attention(side, 2)]
    def run(affinity):
        for x in (*head.parameters(), *(x for p in pairs for x in p)): x.grad = None
        affinity().square().mean().backward()
        return pairs[0][0].grad
    return (lambda: run(lambda: head(pairs)),
            lambda: run(lambda: F.conv2d(torch.cat([attention_logits(*p) for p in pairs], 1), head.weight,
                                         head.bias)[:, 0].sigmoid()))


def decoders(side):
    "Return the decoder with its linear maps exchanged, and as published"
    torch.manual_seed(0)
    decoder = AllMLP(WIDTHS, 21)
    stages = [torch.randn(2, w, side//s, side//s, requires_grad=True) for w, s in zip(WIDTHS, (4, 8, 16, 16))]
    def published():
        def enlarged(s):
            x,linear = stages[s-1],getattr(decoder, f"linear_c{s}").proj
            x = linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[-2:])
            return resize(x, stages[0].shape[-2:])
        up = [enlarged(s) for s in (4, 3, 2, 1)]
        return decoder.linear_pred(decoder.linear_fuse(torch.cat(up, 1)))
    def ours(): return decoder.linear_pred(decoder.fuse(stages))
    weight = torch.randn(2, 21, side//4, side//4)
    def run(f):
        for x in (*decoder.parameters(), *stages): x.grad = None
        (f()*weight).mean().backward()
        return stages[3].grad
    return lambda: run(ours), lambda: run(published)


def contestants(case):
    "Return ours and the peer's form of a case"
    kind, *sizes = case.rsplit("-", 2) if "walk" in case else case.split("-")
    if kind == "head": return heads(int(sizes[0]))
    return decoders(int(sizes[0])) if kind == "decoder" else walks(*map(int, sizes), made=kind == "walk")


@call_parse
def main(
    json:str=None,    # write the rows to this file
    rounds:int=9,     # how often each is timed
    only:str="",      # only cases with this in their name
    memory:str=None,  # (internal) print the memory of this case
    who:str="ours",   # (internal) ours or peer
    threads:int=2,    # of torch
):
    "Time the random walk, the affinity head and the decoder"
    torch.set_num_threads(threads)
    if memory:
        small = contestants(memory.replace("64", "32") if "walk" in memory else memory)[who == "peer"]
        if "walk" in memory: small()  # libraries load their parts with the first call
        return print(peak_mb(contestants(memory)[who == "peer"]))
    rows = []
    for case in (c for c in CASES if only in c):
        ours, peer = contestants(case)
        a, b = ours(), peer()
        assert (a-b).abs().max() <= 1e-4*b.abs().max(), (case, (a-b).abs().max())
        took = {f"{who}_mb": memory_of(case, who, threads, script=__file__) for who in ("ours", "peer")}
        rows.append(row(case, threads, *in_turn((ours, peer), rounds), **took))
        table(rows[-1:])
    if json: write_json(json, {"machine": machine(), "rows": rows})
