"""`wsss-search` from end to end: what it tries, how it goes on, a chain, one's own settings, and what it refuses."""
import json
import shutil

import pytest
from commands import chain

SINGLE = ("batch_size=2", "crop_size=64", "hidden=16", "workers=0", "val_images=2", "cam_scales=1", "infer_scales=1",
          "pretrained=false")


@pytest.fixture
def divided(tmp_path, call):
    "Return a folder of toy scenes whose training list was divided"
    root = tmp_path/"scenes"
    assert call("wsss-data", "make-shapes", root, "--n", 10, "--size", 64)[0] == 0
    assert call("wsss-data", "hold-out", root, "--share", ".4")[0] == 0
    return root

def space(tmp_path, text):
    path = tmp_path/"space.toml"
    path.write_text(text)
    return path

def test_choices_are_made_on_held_out_images(divided, tmp_path, call):
    told = space(tmp_path, 'by = "cls_f1"\n[train]\nlr = ["1e-5", "1e-3"]\n[look]\nbg_thresh = ["0.3", "0.6"]\n')
    out = tmp_path/"tries"
    command = ("wsss-search", "baseline", "--data", divided, "--space", told, "--out", out, "--preset", "shapes",
               "--iters", 2, "--set", *SINGLE)
    status, text, _ = call(*command)
    assert status == 0 and "no mask was used to choose" in text
    found = json.loads((out/"search.json").read_text())
    rows = found["rows"]
    assert [r["changed"] for r in rows] == ["", "lr=1e-3", "bg_thresh=0.6"]
    assert rows[2]["scores"]["cls_f1"] == max(r["scores"]["cls_f1"] for r in rows[:2])  # a threshold changes no class
    assert not rows[2]["kept"]
    best = [r for r in rows if r["kept"]][-1]
    assert f"--set {' '.join((*SINGLE, *best['settings']))}" in text and '--out' in text
    for run in out.glob("*/config.toml"):
        settings = run.read_text()
        assert 'train_split = "fit"' in settings and 'val_split = "tune"' in settings
    # killed after the first try: the second call makes what is missing, and comes to the same end
    first = (out/rows[0]["folder"]/"checkpoints"/"last.pt").stat().st_mtime_ns
    (out/"search.json").write_text(json.dumps(found | {"rows": rows[:1]}))
    def timeless(rows): return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert call(*command)[0] == 0 and (out/rows[0]["folder"]/"checkpoints"/"last.pt").stat().st_mtime_ns == first
    assert timeless(json.loads((out/"search.json").read_text())["rows"]) == timeless(rows)

def test_without_any_mask(divided, tmp_path, call, fails):
    shutil.rmtree(divided/"SegmentationClass")
    text = '[train]\nlr = ["1e-5", "1e-3"]\n'
    def command(by, out):
        told = space(tmp_path, f'by = "{by}"\n{text}')
        files = ("--data", divided, "--space", told, "--out", tmp_path/out)
        return ("wsss-search", "baseline", *files, "--preset", "shapes", "--iters", 2, "--set", *SINGLE)
    assert call(*command("agreement", "tries"))[0] == 0
    rows = json.loads((tmp_path/"tries"/"search.json").read_text())["rows"]
    assert all({*r["scores"]} == {"cls_f1", "agreement"} for r in rows) and len(rows) == 2
    assert "tune has no masks, and prediction is measured with them" in fails(*command("prediction", "other"))
    assert not (tmp_path/"other").exists()

def test_chains_are_searched_by_what_they_give(divided, tmp_path, call, fails):
    told = space(tmp_path, 'by = "pseudo_label"\n[train]\n"par.rounds" = ["1", "3"]\n')
    command = ("wsss-search", "baseline+par", "--data", divided, "--space", told, "--preset", "shapes", "--set",
               *(s for s in chain("baseline", "par")[3:] if not s.startswith("par.")))
    # a chain that ends with labels has no network that answers
    status, text, err = call(*command, "--out", tmp_path/"labels")
    assert status == 0, err
    assert "| par.rounds=3 |" in text and "masks of tune" in text

def test_mistakes_are_told_before_any_training(divided, tmp_path, call, fails):
    good = space(tmp_path, '[train]\nlr = ["1e-5", "1e-3"]\n')
    def line(*more, data=divided, told=good, method="baseline"):
        return fails("wsss-search", method, "--data", data, "--space", told, "--out", tmp_path/"tries", *more)
    assert "--space is missing" in fails("wsss-search", "baseline", "--data", divided, "--out", tmp_path/"tries")
    assert "none.toml: no such file" in line(told=tmp_path/"none.toml")
    assert "did you mean lr or" in line(told=space(tmp_path, '[train]\nlrr = ["1e-5", "1e-3"]\n'))
    good = space(tmp_path, '[train]\nlr = ["1e-5", "1e-3"]\n')
    assert "wsss-data hold-out" in line(data="shapes:n=8")
    assert "--set val_split=val: is what the search itself sets" in line("--set", "val_split=val")
    assert "lr=b: must be a number" in line(told=space(tmp_path, '[train]\nlr = ["1e-5", "b"]\n'))
    good = space(tmp_path, '[train]\nlr = ["1e-5", "1e-3"]\n')
    assert "unknown method" in line(method="baselin")
    assert not (tmp_path/"tries").exists() or not [*(tmp_path/"tries").glob("*/checkpoints")]
