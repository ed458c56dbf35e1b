"What axe-core finds on a page: `no_barriers` names what would stop somebody who reads by ear, or sees little."
import pytest

STOPPING = ("serious", "critical")


def no_barriers(page, name):
    "Fail with the serious findings on a page of playwright, if there are any: rule, element, and what to do about it"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                              reason="axe-playwright-python is not installed: pip install -e '.[dev]'")
    found = axe.Axe().run(page).response["violations"]
    serious = [f"{v['id']}: {n['html'][:200]}\n{n['failureSummary']}"
               for v in found if v["impact"] in STOPPING for n in v["nodes"]]
    if serious: pytest.fail("\n\n".join([name, *serious]), pytrace=False)
