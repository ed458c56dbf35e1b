"""How long the explorers take to answer a change.

    python benchmarks/explorer.py [--only WORD] [--repeats 8] [--threads 1] [--json FILE]

Three parts, of which --only picks those whose names hold a word:

* `page NAME`: the page of a notebook, opened from a file in Chromium, from the event of a control until the next frame
  has been painted. A part of a frame is always waited for: 8 ms in the mean at 60 frames a second.
* `widget NAME, SIZE`: the way of a message without the browser, until its answer is packed. Every explorer of the
  package, on toy scenes of 112x112 pixels and of 432x432, which is as many as 500x375; those that show a run get
  untrained networks: weights do not change the time. Each value of a control is met for the first time.
* `explorer, CASE`: the same for the CAM explorer, case by case, with the settings of the preset `shapes` at 112x112.

A row is a median; `slowest` names the control with the slowest median, and `limit_ms` is what a row should stay below.
`cpu_ms` is the time that was computed, in this process or in the page's main thread (there the mean, and all that the
page does meanwhile): where others use the machine, that is what a change would take alone, on one thread.
"""
import argparse
import base64
import inspect
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

os.environ.setdefault("TQDM_DISABLE", "1")
import numpy as np
import torch

from wsss_nb.data.datasets import open_dataset
from wsss_nb.explore.cam import Explorer
from wsss_nb.explore.crf import toy_examples
from wsss_nb.explore.frame import unpacked
from wsss_nb.explore.overview import explorers
from wsss_nb.ground.core import UserError, write_json
from wsss_nb.methods.baseline import METHOD
from wsss_nb.run.folder import machine
from wsss_nb.run.settings import resolve_config
from wsss_nb.use.experiment import run_method
from wsss_nb.use.names import get_method

ROOT = Path(__file__).parent.parent
LIMITS = {"page": 50, 112: 200, 432: 500}  # ms; of scenes up to this side
_turns = itertools.count()


def moved(panel, name, value):
    "Return the milliseconds that a message from the browser takes, until its answer is packed; and those of computing"
    begin, computed = time.perf_counter(), time.process_time()
    panel.widget.set_state({"asked": {"turn": str(next(_turns)), "name": name, "value": value}})
    return 1000*(time.perf_counter()-begin), 1000*(time.process_time()-computed)


def spread(count, most):
    "Return numbers below `count`, evenly spaced, at most so many"
    return np.unique(np.linspace(0, count-1, min(count, most)).round().astype(int)).tolist()


def median(values): return round(float(np.median(values)), 1)


def row(case, times, limit):
    "Return the row of a case from the times of its controls, {label: milliseconds}, or pairs of waiting and computing"
    pairs = {k: np.reshape([np.atleast_1d(t) for t in v], (len(v), -1)) for k, v in times.items()}
    every, slowest = np.concatenate([*pairs.values()]), max(pairs, key=lambda k: np.median(pairs[k][:, -1]))
    computed = {"cpu_ms": median(every[:, 1])} if every.shape[1] > 1 else {}
    return {"case": case, "threads": torch.get_num_threads(), "limit_ms": limit, "ours_ms": median(every[:, 0]),
            **computed, "slowest": slowest, "slowest_ms": median(pairs[slowest][:, -1])}


# %% Pages in a browser
FIND = """most => {
  const label = e => e.tagName === "CANVAS" ? "place" : e.labels[0].textContent;
  const count = e => e.tagName === "SELECT" ? e.options.length : e.tagName === "CANVAS" ? most
    : e.type === "range" ? +e.max + 1 : 2;
  const found = document.querySelectorAll(".wsss :is(input, select), .wsss .wsss-place canvas");
  return [...found].map(e => [label(e), count(e)]);
}"""
MOVE = """async ([at, steps]) => {
  const e = document.querySelectorAll(".wsss :is(input, select), .wsss .wsss-place canvas")[at], times = [];
  const painted = () => new Promise(done => requestAnimationFrame(() => { const c = new MessageChannel();
    c.port1.onmessage = done; c.port2.postMessage(0); }));
  for (const step of steps) {
    await painted();
    await new Promise(done => setTimeout(done, 5 + 10 * Math.random()));   // anywhere between two frames
    const begin = performance.now();
    if (e.tagName === "CANVAS") {
      const r = e.getBoundingClientRect(), f = (step + .5) / steps.length;
      e.dispatchEvent(new MouseEvent("click", { clientX: r.left + f * r.width, clientY: r.top + (1 - f) * r.height }));
    } else if (e.tagName === "SELECT") { e.selectedIndex = step; e.dispatchEvent(new Event("change")); }
    else if (e.type === "range") { e.value = step; e.dispatchEvent(new Event("input")); }
    else { e.checked = !!step; e.dispatchEvent(new Event("change")); }
    await painted();
    times.push(performance.now() - begin);
  }
  return times;
}"""


def pages():
    "Return the live pages that notebooks hold, {name of the notebook: HTML}"
    found = {}
    for path in sorted((ROOT/"nbs"/"95_explore").glob("*.ipynb")):
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for o in c.get("outputs", ()):
                html = "".join(o.get("data", {}).get("text/html", ""))
                if 'class="wsss-live"' in html: found[path.stem] = html
    return found


