from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from src.report.metrics import Metrics
from src.report.panels import PageContext
from src.report.panels.curves import curve_data, curves_panel
from src.report.runs import read_runs

MakeRun = Callable[..., Path]


def context(outputs: Path) -> PageContext:
    return PageContext(
        runs=tuple(read_runs(outputs)), target=outputs / "index.html", now=datetime.now(UTC)
    )


def test_the_newest_whole_runs_are_ticked(outputs: Path, make_run: MakeRun) -> None:
    for day in range(1, 5):
        make_run(f"run-{day}", started_at=f"2025-11-0{day}T00:00:00Z")
    (outputs / "run-4" / "config.yaml").unlink()
    make_run("no-metrics", metrics=[], step=0, started_at="2025-11-09T00:00:00Z")
    panel = curves_panel(context(outputs))
    assert panel is not None
    assert panel.values["listed"] == [
        (1, "run-4", "run-4", False),
        (2, "linear, run-3", "run-3", True),
        (3, "linear, run-2", "run-2", True),
        (4, "linear, run-1", "run-1", False),
    ]


def test_one_run_is_ticked_when_all_are_damaged(outputs: Path, make_run: MakeRun) -> None:
    (make_run() / "config.yaml").unlink()
    panel = curves_panel(context(outputs))
    assert panel is not None
    assert [is_selected for *_, is_selected in panel.values["listed"]] == [True]


def test_no_metrics_no_panel(outputs: Path, make_run: MakeRun) -> None:
    make_run(metrics=[], step=0)
    assert curves_panel(context(outputs)) is None


def metrics(stages: list[tuple[str, int]]) -> Metrics:
    names = [name for name, count in stages for _ in range(count)]
    steps = tuple(range(1, len(names) + 1))
    return Metrics(
        steps=steps,
        tokens=tuple(512 * step for step in steps),
        stages=tuple(names),
        series={"lr": tuple(step / 3 for step in steps), "x": (None,) * len(names)},
    )


def test_short_curves_are_whole() -> None:
    data = curve_data(metrics([("ard", 3), ("cpt", 2)]))
    assert data["tokens"] == [512, 1024, 1536, 2048, 2560]
    assert data["stages"] == [("ard", 3), ("cpt", 2)]
    assert data["series"]["lr"][0] == 0.333333
    assert data["series"]["x"] == [None] * 5
    assert data["every"] == 1


def test_long_curves_are_thinned_but_keep_the_ends_of_stages() -> None:
    data = curve_data(metrics([("ard", 1001), ("cpt", 2003)]), max_points=100)
    assert data["every"] == 31
    assert 100 * 0.9 <= len(data["tokens"]) <= 110
    kept = {tokens // 512 for tokens in data["tokens"]}
    assert {1, 1001, 1002, 3004} <= kept
    assert sum(count for _, count in data["stages"]) == len(data["tokens"])
    assert all(len(column) == len(data["tokens"]) for column in data["series"].values())


def test_no_metrics() -> None:
    assert curve_data(Metrics()) == {"tokens": [], "stages": [], "series": {}, "every": 1}
