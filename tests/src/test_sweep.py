"""`python -m src.sweep`: the list of sweeps, and the file for W&B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from src import sweep
from src.multirun import composition


def test_sweeps_are_listed_with_their_questions(capsys: pytest.CaptureFixture[str]) -> None:
    sweep._sweep(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == composition.names()
    assert all("?" in line for line in lines)


def test_a_sweep_is_exported(run_here: Callable[..., Any]) -> None:
    done = run_here("src.sweep", "export", "seeds", "model=tiny")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["parameters"] == {"seed": {"values": [1, 2, 3, 4, 5]}}


@pytest.mark.parametrize("arguments", [["export", "nonsense"], ["export", "seeds", "oops"]])
def test_a_mistake_is_one_message(run_here: Callable[..., Any], arguments: list[str]) -> None:
    done = run_here("src.sweep", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
