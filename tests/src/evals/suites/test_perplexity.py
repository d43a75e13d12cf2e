"""Native, scaled and trained models on the same held-out text, and what is said of them."""

from __future__ import annotations

import io
import json
import math
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from src import models
from src.config import RunConfig
from src.evals import restoration
from src.evals.perplexity import PerplexityConfig, scores
from src.evals.restoration import PerplexityResults, evaluate_model, evaluate_run
from src.run_folder import RunFolder
from src.tracking import NullTracker

SUITE = PerplexityConfig(windows=(16, 64, 256), tokens=1024, headline=64, batch_tokens=512)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, for the tokenized text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINEARARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(
    cache: None, compose_run: Callable[..., RunConfig], tiny_overrides: Sequence[str]
) -> RunConfig:
    return compose_run(*tiny_overrides)


@pytest.fixture(scope="module")
def alone(run: RunConfig) -> PerplexityResults:
    return evaluate_model(run.model, run.data, SUITE, device="cpu", dtype="float32")


def test_a_model_is_scored_at_every_window(alone: PerplexityResults) -> None:
    content = alone.content
    assert content["suite"] == "perplexity"
    assert content["windows"] == [16, 64, 256]
    assert content["headline"] == 64
    (model,) = content["models"]
    assert model["name"] == "tiny"
    for window in ("16", "64", "256"):
        assert model["perplexity"][window] == pytest.approx(math.exp(model["nll"][window]))
        # Random weights know nothing of the text: no better than a guess among their 272 tokens.
        assert 272 * 0.9 < model["perplexity"][window] < 272 * 4
    assert model["tokens"] == {"16": 64 * 15, "64": 16 * 63, "256": 4 * 255}


def test_the_text_is_named_and_held_out(alone: PerplexityResults) -> None:
    dataset = alone.content["dataset"]
    assert dataset["name"] == "files"
    assert sorted(dataset["documents"]) == ["held-a", "held-b"]
    assert dataset["tokens"] == 1024
    assert len(dataset["fingerprint"]) == 64


def test_a_model_alone_has_no_scores(alone: PerplexityResults) -> None:
    assert alone.content["scores"] is None
    assert alone.content["scores_by_model"] == {}
    columns, rows = alone.table()
    assert columns == ["model", "ppl 16", "ppl 64", "ppl 256", "gap closed @64"]
    perplexity = alone.content["models"][0]["perplexity"]
    assert rows == [["tiny", perplexity["16"], perplexity["64"], perplexity["256"], None]]


def test_text_that_is_too_short_is_refused(run: RunConfig) -> None:
    suite = PerplexityConfig(windows=(16_384,), tokens=16_384, headline=16_384)
    with pytest.raises(ValueError, match="windows has 16384, but the longest held-out document"):
        evaluate_model(run.model, run.data, suite, device="cpu", dtype="float32")


