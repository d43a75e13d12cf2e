from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.report.files import AbsentFile
from src.report.metrics import Metrics, read_metrics


def read(folder: Path, *lines: str, end: str = "\n") -> Metrics:
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + end)
    return read_metrics(path)


def row(step: int, **values: Any) -> str:
    return json.dumps({"step": step, "tokens": 512 * step, "stage": "ard", **values})


def test_rows_become_columns(tmp_path: Path) -> None:
    metrics = read(tmp_path, row(1, lr=0.1, note="x", flag=True), "", row(2, lr=0.2, grad_norm=3))
    assert metrics.steps == (1, 2)
    assert metrics.tokens == (512, 1024)
    assert metrics.stages == ("ard", "ard")
    assert metrics.series == {"lr": (0.1, 0.2), "grad_norm": (None, 3.0)}
    assert metrics.problems == ()


def test_lists_are_values_by_layer(tmp_path: Path) -> None:
    lists = [row(1, by_layer=[1, 2.5]), row(2, lr=1), row(3, by_layer=[None, 3], names=["a"])]
    metrics = read(tmp_path, *lists)
    assert metrics.layers == {"by_layer": ((1.0, 2.5), (), (None, 3.0))}
    assert metrics.problems == ()


@pytest.mark.parametrize("length", [1, 12, 40])
def test_a_cut_last_line_is_told_and_the_rest_kept(tmp_path: Path, length: int) -> None:
    metrics = read(tmp_path, row(1, lr=0.1), row(2, lr=0.2)[:length], end="")
    assert metrics.steps == (1,)
    assert metrics.problems == ("metrics.jsonl: line 2 is cut off",)


def test_a_whole_last_line_without_newline_is_no_fault(tmp_path: Path) -> None:
    metrics = read(tmp_path, row(1, lr=0.1), row(2, lr=0.2), end="")
    assert metrics.steps == (1, 2)
    assert metrics.problems == ()


def test_unreadable_lines_are_counted(tmp_path: Path) -> None:
    metrics = read(tmp_path, "null", row(1, lr=0.1), "\0\0\0", '{"step": 3}')
    assert metrics.steps == (1,)
    (problem,) = metrics.problems
    assert problem.startswith("metrics.jsonl: line 1 is unreadable (")
    assert problem.endswith("(and 2 more)")


@pytest.mark.parametrize("literal", ["null", "NaN", "Infinity", "-Infinity", "1" + "0" * 400])
def test_a_value_that_is_not_finite_is_a_gap_and_a_problem(tmp_path: Path, literal: str) -> None:
    line = row(2, lr=0).replace('"lr": 0', f'"lr": {literal}')
    metrics = read(tmp_path, row(1, lr=0.1), line, row(3, lr=0.3))
    assert metrics.series["lr"] == (0.1, None, 0.3)
    assert metrics.problems == ("metrics.jsonl: lr is not finite at step 2",)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    metrics = read(tmp_path, row(1, lr=None), row(2, lr=0.1), row(3, lr=None), row(4, lr=None))
    assert metrics.problems == ("metrics.jsonl: lr is not finite at step 1 (and at 2 more)",)


def test_absent_metrics(tmp_path: Path) -> None:
    with pytest.raises(AbsentFile):
        read_metrics(tmp_path / "metrics.jsonl")
