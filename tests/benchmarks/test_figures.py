"""Tables in the documents are what the committed results give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import figures

RESULTS = sorted(figures.RESULTS.glob("*.json"))


def test_readme_tables_come_from_the_results() -> None:
    result = figures.load(figures.NAMED_RUN)
    tables = {
        "perplexity": figures.perplexity_table(result),
        "stages": figures.stage_table(result),
    }
    text = figures.README.read_text(encoding="utf-8")
    assert figures.with_tables(text, tables) == text, "run python -m benchmarks.figures"


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
    assert re.fullmatch(r"[0-9a-f]{40}", result["commit"])
    assert all({"name", "value", "unit"} <= row.keys() for row in result["rows"])


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for table 'x'"):
        figures.with_tables("no marks", {"x": "|"})
