"""Measured rows (`docs/results`): the command beside a row asks the present code for the settings that were measured.

A preset may change after a run; then the command of its row has to name what the preset gave it."""
import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from wsss_nb.run.settings import resolve_config, scale_steps
from wsss_nb.use import experiment

ROWS = [(f"{file.stem}-{n}", row) for file in sorted((Path(__file__).parents[1]/"docs"/"results").glob("*.json"))
        for n,row in enumerate(json.loads(file.read_text())["rows"])]

def flat(settings, prefix=""):
    "Return settings by dotted name"
    return {name:x for k,v in settings.items()
            for name,x in (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix+k:v}).items()}

def asked(command, call, monkeypatch):
    "Return the settings that a command asks for, and those of the method without any preset; nothing is run"
    seen = []
    def run_method(method, data, out, preset, stages, resume, device, seed, overrides, command, start, **given):
        whole = experiment.get_method(method)
        given = {whole.options.get(k, k):v for k,v in given.items() if v is not None}
        config = resolve_config(whole.config(), whole.presets, preset, overrides, **given)
        named = {pair.partition("=")[0] for pair in overrides}|{*given}
        seen.extend(asdict(c) for c in (scale_steps(config, whole.presets, preset, named)[0], whole.config()))
        raise experiment.UserError("only looked at")
    monkeypatch.setattr(experiment, "run_method", run_method)
    status,_,err = call(*shlex.split(command))
    assert (status, len(seen)) == (2, 2), err
    return [flat(json.loads(json.dumps(c))) for c in seen]


@pytest.mark.parametrize("row", [row for _,row in ROWS], ids=[name for name,_ in ROWS])
def test_the_command_asks_for_what_was_measured(row, call, monkeypatch):
    now,usual = asked(row["command"], call, monkeypatch)
    measured = flat(row["settings"])
    assert not measured.keys()-now.keys(), "settings that there are no more"
    assert now == usual | measured  # what came later is as it was when there was no choice
