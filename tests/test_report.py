"The report in a real browser: it needs no network, no script, and fits a phone, in the light and in the dark."
import numpy as np
import pytest

from wsss_nb.scores.confusion import ConfusionMatrix, image_record
from wsss_nb.scores.report import write_report

CLASSES = ("background", "a class with rather a long name", "dog")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "A report with everything in it"
    folder, rng = tmp_path_factory.mktemp("report"), np.random.RandomState(0)
    mask = np.zeros((40, 60), np.uint8)
    mask[8:30, 10:40], mask[20:36, 30:56] = 1, 2
    pred = np.where(rng.random_sample(mask.shape) < .1, 0, mask)
    rows = [dict(id=f"im_{i}", image=rng.randint(256, size=(40, 60, 3)).astype(np.uint8),
                 cam=rng.random_sample((2, 10, 15)), refined=None, pseudo_label=mask, prediction=pred, mask=mask)
            for i in range(3)]
    matrix = ConfusionMatrix(3).add(pred, mask)
    scores = matrix.to_dict(CLASSES)
    stages = ("seed", "pseudo_label", "prediction", "prediction_crf")
    result = {"method": "baseline", "data": "shapes", "split": "val", "classes": list(CLASSES),
              "miou": {s: matrix.miou for s in stages}, "iou": {s: scores["iou"] for s in stages},
              "errors": {s: {k: scores[k] for k in ("object_missed", "background_taken", "classes_confused")}
                         for s in stages}, "seconds": {"train": 100., "evaluate": 1.},
              "command": "wsss-run baseline --data shapes:n=2000,size=112,seed=0 --out runs/with/a/rather/long/name "
              "--preset shapes", "config_hash": "0123456789ab"}
    (folder/"log.csv").write_text("step,lr,loss,val_prediction\n10,.1,2.0,\n20,.1,1.5,.4\n30,.1,1.2,\n40,.1,1.1,.5\n")
    return write_report(folder/"report", result, rows, [image_record(r["id"], matrix, CLASSES) for r in rows],
                        folder/"log.csv")


@pytest.mark.parametrize("width", [1100, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(page, browser, width, scheme):
    view = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, offline=True).new_page()
    asked, said = [], []
    view.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    view.on("console", lambda m: said.append(m.text))
    view.goto(page.as_uri())
    assert not asked and not said and view.locator("script").count() == 0
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "the page is wider than the screen"
    assert view.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert view.locator("img").count() == 1+3
    assert view.locator("svg polyline").count() == 2
    light = sum(map(int, view.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")))
    assert (light < 150) == (scheme == "dark")
