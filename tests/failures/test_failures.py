"""The table of failures, executed: each is made to happen, the words are compared, and the run goes on to the
weights of one that nothing happened to."""
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from failure_table import ARGV, ITERS, ROWS, Tools, cell, matches, page

from commands import STAGED, call  # noqa: F401
from wsss_nb.run.folder import Run, read_log, load_checkpoint
from wsss_nb.run.loop import LossStep


@pytest.fixture
def world(here, scenes):
    "An empty working folder with data of its own"
    shutil.copytree(scenes, "scenes")
    return here

@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    from wsss_nb.use.cli import main
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(scenes, root/"scenes")
    assert main([str(root/"scenes") if a == "scenes" else str(root/"out") if a == "out" else a for a in ARGV]) == 0
    return root/"out"

def weights(out): return load_checkpoint(Run(out))["model"]
def numbers(out): return [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_log(Run(out).log)]


@pytest.mark.parametrize("name", ROWS)
def test_row(world, call, monkeypatch, undisturbed, name):  # noqa: F811
    row = ROWS[name]
    with monkeypatch.context() as patch:
        status, err = row.make(Tools(call, patch))
        assert status == row.status and matches(row.says, err), f"status {status}, and it says: {err}"
        assert row.status < 0 or not [p for p in Path("out").rglob(".*")], "half a file is left"
        if row.status == 0: assert call(*ARGV, "--resume")[::2] == (0, "")
    if not row.goes_on: return
    row.mend()
    again = ["--resume"] if Run("out").config_file.exists() else []
    assert call(*ARGV, *again, *row.more)[::2] == (0, "")
    assert load_checkpoint(Run("out"))["step"] == ITERS
    for k, v in weights(undisturbed).items(): assert torch.equal(v, weights("out")[k]), k
    assert ({r["step"]: r for r in numbers(undisturbed)} | {r["step"]: r for r in numbers("out")}
            == {r["step"]: r for r in numbers(undisturbed)})
    assert len(numbers("out")) >= ITERS-1, "at most the line that could not be written is missing"
    assert not Path("out/lock").exists()


def test_page_agrees():
    "If not: python tests/failures/failure_table.py"
    assert "".join(cell()["source"]) == page()


def test_settings_of_the_stage_are_named(world, call, monkeypatch):  # noqa: F811
    "Memory is short in the classifier first, then, resumed, in the segmenter, which takes its batch in parts"
    whole, argv = LossStep.forward, ("wsss-run", "i2crc", "--data", "scenes", "--out", "out", *STAGED["i2crc"])
    def short_with(part):
        def forward(self, batch, step):
            if part in batch: raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, batch, step)
        return forward
    monkeypatch.setattr(LossStep, "forward", short_with("saliency"))
    assert "(--set cls_batch=...)" in (said := call(*argv)[2]) and "accumulate" not in said
    monkeypatch.setattr(LossStep, "forward", short_with("label"))
    assert "(--set accumulate=...)" in call(*argv, "--resume")[2]


def test_three_kills(tmp_path):
    """At random moments, of a method with crops, several views and chance in its losses

    `kills.py` does it for all methods, as often as one likes"""
    done = subprocess.run([sys.executable, Path(__file__).parents[1]/"kills.py", "--kills", "3", "--methods", "toco"],
                          capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0 and "kills 3" in done.stdout, done.stdout+done.stderr
