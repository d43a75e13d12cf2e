"""The benchmark of whole runs: parts add up, and its rows stay beside those of steps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import step, whole
from benchmarks.whole import Process
from src.run_folder import RunFolder

STAGE = {"name": "ard", "tokens": 80, "steps": 4, "build_seconds": 5.0, "seconds": 20.0}
STAGE |= {"save_seconds": 1.0, "export_seconds": 2.0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that began at second 1000, made its folder at 1010, and exported at 1050."""
    record = {"start_seconds": {"plan": 1.0, "texts": 3.0}}
    folder = RunFolder.create(tmp_path / "run", config={}, record=record)
    folder.update(stages=[STAGE])
    for number, pace in enumerate((2.0, 10.0, 10.0, 10.0), start=1):
        folder.log({"step": number, "stage": "ard", "tokens_per_second": pace})
    manifest = folder.export() / "manifest.json"
    manifest.parent.mkdir()
    manifest.touch()
    os.utime(folder.config_file, (1010.0, 1010.0))
    os.utime(manifest, (1050.0, 1050.0))
    return folder


def test_the_parts_of_a_run_add_up(run: RunFolder) -> None:
    seconds = whole._seconds(run, [Process(1000.0, 1053.0)])
    assert (seconds["value"], seconds["exit"]) == (50.0, 3.0)
    assert sum(seconds["parts"].values()) == 50.0
    # Three of four steps took 2 s, so all of them 8 s but for a slow first one.
    assert seconds["parts"]["ard steps"] == 8.0
    assert seconds["parts"]["ard warm_up"] == 17.0 - 8.0
    assert seconds["parts"]["imports"] == 6.0


def test_a_killed_run_counts_from_its_first_process(run: RunFolder) -> None:
    seconds = whole._seconds(run, [Process(900.0, 990.0), Process(1000.0, 1053.0)])
    assert (seconds["value"], seconds["killed_after"]) == (150.0, 90.0)
    assert "imports" not in seconds["parts"]


def test_rows_of_whole_runs_stay_in_the_file_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    about = {"name": "whole_seconds", "model": "m", "case": "linearard_32k", "ranks": 1}
    about |= {"device": "gpu", "versions": {}, "commit": "0" * 40}
    step.write(path, [], [{**about, "value": 90.0}])
    step.write(path, [], [{**about, "value": 75.0}, {**about, "value": 30.0, "ranks": 8}])
    step.write(path, step.load(path))
    result = json.loads(path.read_text())
    assert [(row["value"], row["ranks"]) for row in result["rows"]] == [(75.0, 1), (30.0, 8)]
    assert (result["device"], result["commit"]) == ("gpu", "0" * 40)