def page_rows(only="", repeats=8):
    "Return a row for each page, opened from a file in Chromium"
    from playwright.sync_api import sync_playwright
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None: raise UserError("no Chromium on PATH: apt-get install chromium")
    rows, wanted = [], {k: v for k, v in pages().items() if only in f"page {k}"}
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for name, html in wanted.items():
            page, path = browser.new_page(viewport={"width": 1100, "height": 900}), Path(tmp)/f"{name}.html"
            head = "<!doctype html><html lang='en'><head><meta charset='utf-8'></head>"
            path.write_text(f"{head}<body>{html}</body></html>", encoding="utf-8")
            page.goto(path.as_uri())
            page.wait_for_selector(".wsss[aria-busy=false] canvas")
            times, told = {}, page.context.new_cdp_session(page)
            told.send("Performance.enable", {"timeDomain": "threadTicks"})
            def computed():
                "Return the milliseconds that the page's main thread has computed"
                found = told.send("Performance.getMetrics")["metrics"]
                return 1000*next(m["value"] for m in found if m["name"] == "TaskDuration")
            for at, (label, count) in enumerate(page.evaluate(FIND, repeats)):
                before, steps = computed(), spread(count, repeats)
                waited = page.evaluate(MOVE, [at, steps])
                share = (computed()-before)/len(steps)
                times[label] = [(t, share) for t in waited]
            said = unpacked(base64.b64decode(re.search(r'"\), "([^"]+)"\)', html)[1]))
            rows.append(row(f"page {name}", times, LIMITS["page"]) | {"views": len(said["views"])})
            page.close()
        browser.close()
    return rows


# %% Widgets without a browser
@contextmanager
def scenes_of(side):
    "Let the toy scenes of all explorers be as large as this"
    def opened(spec, *args, **kwargs):
        if str(spec).startswith("shapes") and "size=" not in str(spec):
            spec = f"{spec}{',' if ':' in spec else ':'}size={side}"
        return open_dataset(spec, *args, **kwargs)
    modules = [import_module(f"wsss_nb.explore.{m}") for m in explorers()]
    count, _ = toy_examples.__defaults__
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(toy_examples, "__defaults__", (count, side)))
        for m in modules:
            if hasattr(m, "open_dataset"): stack.enter_context(mock.patch.object(m, "open_dataset", opened))
        yield


def untrained(name, side):
    "Return an untrained network with the settings of the preset `shapes`, and images"
    torch.manual_seed(0)
    method, data = get_method(name), open_dataset(f"shapes:n=40,size={side}", "val", masks=True)
    return method.network(resolve_config(method.config(), method.presets, "shapes"), data.classes).eval(), data


def opened(made, side, tmp):
    "Return an explorer on toy scenes, or on a network that was not trained"
    asks = inspect.signature(made).parameters
    if not any(p.default is p.empty and p.name == "run" for p in asks.values()): return made()
    if "data" in asks: return made(*untrained("tscd" if "Affinity" in made.__name__ else "baseline", side))
    run_method("baseline", f"shapes:n=8,size={side}", tmp/"run", "shapes", stages=["train"], device="cpu",
               overrides=["iters=4", "batch_size=2", "crop_size=64", "save_every=1", "log_every=1", "val_images=0",
                          "warmup_iter=1", "seg_start=2", "workers=0"])
    return made(tmp/"run")


def widget_rows(only="", repeats=8, sides=(112, 432)):
    "Return a row for each explorer and size"
    rows = []
    for side, made in itertools.product(sides, [c for classes in explorers().values() for c in classes]):
        case = f"widget {made.__name__}, {side}x{side}"
        if only not in case: continue
        with tempfile.TemporaryDirectory() as tmp, scenes_of(side):
            panel, times = opened(made, side, Path(tmp)), {}
            shown = panel.shown.panels[0].image.shape[0]
            if shown != side: case += f" (its scenes are {shown} pixels high)"
            assert panel.widget is not None  # made when it is asked for
            for c in [c for c in panel.controls.values() if c.kind != "swipe"]:
                offers = c.offers(panel.state)
                for at in spread(len(offers), repeats+1):
                    if offers[at][1] == panel.state[c.name] or at >= len(c.offers(panel.state)): continue
                    value = at if c.kind in ("slider", "choice") else offers[at][1]
                    times.setdefault(c.label, []).append(moved(panel, c.name, value))
            if panel.error: raise RuntimeError(f"{case}: {panel.error}")
        rows.append(row(case, times, next(v for k, v in LIMITS.items() if k != "page" and side <= k)))
    return rows


# %% The CAM explorer, case by case
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
        def note(case, name, index): times.setdefault(case, []).append(moved(panel, name, index)[0])
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


def table(rows):
    "Return the rows as text; what is slower than it should be, also by what it computes, is marked"
    wide = max(len(r["case"]) for r in rows)
    lines = [f"{'case':{wide}}  {'ms':>7}  {'cpu ms':>7}  {'limit':>5}  slowest control"]
    for r in rows:
        limit, slow = r.get("limit_ms"), r.get("cpu_ms", r["ours_ms"]) >= r.get("limit_ms", np.inf)
        more = f"{r['slowest']} {r['slowest_ms']}" if "slowest" in r else ""
        lines.append(f"{r['case']:{wide}}  {r['ours_ms']:7.1f}  {r.get('cpu_ms', ''):>7}  {limit or '':>5}  {more}"
                     f"{'  TOO SLOW' if slow else ''}")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--json", help="also write the result to this file")
    p.add_argument("--only", default="", help="rows whose name holds this word: page, widget, Sweep, 432x432 ...")
    p.add_argument("--repeats", type=int, default=8, help="values per control, images per case")
    p.add_argument("--threads", type=int, default=1, help="of torch")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    rows = page_rows(args.only, args.repeats)+widget_rows(args.only, args.repeats)
    if args.only in "explorer, ": rows += benchmark(args.repeats)
    if not rows: raise SystemExit(f"--only {args.only}: no such row")
    print(table(rows))
    if args.json: write_json(args.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__": main()
