"""Evaluation's benchmark: a smoke run of the tiny model, by both loops."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import evaluation


def test_a_quick_run_times_both_loops_and_they_answer_alike(tmp_path: Path) -> None:
    out = tmp_path / "evaluation.json"
    evaluation.main(["--quick", "--out", str(out), "--commit", "0" * 40])
    result = json.loads(out.read_text())
    assert result["commit"] == "0" * 40
    rows = {(row["name"], row["case"]): row for row in result["rows"]}
    assert list(rows) == [
        ("ruler_seconds", "replayed"),
        ("ruler_seconds", "plain"),
        ("equal_answers", "replayed, plain"),
    ]
    assert rows["equal_answers", "replayed, plain"]["value"] == 1
    for row in result["rows"][:2]:
        assert row["value"] > 0
        assert (row["model"], row["T"], row["samples"], row["unit"]) == ("tiny", 256, 2, "s")
