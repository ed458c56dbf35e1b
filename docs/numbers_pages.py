"""The pages "Results" and "Speed", made from JSON: docs/results/*.json, which `wsss-table RUNS --out FILE.json` writes,
one file a dataset, and docs/speed.json, which `python benchmarks/all.py --json docs/speed.json` writes.

A number is on these pages because a file holds it; nobody types one."""
import json
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS, SPEED = FOLDER/"results", FOLDER/"speed.json"
RESULTS_LEAD = """# Results

Scores of runs on photos: mIoU in percent, over all pixels of the split. A *seed* is the CAM after its threshold, a
*pseudo label* what became of it; both were given the image-level labels of the photo, the *prediction* was given
nothing. "Of full" is the share of what the same network reaches on the same photos when it learns from masks; the row
with *(masks)* is that ceiling. A cell that names another split was scored there. Each row can be obtained again by the
command below its table; ± is how far the outermost seed lies from the mean.
"""
SPEED_LEAD = """# Speed

What the kit takes beside what others take for the same work: medians of one run, in which both went in turn. A ratio is
the other's time divided by ours. A limit, where there is one, is the time that this machine takes to move the data or
to do the arithmetic, whichever is longer, and nothing else. Every number can be obtained again:
`python benchmarks/all.py --json docs/speed.json`.
"""

def _load(path): return json.loads(path.read_text(encoding="utf-8"))

def _table(rows): return "\n".join(f"| {' | '.join(map(str, r))} |" for r in rows)

def _on(machine): return ", ".join(f"{k} {v}" for k, v in machine.items())

def results_page():
    "The page of results in Markdown, a section for each file"
    from wsss_nb.use.table import run_table
    parts = [RESULTS_LEAD]
    for path in sorted(RESULTS.glob("*.json")):
        rows = _load(path)["rows"]
        parts += [f"## {path.stem}", run_table(rows, [r for r in rows if r["masks"]])]
        machines = dict.fromkeys(_on(r["machine"]) for r in rows)
        parts.append(f"Measured on: {'; '.join(machines)}.")
    return "\n\n".join(parts)+"\n"

def speed_page():
    "The page of speeds in Markdown, a section for each file of benchmarks/"
    told = _load(SPEED)
    parts = [SPEED_LEAD]
    for name, part in told["parts"].items():
        def ms(row, who): return f"{row[f'{who}_ms']:g}" if f"{who}_ms" in row else ""
        def goal(row): return ", ".join(f"{v:g}"+("" if k == "ratio" else f" {k.replace('_', ' ')}")
                                        for k, v in row.get("goal", {}).items())
        def columns(r): return {
            "case": r["case"], "threads": r.get("threads", ""), "ours, ms": ms(r, "ours"), "peer, ms": ms(r, "peer"),
            "limit, ms": ms(r, "limit"), "ratio": f"{r['ratio']:.2f}" if "ratio" in r else "", "goal": goal(r),
            "reached": {True: "yes", False: "no", None: ""}[r.get("reached")]}
        rows = [columns(r) for r in part["rows"]]
        heads = [k for k in (rows or [{}])[0] if k != "limit, ms" or any(r[k] for r in rows)]
        parts += [f"## {name}", f"Measured on: {_on(part['machine'])}; commit {part['commit']}.",
                  _table([heads, ["---"]*len(heads), *([r[k] for k in heads] for r in rows)]) if rows
                  else part["cannot"]]
    return "\n\n".join(parts)+"\n"

def pages():
    "The pages that there are numbers for, {name: Markdown}"
    found = {}
    if any(RESULTS.glob("*.json")): found["results"] = results_page()
    if SPEED.exists(): found["speed"] = speed_page()
    return found
