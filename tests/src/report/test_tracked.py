"""A run's own plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.report.tracked import run_figures
from src.results import ResultsError

LAYERED = [
    {"step": n, "tokens": 256 * n, "stage": "ard", "loss/relation/by_layer": [n + 0.25, n + 0.5]}
    for n in (1, 2)
]


def log(folder: Path, entries: list[dict[str, Any]]) -> None:
    lines = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


def test_layers_are_rows_and_steps_are_columns(tmp_path: Path) -> None:
    log(tmp_path, LAYERED)
    (heat,) = run_figures(tmp_path)["plots/relation_by_layer"].data
    assert list(heat.x) == ["256", "512"]
    assert [list(row) for row in heat.text] == [[1.25, 2.25], [1.5, 2.5]]


def test_many_steps_are_thinned(tmp_path: Path) -> None:
    log(tmp_path, [{**LAYERED[0], "step": n, "tokens": n} for n in range(1, 500)])
    (heat,) = run_figures(tmp_path)["plots/relation_by_layer"].data
    assert len(heat.x) <= 48


def test_a_run_has_the_plots_that_it_has_data_for(tmp_path: Path) -> None:
    assert run_figures(tmp_path) == {}
    log(tmp_path, [{"step": 1, "tokens": 1, "stage": "cpt", "loss/total": 1.0}])
    assert run_figures(tmp_path) == {}
    (tmp_path / "evals").mkdir()
    file = tmp_path / "evals" / "perplexity.json"
    models = [
        {"name": role, "role": role, "perplexity": {"64": 8.5, "128": 7.5}}
        for role in ("native", "scaled")
    ]
    content = {
        "schema": 2,
        "suite": "perplexity",
        "dataset": {"name": "text", "documents": ["a"], "tokens": 128, "fingerprint": "f"},
        "windows": [64, 128],
        "headline": 64,
        "models": models,
    }
    file.write_text(json.dumps(content))
    assert set(run_figures(tmp_path)) == {"plots/perplexity"}
    file.write_text("{")
    with pytest.raises(ResultsError):
        run_figures(tmp_path)