def export(run: RunConfig, folder: RunFolder, stage: str | None, noise: float) -> None:
    """An exported student: the model's weights and some noise."""
    scaled = models.scaled_config(run.model, run.rope)
    network = models.load_model(run.model, scaled, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(noise * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder.export(stage))


@pytest.fixture(scope="module")
def folder(run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config={}, record={})
    export(run, made, "ard", noise=0.0)
    export(run, made, None, noise=0.1)
    return made


@pytest.fixture(scope="module")
def compared(run: RunConfig, folder: RunFolder) -> PerplexityResults:
    return evaluate_run(run, folder, SUITE)


def test_a_run_compares_native_scaled_and_every_stage(
    run: RunConfig, alone: PerplexityResults, compared: PerplexityResults
) -> None:
    assert list(run.recipe.stages) == ["ard", "cpt"]
    found = {m["name"]: m["perplexity"] for m in compared.content["models"]}
    assert list(found) == ["native", "scaled", "after ard", "after cpt"]
    assert found["native"] == alone.content["models"][0]["perplexity"]
    assert found["scaled"] != found["native"]
    assert found["after ard"] == pytest.approx(found["scaled"]), "it was exported untrained"
    assert found["after cpt"] != pytest.approx(found["scaled"])
    assert compared.content["dataset"] == alone.content["dataset"]


def test_scores_are_those_of_the_last_stage_and_of_each(compared: PerplexityResults) -> None:
    content = compared.content
    found = {m["name"]: m["perplexity"] for m in content["models"]}
    assert content["scores_by_model"] == {
        name: scores(found["native"], found["scaled"], found[name])
        for name in ("after ard", "after cpt")
    }
    assert content["scores"] == content["scores_by_model"]["after cpt"]


def test_results_are_written_into_the_run(folder: RunFolder, compared: PerplexityResults) -> None:
    written = json.loads((folder.evals / "perplexity.json").read_text(encoding="utf-8"))
    assert written == compared.content
    assert [p.name for p in folder.evals.iterdir()] == ["perplexity.json"]


def results(gap_closed: float | None = 0.915) -> PerplexityResults:
    """Made-up figures of the shape that a run gives."""
    perplexity = {
        "native": {"128": 40.0, "512": 33.456},
        "scaled": {"128": 90.0, "512": 132.9},
        "after ard": {"128": 45.0, "512": 39.5},
    }
    scored = {
        window: {"gap_closed": gap_closed, "gap_closed_nll": 0.87, "recovery": recovery}
        for window, recovery in {"128": 88.9, "512": 84.7}.items()
    }
    content = {
        "windows": [128, 512],
        "headline": 512,
        "dataset": {"name": "sotu", "documents": ["a", "b", "c"]},
        "models": [{"name": name, "perplexity": value} for name, value in perplexity.items()],
        "scores": scored,
        "scores_by_model": {"after ard": scored},
    }
    return PerplexityResults(content, "512")


def printed(shown: PerplexityResults) -> list[str]:
    text = io.StringIO()
    shown.print(Console(width=100, file=text))
    return text.getvalue().splitlines()


def test_the_table_has_a_row_a_model() -> None:
    columns, rows = results().table()
    assert columns == ["model", "ppl 128", "ppl 512", "gap closed @512"]
    assert rows == [
        ["native", 40.0, 33.456, None],
        ["scaled", 90.0, 132.9, None],
        ["after ard", 45.0, 39.5, 0.915],
    ]


def test_what_is_printed_can_be_read() -> None:
    lines = printed(results())
    assert lines[0].startswith("Perplexity of held-out sotu text (3 documents")
    (native,) = [line for line in lines if "native" in line and "33.46" in line]
    assert "40.00" in native
    (student,) = [line for line in lines if "after ard" in line]
    assert "39.50" in student
    assert "91.5%" in student
    assert lines[-1] == "recovery at window 512: 84.7% of the native model"


def test_a_gap_that_is_not_there_is_printed_as_a_dash() -> None:
    (student,) = [line for line in printed(results(None)) if "after ard" in line]
    assert "-" in student
    assert "%" not in student


class RecordingTracker(NullTracker):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.tables: dict[str, tuple] = {}

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.summary.update(values)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tables[name] = (columns, rows)


def test_the_tracker_gets_the_table_and_the_last_models_scores(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = RecordingTracker()
    results().report(tracker)
    assert tracker.tables == {"perplexity": results().table()}
    assert tracker.summary["eval/native/perplexity/512"] == 33.456
    assert tracker.summary["eval/after ard/perplexity/128"] == 45.0
    assert tracker.summary["eval/gap_closed/512"] == 0.915
    assert tracker.summary["eval/recovery/128"] == 88.9
    assert "91.5%" in capsys.readouterr().out


def test_models_are_freed_one_after_the_other(
    run: RunConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alive: list[weakref.ref] = []
    load = models.load_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert not any(reference() is not None for reference in alive)
        network = load(*args, **kwargs)
        alive.append(weakref.ref(network))
        return network

    monkeypatch.setattr(restoration.models, "load_model", watched)
    small = PerplexityConfig(windows=(16,), tokens=64, headline=16)
    copy = RunFolder(shutil.copytree(folder.path, tmp_path / "run"))
    evaluate_run(run, copy, small)
    assert len(alive) == 4
