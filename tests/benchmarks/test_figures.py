"""Tables in the documents are what the committed results give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import figures

RESULTS = sorted(figures.RESULTS.glob("*.json"))


def test_tables_come_from_the_results() -> None:
    for path, tables in figures.documents().items():
        text = path.read_text(encoding="utf-8")
        assert figures.with_tables(text, tables) == text, (
            f"{path}: run python -m benchmarks.figures"
        )


@pytest.mark.parametrize(
    ("result", "pictures"),
    [
        (
            "kernel",
            {
                "kernel_time": "fwd_bwd_time_over_sdpa",
                "kernel_floor": "bwd_fraction_of_floor",
                "kernel_memory": "extra_bytes_per_token",
            },
        ),
        (
            "kernel_cpu",
            {
                "kernel_time": "chunked_speedup_over_dense",
                "kernel_memory": "chunked_memory_over_dense",
            },
        ),
    ],
)
def test_kernel_pictures_show_every_row(result: str, pictures: dict[str, str]) -> None:
    measured = figures.load(result)
    drawn = figures.kernel_pictures(measured)
    assert drawn.keys() == pictures.keys()
    for name, (chart, _) in drawn.items():
        rows = sum(row["name"] == pictures[name] for row in measured["rows"])
        assert {len(series.points) for series in chart.series} == {rows}


def test_a_result_without_rows_to_draw_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text('{"rows": [], "device": "a GPU"}', encoding="utf-8")
    with pytest.raises(SystemExit, match="no rows to draw: pictures are of fwd_bwd"):
        figures.draw_kernel(path)
    with pytest.raises(SystemExit, match=r"missing\.json"):
        figures.draw_kernel(tmp_path / "missing.json")


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.name)
def test_results_say_where_they_come_from(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"device", "versions", "commit", "command", "rows"} <= result.keys()
    commits = {m["commit"] for m in result.get("measurements", [result])}
    assert all(re.fullmatch(r"[0-9a-f]{40}", commit) for commit in commits)
    assert all({"name", "value", "unit"} <= row.keys() for row in result["rows"])


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for table 'x'"):
        figures.with_tables("no marks", {"x": "|"})


def test_memory_of_dense_torch_stands_beside_ours_or_is_said_to_be_missing() -> None:
    ours = [{"T": tokens, "D": 128, "value": 800.0} for tokens in (4096, 16384)]
    dense = [{**row, "value": 200.0 * row["T"]} for row in ours]
    alone, said = figures._memory_by_tokens({"extra_bytes_per_token": ours}, "GPU")
    assert len(alone.series) == 1
    assert "dense torch was not measured" in said
    rows = {"extra_bytes_per_token": ours, "dense_bytes_per_token": dense}
    both, title = figures._memory_by_tokens(rows, "GPU")
    assert [one.name for one in both.series] == ["relation KL", "dense torch"]
    assert both.y.log
    assert "not measured" not in title
