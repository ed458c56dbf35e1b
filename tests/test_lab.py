"""Widgets in JupyterLab in a real browser: a control is moved by keys, and its callback changes the caption and the
picture. SHOTS=folder keeps screenshots."""
import os,re
from pathlib import Path

import nbformat.v4 as v4
import pytest
from lab import complaints,run_all

pw = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

EXPLORER = Path(__file__).parent.parent/"nbs"/"95_explore"/"10_cam.ipynb"
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

def hurried(notebook, folder):
    """Return a copy of a notebook whose miniature trains for a sixth of the steps

    What is tried here is the panel, not the maps."""
    steps = r"\b(iters|save_every|seg_start)=(\d+)"
    text,count = re.subn(steps, lambda m: f"{m[1]}={int(m[2])//6}", notebook.read_text(encoding="utf-8"))
    assert count == 3, f"{notebook.name} trains with other settings than those that are made small here"
    (folder/notebook.name).write_text(text, encoding="utf-8")
    return folder/notebook.name

def shoot(page, name, folder): page.screenshot(path=Path(os.environ.get("SHOTS", folder))/f"{name}.png")

def test_slider(lab, tmp_path):
    "The machinery itself, on a notebook of one cell"
    path = tmp_path/"slider.ipynb"
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(MAKE)], metadata={"kernelspec": kernel})))
    page = lab.open(path)
    run_all(page)
    caption,picture = (page.locator(".jp-OutputArea .wsss-caption .widget-html-content"),
                       page.locator(".jp-OutputArea .widget-image"))
    pw.expect(caption).to_have_text("radius 2", timeout=180_000)
    before,knob = pixels(picture),page.locator(".jp-OutputArea .noUi-handle")
    knob.focus()
    for _ in range(3): knob.press("ArrowRight")
    # the callback has spoken: the picture is of this radius too
    pw.expect(caption).to_have_text("radius 5", timeout=180_000)
    assert pixels(picture) != before
    assert not complaints(page)
    shoot(page, "slider", tmp_path)

def test_explorer(lab, tmp_path):
    "The explorer's own notebook: it trains its miniature and shows the panel, which then answers to keys and menus"
    page = lab.open(hurried(EXPLORER, tmp_path))
    run_all(page)
    panel = page.locator(".jp-OutputArea", has=page.locator(".wsss-caption")).last
    caption,picture = panel.locator(".wsss-caption .widget-html-content"),panel.locator(".widget-image")
    def control(name): return panel.locator(".widget-inline-hbox", has=page.get_by_text(name, exact=True))
    def wait(words):
        "Wait until the caption says `words`"
        try: pw.expect(caption).to_contain_text(words, timeout=180_000)
        except AssertionError as e: raise AssertionError(f"{e}\nerrors on the page: {complaints(page)}") from None
    def moved(words):
        "Wait until the caption says `words`; the picture must have changed since the last time"
        wait(words)  # written after the picture
        seen.append(pixels(picture))
        assert seen[-1] != seen[-2], words
    wait("val_00000 · all present")
    seen,start = [pixels(picture)],float(re.search(r"threshold ([\d.]+)", caption.inner_text())[1])
    knob = control("threshold").locator(".noUi-handle")
    knob.focus()
    for _ in range(15): knob.press("ArrowRight")
    moved(f"threshold {start+.15:.2f}")
    knob = control("image").locator(".noUi-handle")
    knob.focus()
    knob.press("ArrowRight")
    moved("val_00001")
    control("layer").locator("select").select_option("aux")
    moved("layer aux")
    control("class").locator("select").select_option(index=1)
    moved("· IoU seed")
    assert not complaints(page)
    panel.scroll_into_view_if_needed()
    shoot(page, "explorer", tmp_path)

def test_affinity_explorer(lab, tmp_path):
    "A click on the photo says which patch it is and changes the picture"
    page = lab.open(hurried(EXPLORER.with_name("30_affinity.ipynb"), tmp_path))
    run_all(page)
    panel = page.locator(".jp-OutputArea", has=page.locator(".wsss-caption")).last
    caption,picture,photo = (panel.locator(".wsss-caption .widget-html-content"),panel.locator(".widget-image"),
                             panel.locator("img.wsss-clickable"))
    pw.expect(caption).to_contain_text("patch 7,7 of 14×14", timeout=180_000)
    before,box = [pixels(i) for i in (picture, photo)],photo.bounding_box()
    photo.click(position={"x": .1*box["width"], "y": .9*box["height"]})
    pw.expect(caption).to_contain_text("patch 12,1 of 14×14", timeout=180_000)
    assert all(pixels(i) != b for i,b in zip((picture, photo), before))
    assert not complaints(page)
    shoot(page, "affinity", tmp_path)
