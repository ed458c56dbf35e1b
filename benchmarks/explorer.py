"""How long the explorer takes to answer a change, from the browser's message to picture and caption.

    python benchmarks/explorer.py --json FILE [--repeats 15] [--threads 1]

An untrained `vit_toy` with the settings of the preset `shapes` on toy scenes of 112x112 pixels: weights do not
change the time. Every row is the median over as many images; a case that is about new maps meets each image for the
first time.
"""
import argparse, itertools, json, os, time

os.environ.setdefault("TQDM_DISABLE", "1")
import numpy as np
import torch

from wsss_nb.ground.core import write_json
from wsss_nb.data.datasets import open_dataset
from wsss_nb.methods.baseline import METHOD
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config
from wsss_nb.explore.cam import Explorer


_turns = itertools.count()


def moved(panel, name, index):
    "Return the milliseconds that a message from the browser takes, until its answer is packed"
    begin = time.perf_counter()
    panel.widget.set_state({"asked": {"turn": str(next(_turns)), "name": name, "value": index}})
    return 1000*(time.perf_counter()-begin)


def benchmark(repeats):
    "Return the rows"
    torch.manual_seed(0)
    data = open_dataset("shapes:n=500", "val", masks=True)
    config = resolve_config(METHOD.config(), METHOD.presets, "shapes")
    panel = Explorer(METHOD.network(config, data.classes), data)
    times, scales = {}, panel.controls["scales"].offers(panel.state)
    def at(name, value): return [v for _, v in panel.controls[name].offers(panel.state)].index(value)
    own = at("scales", panel.state["scales"])
    for i in range(1, repeats+1):
        def note(case, name, index): times.setdefault(case, []).append(moved(panel, name, index))
        note("image, new", "image", i)
        note("threshold, new", "bg_thresh", at("bg_thresh", .5))
        note("threshold, seen", "bg_thresh", at("bg_thresh", config.bg_thresh))
        note("class", "only", 1)
        moved(panel, "only", 0)
        note("layer, new", "layer", 1)
        note("layer, seen", "layer", 0)
        for k, (label, _) in enumerate(scales):
            if k != own: note(f"scales {label}, new", "scales", k)
        moved(panel, "scales", own)
        moved(panel, "image", 0)
        note("image, seen", "image", i)
        moved(panel, "image", 0)
    if panel.error: raise RuntimeError(panel.error)
    return [{"case": f"explorer, {k}", "threads": torch.get_num_threads(), "ours_ms": round(float(np.median(v)), 1)}
            for k, v in times.items()]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--json", help="also write the result to this file")
    p.add_argument("--repeats", type=int, default=15, help="images per case")
    p.add_argument("--threads", type=int, default=1, help="of torch")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    result = {"machine": machine(), "rows": benchmark(args.repeats)}
    print(json.dumps(result, indent=2))
    if args.json: write_json(args.json, result)


if __name__ == "__main__": main()
