"""Several processes against one with the same batch: how far weights and losses differ after six steps of every
method with all its terms on (tests/test_processes.py holds two to 1e-5).

    python benchmarks/processes.py [--processes 2] [--methods toco,tscd] [--optimizer sgd] [--json FILE]

Toy scenes, sizes of the tests, gloo on a CPU; all processes may share one core. The optimiser is SGD: AdamW
(`--optimizer adamw`) makes whole steps of gradients that are zero but for rounding. That it is rounding and nothing
else, `--double` shows: the same in float64, without the energy term, whose filter knows float32 only, and without
methods of several stages."""
import os
import subprocess
import sys
import tempfile
from json import dumps
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent/"tests"))
import torch
from commands import STAGED
from fastcore.script import call_parse, store_true
from test_processes import ADAMW, HARNESS, STAGES, command

from wsss_nb.use.cli import main
from wsss_nb.ground.core import write_json
from wsss_nb.run.folder import Run, load_checkpoint, machine, read_log

KNOWN = ("baseline", "toco", "tsd-cam", "cpdgl", "tscd", "i2crc")  # whose stages `test_processes` knows
DOUBLE = """
torch.Tensor.float = torch.Tensor.double
begin, one_step = Trainer.__init__, Trainer.one_step
Trainer.__init__ = lambda self, network, *a, **kw: begin(self, network.double(), *a, **kw)
def doubled(v): return v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
Trainer.one_step = lambda self, parts: one_step(self, [{k: doubled(v) for k, v in p.items()} for p in parts])
Trainer.validation = lambda self: {}
"""


def compare(one, many):
    """Return the largest relative difference of a weight tensor, that of all weights together, and the largest of a
    logged loss"""
    a, b = (load_checkpoint(r)["model"] for r in (one, many))
    def differ(x, y): return ((x-y).norm()/x.norm().clamp(min=1e-30)).item()
    tensors = [(v.double().flatten(), b[k].double().flatten()) for k, v in a.items()]
    losses = [abs(r[k]-s[k])/max(abs(r[k]), 1e-9) for r, s in zip(read_log(one.log), read_log(many.log), strict=True)
              for k in r.keys()-{"images_per_second", "step", "lr"}]
    return {"weights": max(differ(x, y) for x, y in tensors),
            "all_weights": differ(*(torch.cat(side) for side in zip(*tensors))), "losses": max(losses)}


@call_parse
def run(
    processes:int=2,            # how many
    methods:str=",".join(KNOWN), # which
    optimizer:str="sgd",        # or adamw
    double:store_true=False,    # compute in float64
    json:str=None,              # write all numbers to this file
):
    "Compare several processes with one"
    with tempfile.TemporaryDirectory() as folder:
        root, names = Path(folder), [m for m in methods.split(",") if not (double and m in STAGED)]
        assert main(["wsss-data", "make-shapes", str(root/"scenes"), "--n", "12", "--size", "64"]) == 0
        (root/"harness.py").write_text(HARNESS.replace("folder, *commands", DOUBLE+"folder, *commands")
                                       if double else HARNESS)
        for n in (1, processes):
            commands = [command(m, root/"scenes", root/f"{m}{n}",
                                *(("batch_size=8", "cls_batch=4") if m in STAGED else ("w_reg=0",) if double
                                  and m != "baseline" else ())) for m in names]
            subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n),
                            root/"harness.py", dumps(folder), *map(dumps, commands)], check=True,
                           stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
                           | ({ADAMW: "1"} if optimizer == "adamw" else {}))
        rows = [{"case": f"{m} {stage or ''}".strip(), "processes": processes, "optimizer": optimizer, "double": double}
                | compare(*(Run(root/f"{m}{n}", stage) for n in (1, processes)))
                for m in names for stage in (STAGES if m in STAGED else (None,))]
    for r in rows:
        print(f"{r['case']:16} {r['processes']} processes, {r['optimizer']}{', float64' if double else ''}: "
              f"weights {r['weights']:.1e}, all together {r['all_weights']:.1e}, losses {r['losses']:.1e}")
    if json: write_json(json, {"machine": machine(), "rows": rows})
