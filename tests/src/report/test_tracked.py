"""A run's own plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.report.tracked import BY_LAYER, layers_figure, run_figures
from src.results import ResultsError

ENTRIES = [{"tokens": 256 * n, BY_LAYER: [n + 0.25, n + 0.5, n + 0.75]} for n in (1, 2)]


def test_layers_are_rows_and_steps_are_columns() -> None:
    (heat,) = layers_figure(ENTRIES).data
    assert list(heat.x) == [256, 512]
    assert [list(row) for row in heat.z] == [[1.25, 2.25], [1.5, 2.5], [1.75, 2.75]]


def test_many_steps_are_thinned() -> None:
    (heat,) = layers_figure([ENTRIES[0]] * 5000).data
    assert len(heat.x) == 500


def test_a_run_has_the_plots_that_it_has_data_for(tmp_path: Path) -> None:
    assert run_figures(tmp_path, [{"tokens": 1, "loss/total": 1.0}]) == {}
    assert set(run_figures(tmp_path, ENTRIES)) == {"plots/relation_by_layer"}
    (tmp_path / "evals").mkdir()
    file = tmp_path / "evals" / "perplexity.json"
    models = [
        {"name": name, "perplexity": {"64": 8.5, "128": 7.5}} for name in ("native", "scaled")
    ]
    content = {
        "schema": 1,
        "suite": "perplexity",
        "dataset": {"name": "text", "documents": ["a"], "tokens": 128, "fingerprint": "f"},
        "windows": [64, 128],
        "headline": 64,
        "models": models,
    }
    file.write_text(json.dumps(content | {"scores": None, "scores_by_model": {}}))
    assert set(run_figures(tmp_path, [])) == {"plots/perplexity"}
    file.write_text("{")
    with pytest.raises(ResultsError):
        run_figures(tmp_path, [])
