"The pages of the explorers as the notebooks hold them, and what is read from their canvases in any browser."
import base64
import json
import re
from pathlib import Path

import numpy as np

from wsss_nb.explore.frame import FrameWidget, unpacked

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/"nbs"/"95_explore").glob("*.ipynb") if p.stem != "97_overview")  # which lists them
HEAD = ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,'
        'initial-scale=1"><title>t</title><style>body{margin:8px;background:Canvas;color-scheme:light dark}</style>')
READ = """() => [...document.querySelectorAll(".wsss figure")].map(f => {
  const c = f.querySelector("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  let text = "";
  for (let i = 0; i < d.length; i += 8192) text += String.fromCharCode(...d.subarray(i, i + 8192));
  return [f.dataset.title, c.width, c.height, btoa(text)];
})"""


def fragment_of(notebook):
    "Return the HTML of the page that a notebook holds"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = ["".join(o["data"]["text/html"]) for c in cells for o in c.get("outputs", ())
             if "text/html" in o.get("data", {})]
    found = [h for h in found if 'class="wsss-live"' in h]
    assert len(found) == 1, f"{notebook.name} holds {len(found)} pages of explorers"
    script = FrameWidget._esm.replace("export default { render };", "")
    assert script in found[0], f"{notebook.name}: its page has an older explorer.js; nbdev-test --save it"
    return found[0]


def told_of(fragment):
    "Return what a page tells its browser"
    return unpacked(base64.b64decode(re.search(r'start\(document.getElementById\("[^"]+"\), "([^"]+)"\)', fragment)[1]))


SAID = """() => [...document.querySelectorAll(".wsss input, .wsss select")].map(e => [
  e.getAttribute("aria-label") || e.labels[0].textContent,
  e.type === "checkbox" ? e.checked : e.type === "range" ? e.getAttribute("aria-valuetext")
                                    : e.selectedOptions[0].textContent])"""


def view_of(told, said, caption):
    """Return the one view of a page that has the caption and the controls that are seen

    `said` is what `SAID` reads, [[label, text or value], ...]; a place is not seen in a control."""
    controls = {c["label"]: c for c in told["spec"]["controls"] if c["kind"] in ("slider", "choice", "toggle")}
    now = {controls[k]["name"]: x.removesuffix(controls[k]["unit"]) if controls[k]["kind"] == "slider" else x
           for k, x in said if k in controls}
    assert len(now) == len(controls), (said, [*controls])
    found = [v for v in told["views"] if v["caption"] == caption
             and all(v["state"][k].get("text", v["state"][k].get("value")) == x for k, x in now.items())]
    assert len(found) == 1, (now, caption, len(found))
    return found[0]


def pictures_of(read):
    "Return what `READ` reads from the canvases, {title: (H,W,4) uint8}"
    return {t: np.frombuffer(base64.b64decode(b), np.uint8).reshape(h, w, 4) for t, w, h, b in read}


def same_pictures(panels, pictures):
    "Fail unless the canvases show what Python paints"
    assert [*pictures] == [p.title for p in panels]
    for p in panels: assert np.array_equal(pictures[p.title][..., :3], p.paint()), p.title
