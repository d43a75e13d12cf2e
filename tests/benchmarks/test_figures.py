"""Tables in the documents are what the committed results give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import figures

RESULTS = sorted(figures.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", figures.documents(), ids=lambda p: p.name)
def test_tables_come_from_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tables = figures.documents()[path]
    assert figures.with_tables(text, tables) == text, "run python -m benchmarks.figures"


@pytest.mark.parametrize(
    "draw", [figures.kernel_time_picture, figures.kernel_memory_picture], ids=lambda f: f.__name__
)
def test_kernel_pictures_show_every_row(draw) -> None:
    result = figures.load("kernel")
    drawn = {len(trace.x) for trace in draw(result).data}
    name = {"kernel_time_picture": "fwd_bwd_time_over_sdpa"}.get(
        draw.__name__, "extra_bytes_per_token"
    )
    assert drawn == {sum(row["name"] == name for row in result["rows"])}


def test_named_run_is_the_whole_experiment() -> None:
    result = figures.load(figures.NAMED_RUN)
    stages = [row for row in result["rows"] if row["name"] == "stage_seconds"]
    assert [(s["tokens"], s["steps"]) for s in stages] == [(2_359_296, 144), (2_097_152, 64)]
    assert result["teacher_sha256"]["before"] == result["teacher_sha256"]["after"]
    log = (figures.RESULTS / f"{figures.NAMED_RUN}.metrics.jsonl").read_text(encoding="utf-8")
    assert json.loads(log.splitlines()[-1])["tokens"] == 4_456_448


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
