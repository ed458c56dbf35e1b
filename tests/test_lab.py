"Widgets in JupyterLab in a real browser: a slider is moved by keys, and its callback changes the caption and the picture."
import os

import nbformat.v4 as v4
import pytest
from lab import complaints,run_all

pw = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

MAKE = """\
import io
import numpy as np
from PIL import Image as PILImage
from ipywidgets import HTML,Image,IntSlider,VBox
radius,picture,caption = IntSlider(2, 0, 6),Image(format='png', width=120),HTML()
caption.add_class('wsss-caption')
y,x = np.mgrid[-8:8,-8:8]
def draw(_=None):
    out = io.BytesIO()
    PILImage.fromarray((x*x+y*y <= radius.value**2).astype(np.uint8)*255).save(out, format='png')
    picture.value,caption.value = out.getvalue(),f'radius {radius.value}'
radius.observe(draw, 'value')
draw()
VBox([radius, picture, caption])"""

def pixels(picture):
    "Return the bytes of the image that the browser shows"
    return picture.evaluate("i => fetch(i.src).then(r => r.arrayBuffer()).then(b => [...new Uint8Array(b)].join())")

def test_slider(lab, tmp_path):
    "The machinery itself, on a notebook of one cell"
    path = tmp_path/"slider.ipynb"
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(MAKE)],
                                              metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})))
    page = lab.open(path)
    run_all(page)
    caption,picture = page.locator(".jp-OutputArea .wsss-caption .widget-html-content"),page.locator(".jp-OutputArea .widget-image")
    pw.expect(caption).to_have_text("radius 2", timeout=180_000)
    before,knob = pixels(picture),page.locator(".jp-OutputArea .noUi-handle")
    knob.focus()
    for _ in range(3): knob.press("ArrowRight")
    pw.expect(caption).to_have_text("radius 5", timeout=180_000)  # the callback has spoken: the picture is of this radius too
    assert pixels(picture) != before
    assert not complaints(page)
    page.screenshot(path=os.environ.get("SHOT", str(tmp_path/"lab.png")))
