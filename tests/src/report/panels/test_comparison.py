from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.report.panels import PageContext
from src.report.panels.comparison import comparison_panel
from src.report.runs import read_runs

MakeRun = Callable[..., Path]


def context(outputs: Path) -> PageContext:
    return PageContext(tuple(read_runs(outputs)), outputs / "index.html", None, datetime.now(UTC))


def test_a_block_for_each_evaluated_run_the_newest_open(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    for day in range(1, 6):
        make_run(f"run-{day}", started_at=f"2025-11-0{day}T00:00:00Z", evaluation=evaluation)
    make_run("plain")
    panel = comparison_panel(context(outputs))
    assert panel is not None
    blocks = panel.values["blocks"]
    assert [block.name for block in blocks] == ["run-5", "run-4", "run-3", "run-2", "run-1"]
    assert [block.is_open for block in blocks] == [True, True, True, False, False]
    assert {block.gap_closed for block in blocks} == {"95.4%"}


def test_no_evaluation_no_panel(outputs: Path, make_run: MakeRun) -> None:
    make_run()
    assert comparison_panel(context(outputs)) is None
