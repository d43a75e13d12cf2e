from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from src.report.panels import PageContext
from src.report.panels.curves import curves_panel
from src.report.runs import read_runs

MakeRun = Callable[..., Path]


def context(outputs: Path) -> PageContext:
    return PageContext(tuple(read_runs(outputs)), outputs / "index.html", None, datetime.now(UTC))


def test_the_newest_whole_runs_are_ticked(outputs: Path, make_run: MakeRun) -> None:
    for day in range(1, 5):
        make_run(f"run-{day}", started_at=f"2025-11-0{day}T00:00:00Z")
    (outputs / "run-4" / "config.yaml").unlink()
    make_run("no-metrics", metrics=[], step=0, started_at="2025-11-09T00:00:00Z")
    panel = curves_panel(context(outputs))
    assert panel is not None
    assert [curve["name"] for curve in panel.values["curves"]] == [
        "run-4",
        "run-3",
        "run-2",
        "run-1",
    ]
    assert panel.values["selected"] == [False, True, True, False]


def test_one_run_is_ticked_when_all_are_damaged(outputs: Path, make_run: MakeRun) -> None:
    (make_run() / "config.yaml").unlink()
    panel = curves_panel(context(outputs))
    assert panel is not None
    assert panel.values["selected"] == [True]


def test_no_metrics_no_panel(outputs: Path, make_run: MakeRun) -> None:
    make_run(metrics=[], step=0)
    assert curves_panel(context(outputs)) is None
