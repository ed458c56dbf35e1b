"""The pages of the explorers, which need no kernel, in a real browser and from a plain file. SHOTS=folder keeps
screenshots.

The pages are those that the notebooks hold. What a canvas shows is compared, pixel for pixel, with what `Panel.paint`
makes of the same data; that the data is right is what the notebooks assert."""
import os
import re
from pathlib import Path

import numpy as np
import pytest
from accessible import no_barriers
from explorer_pages import (HEAD, NOTEBOOKS, READ, ROOT, SAID, fragment_of, pictures_of, same_pictures, told_of,
                            view_of)

from wsss_nb.explore.frame import Choice, Frame, Panel, Place, Slider, Swipe, Toggle, View, told_panels

pw = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

class Shown:
    "A page in a browser, and what it was made of"
    def __init__(self, browser, fragment, folder, name, **context):
        self.told, self.elsewhere, self.complaints = told_of(fragment), [], []
        path = folder/f"{name}.html"
        path.write_text(f"{HEAD}</head><body><main>{fragment}</main></body></html>", encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}} | context)
        self.page = page = context.new_page()
        page.on("request", lambda r: r.url.split(":")[0] in ("file", "data", "blob") or self.elsewhere.append(r.url))
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        page.goto(path.as_uri())
        pw.expect(page.locator(".wsss canvas").first).to_be_visible(timeout=30_000)
        pw.expect(page.locator(".wsss[aria-busy=false]")).to_be_visible()

    def control(self, name):
        "Return the element that a browser moves"
        spec = next(c for c in self.told["spec"]["controls"] if c["name"] == name)
        if spec["kind"] == "place": return self.page.locator(".wsss-place")
        return self.page.get_by_label(spec["label"], exact=True)

    def view(self):
        "Return the view that the page shows"
        return view_of(self.told, self.page.evaluate(SAID), self.page.locator(".wsss-caption").inner_text())

    def check(self, split=None):
        "The canvases are what Python paints of this view"
        panels, seen = told_panels(self.told, self.view()), pictures_of(self.page.evaluate(READ))
        for p in panels:
            if split is not None and p.other is not None: p.split = split
        same_pictures(panels, seen)
        return {k: v.tobytes() for k, v in seen.items()}

    def close(self):
        assert not self.elsewhere and not self.complaints, (self.elsewhere, self.complaints)
        self.page.context.close()


each_page = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)


KEYS = {"slider": ["End", "ArrowLeft", "Home", "ArrowRight"], "choice": ["ArrowDown", "ArrowDown", "ArrowUp"],
        "toggle": ["Space", "Space", "Space"], "place": ["ArrowDown", "ArrowRight", "ArrowRight"]}


def shoot(page, name, folder): page.screenshot(path=Path(os.environ.get("SHOTS", folder))/f"{name}.png", full_page=True)


def move_all(shown):
    "Move every control by keys, two steps each, and compare after each step"
    for c in shown.told["spec"]["controls"]:
        element, before = shown.control(c["name"]), shown.check()
        element.focus()
        if c["kind"] == "swipe": continue
        keys = KEYS[c["kind"]]
        seen = []
        for key in keys:
            element.press(key)
            seen.append(shown.check())
        assert any(s != before for s in seen), f"{c['name']} changes no picture"


@each_page
def test_every_control_moves_what_python_paints(browser, tmp_path, notebook):
    shown = Shown(browser, fragment_of(notebook), tmp_path, notebook.stem)
    assert len(shown.told["views"]) > 20
    move_all(shown)
    shoot(shown.page, f"{notebook.stem}_light", tmp_path)
    shown.close()


@each_page
def test_a_screen_reader_finds_everything_named(browser, tmp_path, notebook):
    fragment = fragment_of(notebook)
    shown = Shown(browser, fragment, tmp_path, notebook.stem)
    page = shown.page
    assert len(fragment) <= 1_500_000
    labels = [c["label"] for c in shown.told["spec"]["controls"]]
    assert len(set(labels)) == len(labels)
    named = page.locator(".wsss :is(input, select, [tabindex], canvas)")
    for i in range(named.count()):
        name = named.nth(i).evaluate("e => e.getAttribute('aria-label') || "
                                     "[...(e.labels || [])].map(l => l.textContent).join()")
        assert name.strip(), named.nth(i).evaluate("e => e.outerHTML")
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(set(ids)) == len(ids)
    assert page.locator(".wsss").get_attribute("aria-label") and page.locator(".wsss-caption[role=status]").count() == 1
    assert page.locator(".wsss-legend li").count() >= 1
    shown.close()


@each_page
def test_no_barriers(browser, tmp_path, notebook):
    "Neither in light nor in dark, wide and narrow"
    shown = Shown(browser, fragment_of(notebook), tmp_path, notebook.stem)
    for scheme, width in (("light", 1100), ("dark", 1100), ("dark", 390)):
        shown.page.emulate_media(color_scheme=scheme)
        shown.page.set_viewport_size({"width": width, "height": 900})
        pw.expect(shown.page.locator(".wsss[data-dark]")).to_have_count(int(scheme == "dark"))
        no_barriers(shown.page, f"{notebook.stem}, {scheme}, {width} pixels")
    shown.close()


