from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.report.charts import Chart
from src.report.figures import FIGURES
from src.report.figures.base import Choice
from src.report.files import Result, read_results
from src.report.groups import ReportData
from tests.conftest import ROOT


def choices(name: str, results: Sequence[Result]) -> list[Choice]:
    (figure,) = [figure for figure in FIGURES if figure.name == name]
    return list(figure.choices(ReportData(runs=(), results=tuple(results))))


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    content = {"device": "H100", "commit": "abc", "command": "python -m x", "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_repositorys_results_are_drawn() -> None:
    results = read_results(ROOT / "benchmarks" / "results")
    assert choices("kernel", results)[0][0][1].startswith("forward and backward")
    assert choices("step", results)[0][0][0] == "step"
    shown = [name for figure in ("kernel", "step") for (_, name), _ in choices(figure, results)]
    assert not any("_" in name for name in shown)


def test_rows_of_a_name_are_bars_told_apart_by_their_settings(tmp_path: Path) -> None:
    shape = {"B": 1, "H": 32, "D": 128}
    rows = [
        {"name": "time", "value": 1.1, "unit": "ratio", "T": 4096, **shape},
        {"name": "time", "value": 1.2, "unit": "ratio", "T": 8192, **shape},
        {"name": "time", "value": 1.3, "unit": "ratio", "T": 8192, **shape},
    ]
    write(tmp_path, "kernel", rows)
    cases = [
        {"name": "peak_gib", "value": v, "unit": "GiB", "case": c}
        for c, v in (("a", 1.0), ("b", 2.0))
    ]
    write(tmp_path, "step", cases)
    results = read_results(tmp_path)
    ((_, chart),) = choices("kernel", results)
    assert isinstance(chart, Chart)
    assert chart.x.categories == (
        *("B1 H32 T4096 D128", "B1 H32 T8192 D128", "B1 H32 T8192 D128 #2"),
    )
    assert chart.level == 1.0
    ((_, other),) = choices("step", results)
    assert isinstance(other, Chart)
    assert other.x.categories == ("a", "b")
    assert other.level is None


def test_labels_hold_names_first_and_no_more_settings_than_needed(tmp_path: Path) -> None:
    row = {"name": "peak_gib", "unit": "GiB", "value": 1.0, "fixed": 1}
    rows = [
        {**row, "ranks": 1, "model": "tiny", "T": 64},
        {**row, "ranks": 2, "model": "tiny"},
        {**row, "ranks": 2, "model": "other"},
    ]
    write(tmp_path, "step", rows)
    ((_, chart),) = choices("step", read_results(tmp_path))
    assert isinstance(chart, Chart)
    assert chart.x.categories == ("tiny, ranks 1", "tiny, ranks 2", "other, ranks 2")
