"""`wsss-table`: runs side by side, seeds joined, and what is no run."""
import json

from commands import TINY


def test_seeds_share_a_row_and_each_score_knows_its_command(call, fails, tmp_path):
    data, runs = "shapes:n=6,size=64", []
    for seed, more in ((0, ()), (1, ()), (0, ("supervision=masks",))):
        runs.append(tmp_path/f"run{len(runs)}")
        assert call("wsss-run", "baseline", "--data", data, "--out", runs[-1], "--seed", seed, *TINY, *more)[0] == 0
    assert call("wsss-table", *runs, "--full", runs[2], "--out", tmp_path/"table.json")[0] == 0
    rows = json.loads((tmp_path/"table.json").read_text())["rows"]
    assert [(r["seeds"], r["masks"]) for r in rows] == [([0, 1], False), ([0], True)]
    told = [json.loads((r/"result.json").read_text()) for r in runs]
    assert rows[0]["scores"]["prediction"] == [t["miou"]["prediction"] for t in told[:2]]
    status, text, _ = call("wsss-table", *runs, "--out", tmp_path/"table.md")
    assert status == 0 and (tmp_path/"table.md").read_text() == text
    assert "baseline (masks)" in text and " ±" in text
    assert "none of these is a run with scores" in call("wsss-table", tmp_path/"none")[2]
    assert "not from masks" in fails("wsss-table", runs[0], "--full", runs[1])
    assert "must end with .md or .json" in fails("wsss-table", runs[0], "--out", tmp_path/"table.txt")
    assert call("wsss-run", "baseline", "--data", data, "--out", tmp_path/"half", "--stages", "train", *TINY)[0] == 0
    status, text, err = call("wsss-table", tmp_path/"half", runs[0], runs[0], tmp_path/"none")
    assert status == 0 and "half: has no scores; finish it" in err and "none: is no run folder" in err
    assert len(text.split("\n\n")[0].splitlines()) == 3