@each_page
def test_narrow_and_dark(browser, tmp_path, notebook):
    "No overflow at 390 pixels; dark where the system or the theme of the page says so, and light where the theme does"
    shown = Shown(browser, fragment_of(notebook), tmp_path, notebook.stem, viewport={"width": 390, "height": 800},
                  color_scheme="dark", has_touch=True, is_mobile=True)
    page, root = shown.page, shown.page.locator(".wsss")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    too_wide = page.evaluate("() => [...document.querySelectorAll('.wsss *')].filter(e => "
                             "e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))")
    assert not too_wide
    def ground():
        colour = root.evaluate("e => getComputedStyle(e).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert ground() < 150
    shoot(page, f"{notebook.stem}_narrow_dark", tmp_path)
    page.evaluate("() => document.body.dataset.theme = 'light'")            # the switch of the site
    pw.expect(root).not_to_have_attribute("data-dark", "")
    assert ground() > 700
    page.evaluate("() => document.body.dataset.jpThemeLight = 'false'")     # JupyterLab's
    pw.expect(root).to_have_attribute("data-dark", "")
    first = next((c for c in shown.told["spec"]["controls"] if c["kind"] == "place"), None)
    if first:
        box, before = page.locator(".wsss-place canvas").bounding_box(), shown.check()
        page.locator(".wsss-place canvas").tap(position={"x": .8*box["width"], "y": .2*box["height"]})
        assert shown.check() != before
    shown.close()


class Everything(Frame):
    "An explorer with each kind of control"
    title, question, cols = "Everything", "Does each control reach the pictures?", 2
    def __init__(self):
        self.image = np.random.RandomState(0).randint(0, 256, (40, 60, 3)).astype(np.uint8)
        super().__init__(Slider("k", "label", range(1, 5), 2),
                         Choice("alpha", "cover", [("half", .5), ("all", 1.)], .5),
                         Toggle("heat", "heat map", False), Place("place", "place", "photo", (4, 6)),
                         Swipe("split", "left and right", "both"))

    def view(self, k, alpha, heat, place, split):
        x = np.arange(60)/59*np.ones((40, 1))
        drawn = {"heat": x**k} if heat else {"labels": (x*4*k).astype(int), "key": {1: ("one", (9, 99, 199))}}
        right = Panel("right", self.image, heat=x.T[:5, :7])
        return View([Panel("photo", self.image, mark=place), Panel("map", self.image, alpha=alpha, **drawn),
                     Panel("both", self.image, labels=np.eye(4)*k, other=right, split=split)], f"{place}")


@pytest.fixture
def everything(browser, tmp_path):
    page = Everything().page(k=..., alpha=..., heat=..., place=...)
    shown = Shown(browser, page.fragment(), tmp_path, "everything")
    yield shown
    shown.close()


def test_each_kind_of_control(everything):
    move_all(everything)


def test_keyboard_only(everything):
    "Tab goes through the controls and to the place, in their order; arrows move what has the focus"
    page, order = everything.page, []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("() => document.activeElement.getAttribute('aria-label') || "
                                   "document.activeElement.labels?.[0]?.textContent"))
    assert order[:5] == ["label", "cover", "heat map", "left and right", "place: arrow keys move it"]
    everything.page.locator(".wsss-place").focus()
    before = everything.check()
    page.keyboard.press("ArrowLeft")
    after = everything.check()
    assert after["photo"] != before["photo"] and after["map"] == before["map"]
    for _ in range(9): page.keyboard.press("ArrowUp")    # stops at the border
    row = next(s for s in everything.view()["state"].values() if "grid" in s)["value"][1]
    assert row == .125


def test_swipe(everything):
    "By key and by hand; each side of the line is its picture"
    page, slider = everything.page, everything.control("split")
    everything.check(split=.5)
    slider.focus()
    for _ in range(10): page.keyboard.press("ArrowLeft")
    everything.check(split=.4)
    canvas = page.locator("figure[data-title=both] canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"]+.5*box["width"], box["y"]+9)
    page.mouse.down()
    page.mouse.move(box["x"]+.75*box["width"], box["y"]+9)
    page.mouse.up()
    assert abs(int(slider.input_value())-75) <= 1
    everything.check(split=.75)
    everything.control("k").press("ArrowRight")          # another picture keeps the line where it is
    everything.check(split=.75)


def test_saved_page_opens_by_itself(browser, tmp_path):
    path = Everything().page(k=...).save(tmp_path/"page.html")
    page = browser.new_page()
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(path.as_uri())
    pw.expect(page.locator(".wsss-question")).to_have_text("Does each control reach the pictures?")
    pw.expect(page.locator(".wsss-fixed")).to_contain_text("cover half")
    assert all(u.startswith(("file:", "data:", "blob:")) for u in asked)
    page.close()


@pytest.mark.skipif(not (ROOT/"_build"/"html"/"95_explore").is_dir(), reason="the site is not built: run `make docs`")
@each_page
def test_page_of_the_site(browser, tmp_path, notebook):
    "The explorer stands on the page, before the text, and is alive in both themes of the site"
    name = notebook.stem[3:]
    for width in (1280, 390):
        page, asked = browser.new_page(viewport={"width": width, "height": 900}), []
        page.on("request", lambda r: asked.append(r.url))
        page.goto((ROOT/"_build"/"html"/"95_explore"/f"{name}.html").as_uri())
        pw.expect(page.locator(".wsss canvas").first).to_be_visible(timeout=30_000)
        assert page.locator(".wsss").bounding_box()["y"] < 900
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        slider = page.locator(".wsss input[type=range], .wsss select").last  # a list answers to the same keys
        seen = []
        for key in ("End", "Home"):
            slider.press(key)
            seen.append(page.evaluate(READ))
        assert seen[0] != seen[1]
        assert all(u.startswith(("file:", "data:", "blob:")) for u in asked)
        page.screenshot(path=Path(os.environ.get("SHOTS", tmp_path))/f"site_{name}_{width}.png")
        page.close()
