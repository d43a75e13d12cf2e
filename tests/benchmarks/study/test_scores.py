"""Answers in variable tracking that are the worked example's, and their columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import scores, tables
from tests.benchmarks.study.test_phases import grid


@pytest.mark.parametrize(
    ("answer", "copied"),
    [
        (" OHN PUG UHS BCH GIB\n\nMemorize", True),
        (" VAR OHN VAR PUG VAR UHS", True),
        (" MUIMU WAFKJ MWRSL ONNVK HLVXG\n\nVAR OHN = 1 VAR PUG = 2 VAR UHS = 3", False),
        (" MUIMU WAFKJ MWRSL BCH GIB", False),
        (" VAR VAR VAR MUIMU", False),
        ("", False),
    ],
)
def test_an_answer_is_the_examples_by_three_of_its_variables(
    answer: str, copied: bool, tmp_path: Path
) -> None:
    file = tmp_path / "ruler.test.items.jsonl"
    lines: list[dict[str, Any]] = [
        {"model": "a", "task": "ruler_vt_1024", "answer": answer},
        {"model": "b", "task": "ruler_vt_1024", "answer": "ABC DEF GHI"},
        {"model": "a", "task": "ruler_cwe_1024", "answer": "ABC DEF GHI"},
        {"model": "a", "task": "ruler_vt_2048", "answer": "ABC DEF GHI"},
        {"model": "a", "task": "ruler_vt_2048", "answer": "ABC DEF"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert scores.example_copied(file, "a") == {"1024": float(copied), "2048": 0.5}


def test_a_run_without_the_share_has_a_dash() -> None:
    values = {"short": {"lambada": 0.5}, "ruler": {"1024": 0.5}, "tasks": {"ruler_vt_1024": 0.5}}
    of: dict[str, Any] = {"model": "m", "scaling": "linear", "params": {}, "budget": "1M"}
    shared = values | {"copied": {"1024": 0.25}}
    rows = [
        of | {"phase": "untrained", "method": "untrained", "validation": values, "native": values},
        of | {"phase": "search", "method": "a", "validation": shared},
    ]
    head, _, *lines = tables.validation_tasks_table(grid(), "m", rows)
    assert head.endswith("| vt 1K | copied 1K |")
    assert {line.split("|", 4)[-1] for line in lines} == {" 50 | - |", " 50 | 25 |"}
