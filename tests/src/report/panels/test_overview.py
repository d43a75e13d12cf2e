from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from src.report.panels import PageContext
from src.report.panels.overview import newest_panel
from src.report.runs import read_runs

MakeRun = Callable[..., Path]


def context(outputs: Path, window: int | None = None) -> PageContext:
    page = outputs / "dashboard" / "index.html"
    return PageContext(
        runs=tuple(read_runs(outputs)), window=window, target=page, now=datetime.now(UTC)
    )


def test_the_newest_finished_and_evaluated_run_is_shown(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run("newest", started_at="2025-11-04T00:00:00Z")
    make_run("failed", started_at="2025-11-03T00:00:00Z", state="failed", evaluation=evaluation)
    make_run("shown", started_at="2025-11-02T00:00:00Z", evaluation=evaluation)
    make_run("older", started_at="2025-11-01T00:00:00Z", evaluation=evaluation)
    panel = newest_panel(context(outputs))
    assert panel is not None
    assert panel.values["row"]["run"] == "shown"
    cards = {card["label"]: (card["value"], card["meter"]) for card in panel.values["cards"]}
    assert cards == {
        "Native": ("33.5", None),
        "Scaled": ("132.9", None),
        "Restored": ("38.1", None),
        "Gap closed": ("95.4%", 0.954),
    }


def test_another_window_has_its_own_figures_and_no_score(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    panel = newest_panel(context(outputs, window=2048))
    assert panel is not None
    assert [card["value"] for card in panel.values["cards"]] == ["27.9", "171.0", "33.0", "–"]


def test_the_meter_stays_within_its_bar(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    evaluation["models"][3]["scores"]["512"]["gap_closed"] = 1.2
    make_run("beyond", evaluation=evaluation)
    panel = newest_panel(context(outputs))
    assert panel is not None
    assert (panel.values["cards"][3]["value"], panel.values["cards"][3]["meter"]) == ("120.0%", 1)


def test_a_window_nobody_evaluated(
    outputs: Path, make_run: MakeRun, evaluation: dict[str, Any]
) -> None:
    make_run(evaluation=evaluation)
    panel = newest_panel(context(outputs, window=64))
    assert panel is not None
    assert panel.values == {"row": None, "window": 64}


def test_no_runs_no_panel(outputs: Path) -> None:
    assert newest_panel(context(outputs)) is None
