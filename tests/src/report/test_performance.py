from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from src.report.charts import Chart
from src.report.performance import performance_figures, read_results
from tests.conftest import ROOT


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    content = {"device": "H100", "commit": "abc", "command": "python -m x", "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_repositorys_results_are_read_and_drawn() -> None:
    results = read_results(ROOT / "benchmarks" / "results")
    assert [result.problem for result in results] == [""] * len(results)
    kernel, step = performance_figures(results)
    assert kernel.choices[0][0][1] == "fwd_bwd_time_over_sdpa"
    assert step.choices


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
    kernel, step = performance_figures(read_results(tmp_path))
    chart = kernel.choices[0][1]
    assert isinstance(chart, Chart)
    assert chart.x.categories == (
        *("B1 H32 T4096 D128", "B1 H32 T8192 D128", "B1 H32 T8192 D128 #2"),
    )
    assert chart.level == 1.0
    other = step.choices[0][1]
    assert isinstance(other, Chart)
    assert other.x.categories == ("case a", "case b")
    assert other.level is None


def test_a_faulty_result_is_told_and_the_others_stay(tmp_path: Path) -> None:
    write(tmp_path, "good", [{"name": "n", "value": 1.0}])
    (tmp_path / "bad.json").write_text("{")
    bad, good = read_results(tmp_path)
    assert bad.content is None
    assert bad.problem.startswith("bad.json: Invalid JSON")
    assert good.content is not None
    assert read_results(tmp_path / "none") == []
