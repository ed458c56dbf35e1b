"""A run that was trained by an earlier version is loaded and resumed by this one, with its slow copies, queue,
prototypes and chance; and a checkpoint that is torn leaves the one before."""
import shutil

import pytest
import torch

from small_run import COMMAND, FOLDER
from wsss_nb.backbones.core import current_name
from wsss_nb.use.experiment import load_run
from wsss_nb.run.folder import Run, load_checkpoint, read_log

RUNS = sorted(FOLDER.glob("run_*"))


def resumed(call, out):
    "Resume to the end; return what was said on standard error"
    status, _, err = call(*COMMAND, "--out", out, "--resume")
    assert status == 0, err
    return err

def assert_as_before(out, old):
    "The steps after the checkpoint are logged with the same losses"
    assert load_checkpoint(Run(out))["step"] == 6
    now, then = read_log(Run(out).log), read_log(Run(old).log)
    assert [r["step"] for r in now] == [r["step"] for r in then] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(now, then, strict=True):
        for k in a.keys() - {"images_per_second"}:
            assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-6 if not k.startswith("val") else 0.02), (a["step"], k)
    assert {"lcl","pcl","seg","reg"} <= now[-1].keys()


@pytest.mark.parametrize("old", RUNS, ids=lambda p: p.name)
def test_old_run(call, tmp_path, old):
    out = tmp_path/"run"
    shutil.copytree(old, out)
    assert sum(p.stat().st_size for p in old.rglob("*") if p.is_file()) < 300_000
    state = load_checkpoint(Run(out))
    loaded = load_run(out).state_dict()
    assert state["step"] == 3 and loaded.keys() == {current_name(k) for k in state["model"]}
    for k, v in state["model"].items(): assert torch.equal(loaded[current_name(k)], v), k
    assert resumed(call, out) == ""
    assert_as_before(out, old)
    assert load_checkpoint(Run(out))["model"]["queue_ptr"] != state["model"]["queue_ptr"]

def test_settings_that_are_younger(call, tmp_path):
    "A setting that the run's file does not have yet counts as it is by default; any other value of it is another run"
    out = tmp_path/"run"
    shutil.copytree(RUNS[-1], out)
    file = Run(out).config_file
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True)
                            if not line.startswith("lcl_form")))
    status, _, err = call(*COMMAND, "lcl_form=sum", "--out", out, "--resume")
    assert status == 2 and "settings.lcl_form: mean -> sum" in err
    resumed(call, out)
    assert "lcl_form" in file.read_text()

@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:1000]), lambda p: p.unlink(),
                                    lambda p: torch.save([1], p)], ids=["torn", "missing", "no dictionary"])
def test_the_checkpoint_before(call, tmp_path, damage):
    out = tmp_path/"run"
    shutil.copytree(RUNS[-1], out)
    run = Run(out)
    shutil.copy(run.last, run.previous)
    damage(run.last)
    err = resumed(call, out)
    assert len(err.splitlines()) == 1 and str(run.last) in err
    assert err.endswith("; going on from step 3, which previous.pt holds\n")
    assert_as_before(out, RUNS[-1])
    assert load_checkpoint(run)["step"] == 6 and not run.previous.with_name(".previous.pt").exists()
