"What training remembers is the same in every process: two of them against one with the whole batch."
import torch
from torch import distributed, multiprocessing

from wsss_nb.backbones.core import create_backbone
from wsss_nb.losses.prototype import local_contrast_loss
from wsss_nb.networks.memory import MemoryNet, gathered

B, N, L = 2, 3, 30


def remembered(tokens, crops, tags, gather, columns="all"):
    "Queue, tags and columns after a step of a small network that is the same everywhere"
    torch.manual_seed(0)
    net = MemoryNet(create_backbone("vit_toy"), 5, 16, proj_hidden=16, queue_len=L).eval()
    columns = net.remember(net.key_rows(tokens, crops), tags, gather, columns)
    return [net.queue.clone(), net.queue_label_flag.clone(), net.queue_ptr.clone(), *columns]

def batch():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2*B, 2, 128, generator=generator), torch.randn(2*B, N, 3, 32, 32, generator=generator),
            torch.arange(2*B*(N+2))%6)

def part(rank, folder):
    "One of two processes: its images are half of the batch"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    tokens, crops, tags = (x[rank*len(x)//2:(rank+1)*len(x)//2] for x in batch())
    out = {how: remembered(tokens.transpose(0, 1).flatten(0, 1), crops, tags, how) for how in ("true", "ones")}
    tokens = tokens.transpose(0, 1).flatten(0, 1)
    out |= {f"own {how}": remembered(tokens, crops, tags, how, "process") for how in ("true", "ones")}
    torch.save(out | {"ranks": gathered(torch.full((2,), rank))}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_all_processes_remember_the_same(tmp_path):
    multiprocessing.spawn(part, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path/f"{rank}.pt", weights_only=True) for rank in range(2)]
    tokens, crops, tags = batch()
    for how in ("true", "ones"):
        whole = remembered(tokens.transpose(0, 1).flatten(0, 1), crops, tags, how)
        for p in parts:
            for a, b in zip(p[how], whole, strict=True): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for p in parts: assert p["ranks"].tolist() == [0, 0, 1, 1]


def test_each_process_contrasts_with_its_own_keys(tmp_path):
    """As published (CPDGL, section 4.9): all remember the keys of all, and LCL's columns are a process's own keys, then
    the queue, 48 + 4608 where the kit's other form has 96 + 4608"""
    multiprocessing.spawn(part, (str(tmp_path),), nprocs=2)
    tokens, crops, tags = batch()
    half = B*(N+2)  # keys of a process
    for how in ("true", "ones"):
        *memory, columns, column_tags = remembered(tokens.transpose(0, 1).flatten(0, 1), crops, tags, how)
        for rank in range(2):
            found = torch.load(tmp_path/f"{rank}.pt", weights_only=True)
            *theirs, own, own_tags = found[f"own {how}"]
            for a, b in zip(theirs, memory, strict=True): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            mine = slice(rank*half, (rank+1)*half)
            assert len(own) == len(own_tags) == half+L and len(columns) == 2*half+L
            torch.testing.assert_close(own, torch.cat([columns[mine], columns[2*half:]]), atol=1e-5, rtol=0)
            assert torch.equal(own_tags, torch.cat([column_tags[mine], column_tags[2*half:]]))
            if how == "ones": continue
            rows = columns[mine].roll(1, 0)  # any unit vectors: the loss reads the columns that it is given
            given = local_contrast_loss(rows, tags[mine], own, own_tags)[0]
            other = local_contrast_loss(rows, tags[mine], columns, column_tags)[0]
            assert torch.isfinite(given) and not torch.isclose(given, other, atol=1e-3)
