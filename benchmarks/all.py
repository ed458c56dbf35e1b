"""Every speed that the kit promises, in one list with the goals: each benchmark in a process of its own.

    python benchmarks/all.py --json docs/speed.json [--only lattice,crf] [--short]

A ratio is the time of the peer divided by ours, medians of one run. What the peers are stands at the top of each file.
A limit is what the machine allows at best (roofline.py). What a file of results holds of other benchmarks stays in it.
On a machine that does other work at the same time the ratios of short cases mean little."""
import re
import subprocess
import sys
import tempfile
import time
from json import loads
from pathlib import Path
from typing import NamedTuple

from fastcore.script import call_parse
from roofline import ceilings, limit_ms, work_of

from wsss_nb.ground.core import UserError, write_json
from wsss_nb.run.folder import machine, source_commit

FOLDER = Path(__file__).parent
# file -> its options in the short form, which stays under three minutes; None: left out there
FILES = {"lattice": ("--only", "filter-256-21-b1", "--rounds", "5"), "crf": ("--only", "-3-80-13", "--rounds", "1"),
         "walk": ("--only", "walk-112x112"), "par": ("--only", "par-320x320", "--threads", "1"), "affinity": None,
         "cam": ("--only", "cam-toy", "--rounds", "3"), "seeds_stage": None,
         "loader": ("--images", "20", "--rounds", "1"),
         "evaluate": ("--images", "200", "--repeats", "2"), "train_step": None, "ktse_step": None, "irn_step": None,
         "beco_step": None, "explorer": None}


class Goal(NamedTuple):
    "What a row shall reach"
    case:str        # pattern of the whole name of a case
    threads:int|None # None: with any number
    least:float     # smallest value
    key:str = "ratio"

BARE = 1/1.05  # the ratio of somebody who takes 5 % more than the bare work
GOALS = (Goal("filter-256-21-b1", 1, 14), Goal("filter-256-21-b1", 2, 20), Goal("filter-256-21-b4", 2, 12),
         Goal("filter-256-4-b1", 1, 6), Goal("filter-.*noise.*", 1, 4.5), Goal("energy-.*", 2, 8),
         Goal(r"crf-\d+x\d+-21-80-13", 1, 5.5), Goal(r"crf-\d+x\d+-21-80-13", 2, 9),
         Goal(r"crf-\d+x\d+-21-(67-3|121-5)", 1, 4), Goal(r"crf-\d+x\d+-21-(67-3|121-5)", 2, 6.5),
         Goal(r"crf-\d+x\d+-3-80-13", 1, 7), Goal(r"crf-\d+x\d+-3-67-3", 1, 4.5),
         Goal(r"crf-\d+x\d+-3-(121|50)-5", 1, 5), Goal("step-tsd-cam", None, 1.45),
         Goal(r"step-(?!.*warmup).*|beco|ktse", None, 1.6), Goal("cam-.*", 2, BARE), Goal("seeds-.*", 2, BARE),
         Goal("evaluate-vs-decode-only-.*", 2, BARE), Goal("loader-.*", 1, 75, "ours_images_per_second"))


def goal_of(row):
    "Return the goal of a row, or None"
    return next((g for g in GOALS if re.fullmatch(g.case, row["case"]) and g.threads in (None, row.get("threads"))),
                None)

def measured(name, options):
    "Return what a file of this folder measures, `{'rows': [...], 'seconds': s}`, or why it could not"
    with tempfile.TemporaryDirectory() as tmp:
        out, begin = Path(tmp)/"rows.json", time.perf_counter()
        done = subprocess.run([sys.executable, str(FOLDER/f"{name}.py"), "--json", str(out), *options],
                              capture_output=True, text=True)
        if done.returncode or not out.exists():
            return {"rows": [], "cannot": ((done.stderr or done.stdout).strip().splitlines() or ["no rows"])[-1]}
        return {"rows": loads(out.read_text())["rows"], "seconds": round(time.perf_counter()-begin)}

def judged(row):
    "Return a row with the `goal` for one of its values and whether it is `reached`, where there is one"
    goal = goal_of(row)
    if goal is None: return row
    return row | {"goal": {goal.key: round(goal.least, 3)}, "reached": row[goal.key] >= goal.least}

def limited(row, machine):
    "Return a row with the time that `machine`, {threads: Ceilings}, allows at best, where its work was counted"
    work = work_of(row)
    if work is None or row.get("threads") not in machine: return row
    return row | {"limit_ms": round(limit_ms(work, machine[row["threads"]]), 2)}

def told(name, row):
    "Return a row in words"
    goal = "".join(f", goal {v:g}" for v in row.get("goal", {}).values())
    times = ", ".join(f"{who} {row[f'{who}_ms']:g} ms" for who in ("ours", "peer") if f"{who}_ms" in row)
    times += f", limit {row['limit_ms']:g} ms" if "limit_ms" in row else ""
    ratio = f", ratio {row['ratio']:.2f}" if "ratio" in row else ""
    ratio += f" cannot: {row['cannot']}" if "cannot" in row else ""
    missed = "" if row.get("reached", True) else " (missed)"
    return f"{name:12} {row['case']:40} {row.get('threads', '')!s:2} {times}{ratio}{goal}{missed}"


@call_parse
def main(
    json:str=None,  # write everything to this file
    only:str="",    # files such as lattice,crf; empty: all
    short:bool=False, # a few cases, for a look at whether something became much slower
):
    "Run all benchmarks and print what they found beside the goals"
    names = [n for n in only.split(",") if n] or [n for n in FILES if not short or FILES[n] is not None]
    for n in names:
        if n not in FILES: raise UserError(f"--only {n}: no benchmark, there are {', '.join(FILES)}")
    measured_on, able = machine(), {t: ceilings(t) for t in (1, 2)}
    measured_on |= {f"{t} thread{'s'*(t > 1)}": f"{c.gigabytes:.0f} GB/s, {c.gigaflops:.0f} Gflop/s"
                    for t, c in able.items()}
    parts = loads(Path(json).read_text())["parts"] if json and Path(json).exists() else {}
    for n in names:  # what is measured is kept, whatever becomes of the rest
        parts[n] = measured(n, (FILES[n] or ()) if short else ())
        parts[n] |= {"machine": measured_on, "commit": source_commit(), "short": short}
        parts[n]["rows"] = [judged(limited(r, able)) for r in parts[n]["rows"]]
        for r in parts[n]["rows"]: print(told(n, r), flush=True)
        if "cannot" in parts[n]: print(f"{n}: {parts[n]['cannot']}", flush=True)
        if json: write_json(json, {"parts": {k: parts[k] for k in FILES if k in parts}})
    if bad := [n for n in names if "cannot" in parts[n]]: raise SystemExit(f"not measured: {', '.join(bad)}")
