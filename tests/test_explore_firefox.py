"""The pages of the explorers in Firefox, from a plain file: a second engine paints the same pixels.

What each control does is tested in Chromium (test_explore_browser.py)."""
import json

import numpy as np
import pytest
from explorer_pages import HEAD, NOTEBOOKS, READ, SAID, fragment_of, pictures_of, same_pictures, told_of, view_of

from wsss_nb.explore.frame import told_panels

READY = """() => new Promise(done => { const look = () =>
  document.querySelector(".wsss[aria-busy=false] canvas") ? done(true) : setTimeout(look, 20); look(); })"""
FOCUS = """() => { const label = LABEL, named = e => e.getAttribute("aria-label") || e.labels[0].textContent;
  const found = [...document.querySelectorAll(".wsss input, .wsss select")].find(e => named(e) === label);
  found.focus(); return document.activeElement === found; }"""


def shown(firefox, told):
    "Return what the canvases show, {title: (H,W,4) uint8}, after a look whether that is what Python paints"
    firefox.run(READY)
    view = view_of(told, firefox.run(SAID), firefox.run("() => document.querySelector('.wsss-caption').innerText"))
    pictures = pictures_of(firefox.run(READ))
    same_pictures(told_panels(told, view), pictures)
    return pictures


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_firefox_paints_what_python_paints(firefox, tmp_path, notebook):
    fragment = fragment_of(notebook)
    told, path = told_of(fragment), tmp_path/f"{notebook.stem}.html"
    path.write_text(f"{HEAD}</head><body><main>{fragment}</main></body></html>", encoding="utf-8")
    firefox.asked.clear()
    firefox.open(path.as_uri())
    first = shown(firefox, told)
    label = [c["label"] for c in told["spec"]["controls"] if c["kind"] in ("slider", "choice")][-1]
    assert firefox.run(FOCUS.replace("LABEL", json.dumps(label)))
    seen = []
    for key in ("End", "Home"):
        firefox.press(key)
        seen.append(shown(firefox, told))
    assert any(not np.array_equal(now.get(k), x) for now in seen for k, x in first.items()), label
    assert all(u.split(":")[0] in ("file", "data", "blob") for u in firefox.asked), firefox.asked
    assert not firefox.complaints
