"""Synthetic run folders, written as a training run writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]

RECORD: dict[str, Any] = {
    "schema": 1,
    "run_id": "20251120-a1b2",
    "experiment": "quickstart",
    "method": "linearard",
    "model": "smollm2_135m",
    "state": "finished",
    "error": None,
    "command": "python -m src.train +experiment=quickstart",
    "seed": 7,
    "git_commit": "3f9c2ab81d77aa01",
    "git_dirty": False,
    "started_at": "2025-11-20T10:37:00+00:00",
    "finished_at": "2025-11-20T10:42:00+00:00",
    "updated_at": "2025-11-20T10:42:00+00:00",
    "versions": {"torch": "2.13.0"},
    "device": "cpu",
    "world_size": 1,
    "tokens": 24576,
    "step": 4,
    "seconds": 253.1,
    "stages": [{"name": "ard", "tokens": 24576, "steps": 4, "seconds": 253.1}],
    "data_fingerprint": {"ard/main": "ab"},
}
CONFIG = (
    "experiment: quickstart\nmodel:\n  name: smollm2_135m\n"
    "rope:\n  type: linear\n  target_length: 32768\nseed: 7\n"
)
EVALUATION: dict[str, Any] = {
    "schema": 2,
    "suite": "perplexity",
    "dataset": {"name": "sotu", "documents": ["2018-A", "2019-A"], "fingerprint": "cd"},
    "windows": [128, 512, 2048],
    "headline": 512,
    "models": [
        {
            "name": "native",
            "role": "native",
            "perplexity": {"128": 48.2, "512": 33.5, "2048": 27.9},
        },
        {
            "name": "scaled",
            "role": "scaled",
            "perplexity": {"128": 101.3, "512": 132.9, "2048": 171.0},
        },
        {
            "name": "after ard",
            "role": "stage",
            "perplexity": {"128": 54.1, "512": 39.5, "2048": 47.0},
        },
        {
            "name": "restored",
            "role": "final",
            "perplexity": {"128": 55.0, "512": 38.1, "2048": 33.0},
            "scores": {"512": {"gap_closed": 0.954, "recovery": 97.9}},
        },
    ],
}


def metric_row(step: int, *, stage: str = "ard", **values: float) -> dict[str, Any]:
    """One line of `metrics.jsonl`; `values` replace the metrics."""
    logged = values or {"loss/total": 1.0 / step, "loss/relation/qq": 0.5 / step, "lr": 1e-3}
    return {"step": step, "tokens": 512 * step, "stage": stage, **logged}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """An empty output folder."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_run(outputs: Path) -> MakeRun:
    """`make_run(name, metrics=, evaluation=, **record)` writes one run folder; returns it."""

    def make(
        name: str = "quickstart/20251120-a1b2",
        *,
        metrics: list[dict[str, Any]] | None = None,
        evaluation: dict[str, Any] | None = None,
        **record: Any,
    ) -> Path:
        folder = outputs / name
        folder.mkdir(parents=True)
        rows = [metric_row(step) for step in range(1, 5)] if metrics is None else metrics
        (folder / "run.json").write_text(json.dumps({**RECORD, **record}))
        (folder / "config.yaml").write_text(CONFIG)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if evaluation is not None:
            (folder / "evals").mkdir()
            (folder / "evals" / "perplexity.json").write_text(json.dumps(evaluation))
        return folder

    return make


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """A perplexity evaluation of two stages, free to change."""
    return json.loads(json.dumps(EVALUATION))
