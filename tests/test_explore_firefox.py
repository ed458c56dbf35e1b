"""The pages of the explorers in Firefox, from a plain file: a second engine paints the same pixels.

What each control does is tested in Chromium (test_explore_browser.py)."""
import base64
import json

import numpy as np
import pytest
from explorer_pages import HEAD, NOTEBOOKS, READ, fragment_of, told_of

from wsss_nb.explore.frame import told_panels

READY = """() => new Promise(done => { const look = () =>
  document.querySelector(".wsss[aria-busy=false] canvas") ? done(true) : setTimeout(look, 20); look(); })"""
FOCUS = """() => { const label = LABEL, named = e => e.getAttribute("aria-label") || e.labels[0].textContent;
  const found = [...document.querySelectorAll(".wsss input, .wsss select")].find(e => named(e) === label);
  found.focus(); return document.activeElement === found; }"""


def shown(firefox):
    "Return the caption of the page, and what its canvases show, {title: (H,W,3) uint8}"
    firefox.run(READY)
    caption = firefox.run("() => document.querySelector('.wsss-caption').innerText")
    return caption, {t: np.frombuffer(base64.b64decode(b), np.uint8).reshape(h, w, 4)[..., :3]
                     for t, w, h, b in firefox.run(READ)}


def painted(told, caption, pictures):
    "Is there a view of this caption of which Python paints these pictures?"
    def same(view):
        panels = told_panels(told, view)
        return [p.title for p in panels] == [*pictures] and all(np.array_equal(p.paint(), pictures[p.title])
                                                                for p in panels)
    return any(same(v) for v in told["views"] if v["caption"] == caption)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_firefox_paints_what_python_paints(firefox, tmp_path, notebook):
    fragment = fragment_of(notebook)
    told, path = told_of(fragment), tmp_path/f"{notebook.stem}.html"
    path.write_text(f"{HEAD}</head><body><main>{fragment}</main></body></html>", encoding="utf-8")
    firefox.asked.clear()
    firefox.open(path.as_uri())
    first = shown(firefox)
    assert painted(told, *first), "as it opens"
    label = [c["label"] for c in told["spec"]["controls"] if c["kind"] in ("slider", "choice")][-1]
    assert firefox.run(FOCUS.replace("LABEL", json.dumps(label)))
    seen = [first]
    for key in ("End", "Home"):
        firefox.press(key)
        seen.append(shown(firefox))
        assert painted(told, *seen[-1]), key
    assert any(not np.array_equal(now.get(k), x) for _, now in seen for k, x in first[1].items()), label
    assert all(u.split(":")[0] in ("file", "data", "blob") for u in firefox.asked), firefox.asked
