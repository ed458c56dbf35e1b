"A training that is watched while it goes on: in another process, in a chain, and with files that are half written."
import asyncio
import shutil
import time

import numpy as np
import pytest
import torch
from commands import chain, run, started
from panels import caption, painted, same, send, told

from wsss_nb.explore.cam import StageMaps
from wsss_nb.explore.frame import as_bytes
from wsss_nb.explore.live import LiveExplorer, newest_training
from wsss_nb.ground.core import UserError
from wsss_nb.run.folder import Run, load_checkpoint, read_log
from wsss_nb.use.experiment import load_run

COMMAND = ("wsss-run", "baseline", "--data", "shapes:n=40,size=64", "--preset", "shapes", "--stages", "train",
           "--device", "cpu", "--set", "iters=40", "batch_size=4", "crop_size=64", "save_every=4", "log_every=1",
           "val_every=20", "val_images=2", "warmup_iter=1", "seg_start=8", "workers=0", "cam_scales=1",
           "infer_scales=1", "infer_par=0")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A run at which nobody looked"
    path = tmp_path_factory.mktemp("undisturbed")/"run"
    assert run(*COMMAND, "--out", path)[0] == 0
    return path


def files(folder):
    "Return name, time and size of all files, and the times of the folders"
    return {p: (s.st_mtime_ns, s.st_size) for p in [folder, *folder.rglob("*")] for s in (p.stat(),)}


def rows(path): return [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_log(path/"log.csv")]


def test_it_is_watched_and_not_disturbed(undisturbed, tmp_path):
    "The weights and the log are those of the same training without anybody who looks"
    folder = tmp_path/"run"
    process = started(*COMMAND, "--out", folder)
    try:
        end = time.monotonic()+120
        while not (folder/"log.csv").exists() and time.monotonic() < end: time.sleep(.02)
        live = LiveExplorer(folder)
        assert live.widget is not None, "its buttons and its browser"
        asyncio.run(asyncio.wait_for(live.follow(.02), 120))
    finally:
        if process.poll() is None: process.wait(60)
        process.communicate()
    assert process.returncode == 0 and len(live.seen) >= 3 and max(live.seen) == live.state["moment"] == 40
    assert told(live)["spec"]["controls"][0]["texts"] == [str(s) for s in sorted(live.seen)]
    ours, theirs = (load_checkpoint(Run(p))["model"] for p in (folder, undisturbed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert rows(folder) == rows(undisturbed) and live.rows == read_log(folder/"log.csv")


def test_looking_writes_nothing(undisturbed):
    before = files(undisturbed)
    live = LiveExplorer(undisturbed)
    live.panel()
    live.refresh()
    live.page(moment=..., what=...)
    live.picture()
    assert files(undisturbed) == before
    assert {36, 40} <= set(live.seen) and len(live.seen) <= 3      # and the one that scored best, if it is another


def test_maps_are_those_of_the_weights(undisturbed):
    live = LiveExplorer(undisturbed)
    maps = StageMaps(load_run(undisturbed), live.data)
    for x, found in zip(live.items, live.seen[40]):
        i = live.data.ids.index(x.id)
        out = maps.stages(i)
        assert np.array_equal(found["CAM"], as_bytes(out["cam"].amax(0)))
        for k in ("seed", "prediction"): assert np.array_equal(found[k], out[k])


def test_a_browser_moves_along_what_was_seen(undisturbed):
    live = LiveExplorer(undisturbed)
    steps, before = sorted(live.seen), painted(live)
    said = send(live, "moment", 0)
    assert not said["error"] and f"after step {steps[0]} ·" in caption(live) and live.state["moment"] == steps[0]
    assert any(not np.array_equal(v, before[k]) for k, v in painted(live).items())
    for at in range(3):
        send(live, "what", at)
        assert same(live, live.view(**live.state).panels)
    assert not live.refresh() and live.state["moment"] == steps[0]


def test_what_is_half_written_is_left_for_the_next_look(undisturbed, tmp_path):
    folder = tmp_path/"run"
    shutil.copytree(undisturbed, folder)
    log, last = folder/"log.csv", folder/"checkpoints"/"last.pt"
    whole, weights = log.read_bytes(), last.read_bytes()
    (folder/"checkpoints"/"best.safetensors").unlink()
    last.write_bytes(weights[:len(weights)//2])
    for cut in range(1, 30, 4):
        log.write_bytes(whole[:-cut])
        live = LiveExplorer(folder)
        assert sorted(live.seen) == [36] and live.rows == read_log(undisturbed/"log.csv")[:len(live.rows)]
    log.write_bytes(whole)
    last.write_bytes(weights)
    assert live.widget is not None, "its buttons and its browser"
    assert live.refresh() and sorted(live.seen) == [36, 40] and live.state["moment"] == 40
    assert told(live)["view"]["state"]["moment"]["text"] == "40"
    log.write_bytes(b"what\nis this\n")
    live.refresh()
    assert "not readable as a log" in told(live)["error"] and sorted(live.seen) == [36, 40]
    log.unlink()
    shutil.rmtree(folder/"checkpoints")
    live.refresh()                                          # gone altogether: what was seen stays
    assert sorted(live.seen) == [36, 40] and not live.error


def test_before_the_first_checkpoint(undisturbed, tmp_path):
    folder = tmp_path/"run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("checkpoints"))
    live = LiveExplorer(folder)
    assert "no checkpoint seen yet" in caption(live) and len(live.shown.panels) == 3
    assert send(live, "what", 1)["error"] == ""
    shutil.copytree(undisturbed/"checkpoints", folder/"checkpoints")
    assert live.refresh() and live.state["moment"] == 40 and len(live.shown.panels) == 6


def test_buttons(undisturbed):
    "Look now; follow, until it has ended"
    async def pressed():
        live = LiveExplorer(undisturbed)
        now, on = live.panel().children[0].children
        live.seen, live.files = {}, {}
        now.click()
        assert 40 in live.seen
        on.value = True
        for _ in range(100):
            await asyncio.sleep(.02)
            if not on.value: return live
        raise AssertionError("it still follows a run that has ended")
    assert asyncio.run(pressed()).error == ""


def test_a_chain_and_its_trainings(tmp_path):
    "The CAMs of the network that makes them; predictions of the segmenter that answers"
    folder = tmp_path/"run"
    assert run("wsss-run", "baseline+crf+deeplab", "--data", "shapes:n=12,size=64", "--out", folder, "--device", "cpu",
               *chain("baseline", "deeplab"))[0] == 0
    live = LiveExplorer(folder)
    assert newest_training(Run(folder)) == live.folder.stage == "deeplab" and live.iters == 4
    assert [t for t, _ in live.controls["what"].offers({})] == ["prediction"] and set(live.seen) == {2, 4}
    first = LiveExplorer(folder, stage=None)
    assert [t for t, _ in first.controls["what"].offers({})] == ["CAM", "seed", "prediction"]
    assert first.folder.log.name == "log.csv" and first.seen and first.shown.curves


def test_mistakes_are_one_line(undisturbed, tmp_path):
    for path, says in ((tmp_path/"none", "no such run folder"), (tmp_path, "not a run folder")):
        with pytest.raises(UserError, match=says): LiveExplorer(path)
    with pytest.raises(UserError, match="no image nobody in its split"): LiveExplorer(undisturbed, ["nobody"])
