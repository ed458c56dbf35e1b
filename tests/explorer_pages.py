"The pages of the explorers as the notebooks hold them, and what is read from their canvases in any browser."
import base64
import json
import re
from pathlib import Path

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
