"What axe-core finds on a page: `barriers` names what would stop somebody who reads by ear, or sees little."
import pytest

STOPPING = ("serious", "critical")


def barriers(page):
    "Return the serious findings on a page of playwright: rule, element, and what to do about it"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                              reason="axe-playwright-python is not installed: pip install -e '.[dev]'")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {n['html'][:200]}\n{n['failureSummary']}"
            for v in found if v["impact"] in STOPPING for n in v["nodes"]]
