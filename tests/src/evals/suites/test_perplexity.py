"""Native, scaled and trained models on the same held-out text, and what is said of them."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.evals import suite
from src.evals.cache import ResultCache
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.perplexity import PerplexitySuite, scores
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.results import (
    Dataset,
    PerplexityModel,
    PerplexityResults,
    PerplexityScore,
    Role,
)
from src.settings.config import RunConfig

SUITE = PerplexitySuite(windows=(16, 64, 256), tokens=1024, headline=64, batch_tokens=512)


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


def evaluation(run: RunConfig, *candidates: Candidate, cache: Path | None = None) -> Evaluation:
    return Evaluation(candidates, run.data, "cpu", "float32", ResultCache(cache))


def scored(suite: PerplexitySuite, evaluation: Evaluation) -> PerplexityResults:
    record = suite.run(evaluation).record
    assert isinstance(record, PerplexityResults)
    return record


@pytest.fixture(scope="module")
def alone(run: RunConfig) -> PerplexityResults:
    return scored(SUITE, evaluation(run, Candidate("tiny", "native", run.model)))


def test_a_model_is_scored_at_every_window(alone: PerplexityResults) -> None:
    assert alone.suite == "perplexity"
    assert alone.windows == (16, 64, 256)
    assert alone.headline == 64
    (model,) = alone.models
    assert (model.name, model.role) == ("tiny", "native")
    for window in (16, 64, 256):
        nll, found = model.nll[window], model.perplexity[window]
        assert nll is not None
        assert found is not None
        assert found == pytest.approx(math.exp(nll))
        # Random weights know nothing of the text: no better than a guess among their 272 tokens.
        assert 272 * 0.9 < found < 272 * 4
    assert model.tokens == {16: 64 * 15, 64: 16 * 63, 256: 4 * 255}


def test_the_text_is_named_and_held_out(alone: PerplexityResults) -> None:
    dataset = alone.dataset
    assert dataset.name == "files"
    assert sorted(dataset.documents) == ["held-a", "held-b"]
    assert dataset.tokens == 1024
    assert len(dataset.fingerprint or "") == 64


def test_a_model_alone_has_no_scores(alone: PerplexityResults) -> None:
    assert alone.final is None
    assert not alone.models[0].scores
    (table,) = SUITE.tables(alone)
    assert table.columns == ("model", "ppl 16", "ppl 64", "ppl 256", "gap closed @64")
    found = alone.models[0].perplexity
    assert table.rows == (("tiny", found[16], found[64], found[256], None),)


def test_text_that_is_too_short_is_refused(run: RunConfig) -> None:
    long = PerplexitySuite(windows=(16_384,), tokens=16_384, headline=16_384)
    asked = evaluation(run, Candidate("tiny", "native", run.model))
    message = "windows=[16384] needs 16384 tokens of running text, but the longest held-out"
    assert message in long.problems(asked)[0]
    with pytest.raises(EvaluationError, match=re.escape(message)):
        long.run(asked)


def exported(run: RunConfig, folder: Path, noise: float) -> Path:
    """A student: the model's weights and some noise."""
    scaled = scaled_config(run.model, run.rope)
    network = load_model(run.model, scaled, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(noise * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def candidates(run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Candidate]:
    folder = tmp_path_factory.mktemp("exports")
    untrained, trained = exported(run, folder / "a", 0.0), exported(run, folder / "b", 0.1)
    return [
        Candidate("native", "native", run.model),
        Candidate("scaled", "scaled", run.model, run.rope),
        Candidate("after ard", "stage", run.model, run.rope, untrained),
        Candidate("after cpt", "final", run.model, run.rope, trained),
    ]


@pytest.fixture(scope="module")
def compared(run: RunConfig, candidates: list[Candidate]) -> PerplexityResults:
    return scored(SUITE, evaluation(run, *candidates))


def test_a_run_compares_native_scaled_and_every_stage(
    run: RunConfig, alone: PerplexityResults, compared: PerplexityResults
) -> None:
    assert list(run.recipe.stages) == ["ard", "cpt"]
    found = {m.name: m.perplexity for m in compared.models}
    assert list(found) == ["native", "scaled", "after ard", "after cpt"]
    assert found["native"] == alone.models[0].perplexity
    assert found["scaled"] != found["native"]
    assert found["after ard"] == pytest.approx(found["scaled"]), "it was exported untrained"
    assert found["after cpt"] != pytest.approx(found["scaled"])
    assert compared.dataset == alone.dataset


def test_every_stage_has_scores_and_the_last_is_final(compared: PerplexityResults) -> None:
    found = {m.name: m.perplexity for m in compared.models}
    assert {m.name: m.scores for m in compared.models if m.scores} == {
        name: scores(found["native"], found["scaled"], found[name])
        for name in ("after ard", "after cpt")
    }
    assert compared.final is not None
    assert compared.final.name == "after cpt"


def results(gap_closed: float | None = 0.915) -> PerplexityResults:
    """Made-up figures of the shape that a run gives."""
    figures: dict[Role, dict[int, float | None]] = {
        "native": {128: 40.0, 512: 33.456},
        "scaled": {128: 90.0, 512: 132.9},
        "final": {128: 45.0, 512: 39.5},
    }
    scored = {
        window: PerplexityScore(gap_closed=gap_closed, gap_closed_nll=0.87, recovery=recovery)
        for window, recovery in {128: 88.9, 512: 84.7}.items()
    }
    names = {"final": "after ard"}
    return PerplexityResults(
        windows=(128, 512),
        headline=512,
        dataset=Dataset(name="sotu", documents=("a", "b", "c")),
        models=tuple(
            PerplexityModel(
                name=names.get(role, role),
                role=role,
                perplexity=values,
                scores=scored if role == "final" else {},
            )
            for role, values in figures.items()
        ),
    )


def test_the_table_has_a_row_a_model() -> None:
    (table,) = SUITE.tables(results())
    assert table.title.startswith("Perplexity of held-out sotu text (3 documents")
    assert table.columns == ("model", "ppl 128", "ppl 512", "gap closed @512")
    assert table.rows == (
        ("native", 40.0, 33.456, None),
        ("scaled", 90.0, 132.9, None),
        ("after ard", 45.0, 39.5, 0.915),
    )
    assert table.cells(table.rows[0]) == ["native", "40.00", "33.46", "-"]
    assert table.cells(table.rows[2])[-1] == "91.5%"
    assert table.notes == ("recovery at window 512: 84.7% of the native model",)


def test_a_gap_that_is_not_there_is_a_dash() -> None:
    (table,) = SUITE.tables(results(None))
    assert table.cells(table.rows[2])[-1] == "-"
    assert "eval/gap_closed/512" not in SUITE.summary(results(None))


def test_the_summary_has_the_models_and_the_last_ones_scores() -> None:
    summary = SUITE.summary(results())
    assert summary["eval/native/perplexity/512"] == 33.456
    assert summary["eval/after ard/perplexity/128"] == 45.0
    assert summary["eval/gap_closed/512"] == 0.915
    assert summary["eval/recovery/128"] == 88.9


SMALL = PerplexitySuite(windows=(16,), tokens=64, headline=16)


def test_models_are_freed_one_after_the_other(
    run: RunConfig, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref] = []
    load = suite.load_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert not any(reference() is not None for reference in alive)
        network = load(*args, **kwargs)
        alive.append(weakref.ref(network))
        return network

    monkeypatch.setattr(suite, "load_model", watched)
    SMALL.run(evaluation(run, *candidates))
    assert len(alive) == 4


def test_known_figures_are_not_computed_again(
    run: RunConfig,
    candidates: list[Candidate],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked = evaluation(run, *candidates, cache=tmp_path)
    first = SMALL.run(asked).record
    monkeypatch.setattr(PerplexitySuite, "evaluate", None)
    assert SMALL.run(asked).record == first
    # Other batches change no figure beyond rounding.
    assert replace(SMALL, batch_tokens=32).run(asked).record == first


def test_a_model_without_weights_is_named_and_the_others_are_kept(
    run: RunConfig, candidates: list[Candidate], tmp_path: Path
) -> None:
    broken = replace(candidates[2], weights=tmp_path)
    record = scored(SMALL, evaluation(run, *candidates[:2], broken))
    assert "has no weights" in record.failures["after ard"]
    assert [m.name for m in record.models] == ["native", "scaled"]
