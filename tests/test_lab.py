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

    What is tried here is the panel, not the maps; so what the notebook asserts of well trained maps is left out."""
    steps = r"\b(iters|save_every|seg_start)=(\d+)"
    text,count = re.subn(steps, lambda m: f"{m[1]}={int(m[2])//6}", notebook.read_text(encoding="utf-8"))
    text = text.replace("assert inside > across+.1", "pass")
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

def canvases(panel):
    "Return what the canvases of an explorer show"
    return panel.locator("canvas").evaluate_all("all => all.map(c => c.toDataURL())")

def panel_of(page):
    """Return the live panel of a notebook and a function that waits until its caption says something

    The page without a kernel, which stands below it, is none."""
    panel = page.locator(".jp-OutputArea :not(.wsss-live) > .wsss").last
    caption = panel.locator(".wsss-caption")
    def wait(words):
        try: pw.expect(caption).to_contain_text(words, timeout=180_000)
        except AssertionError as e: raise AssertionError(f"{e}\nerrors on the page: {complaints(page)}") from None
    return panel,caption,wait

def test_explorer(lab, tmp_path):
    "The explorer's own notebook: it trains its miniature and shows the panel, which then answers to keys and menus"
    page = lab.open(hurried(EXPLORER, tmp_path))
    run_all(page)
    panel,caption,wait = panel_of(page)
    def control(name): return panel.get_by_label(name, exact=True)
    def moved(words):
        "Wait until the caption says `words`; the picture must have changed since the last time"
        wait(words)  # written after the picture
        seen.append(canvases(panel))
        assert seen[-1] != seen[-2], words
    wait("val_00000 · all present")
    seen,start = [canvases(panel)],float(re.search(r"threshold ([\d.]+)", caption.text_content())[1])
    control("threshold").focus()
    for _ in range(15): page.keyboard.press("ArrowRight")
    moved(f"threshold {start+.15:.2f}")
    control("image").focus()
    page.keyboard.press("ArrowRight")
    moved("val_00001")
    control("layer").select_option("aux")
    moved("layer aux")
    control("class").select_option(index=1)
    moved("· IoU seed")
    assert not complaints(page) and panel.locator(".wsss-error").is_hidden()
    panel.scroll_into_view_if_needed()
    shoot(page, "explorer", tmp_path)
    dark = "() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
    page.evaluate(dark)
    pw.expect(panel).to_have_attribute("data-dark", "", timeout=30_000)
    shoot(page, "explorer_dark", tmp_path)

def test_affinity_explorer(lab, tmp_path):
    "A click on the photo says which patch it is and changes the picture; arrow keys go on from there"
    page = lab.open(hurried(EXPLORER.with_name("30_affinity.ipynb"), tmp_path))
    run_all(page)
    panel,_,wait = panel_of(page)
    photo = panel.locator(".wsss-place canvas")
    wait("patch 7,7 of 14×14")
    before,box = canvases(panel),photo.bounding_box()
    photo.click(position={"x": .1*box["width"], "y": .9*box["height"]})
    wait("patch 12,1 of 14×14")
    assert all(a != b for a,b in zip(canvases(panel)[:3], before))
    page.keyboard.press("ArrowUp")
    wait("patch 11,1 of 14×14")
    assert not complaints(page) and panel.locator(".wsss-error").is_hidden()
    shoot(page, "affinity", tmp_path)

FAILS = """\
from wsss_nb.explore.frame import Frame,Panel,Slider,View
import numpy as np
class Breaks(Frame):
    question = "Where does it break?"
    def __init__(self): super().__init__(Slider("k", "number", range(5), 0))
    def view(self, k):
        if k == 3: raise ValueError("three is too much")
        return View([Panel("grey", np.full((20,20,3), 50*k, np.uint8))], f"number {k}")
breaks = Breaks()
breaks"""

def test_an_error_is_seen_and_the_slider_goes_back(lab, tmp_path):
    path,kernel = tmp_path/"fails.ipynb",{"name": "python3", "display_name": "python3", "language": "python"}
    path.write_text(v4.writes(v4.new_notebook(cells=[v4.new_code_cell(FAILS)], metadata={"kernelspec": kernel})))
    page = lab.open(path)
    run_all(page)
    panel,_,wait = panel_of(page)
    wait("number 0")
    slider = panel.get_by_label("number", exact=True)
    slider.focus()
    page.keyboard.press("ArrowRight")
    wait("number 1")
    page.keyboard.press("ArrowRight")
    wait("number 2")
    before = canvases(panel)
    page.keyboard.press("ArrowRight")
    pw.expect(panel.get_by_role("alert")).to_contain_text("three is too much", timeout=180_000)
    pw.expect(slider).to_have_value("2")
    assert canvases(panel) == before
    shoot(page, "fails", tmp_path)
    page.keyboard.press("Home")
    wait("number 0")
    pw.expect(panel.get_by_role("alert")).to_be_hidden()
    assert not complaints(page)
