"""Native, scaled and trained models on the same held-out text, and what is said of them."""

from __future__ import annotations

import copy
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from src.evals import losses, suite
from src.evals.cache import ResultCache
from src.evals.scoring import spread_segments
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.perplexity import PerplexitySuite, negative_log_likelihood, scores
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

VOCABULARY = 61


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.5,  # so that windows differ in what they say
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    return model.eval()


def draw(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, shape)


def documents(*lengths: int) -> list[tuple[str, np.ndarray]]:
    """Documents whose tokens count on from one to the next, so that each token names its place."""
    ends = np.cumsum(lengths)
    return [
        (f"d{i}", np.arange(e - n, e)) for i, (n, e) in enumerate(zip(lengths, ends, strict=True))
    ]


def segments(given: Sequence[tuple[str, np.ndarray]], length: int, number: int) -> np.ndarray:
    return spread_segments(given, length, number, needed_by="the setting")


def settings_of(windows: tuple[int, ...], tokens: int, **other: int) -> PerplexitySuite:
    return PerplexitySuite(windows, tokens, **{"headline": windows[0]} | other)


def own_loss(network: LlamaForCausalLM, windows_nt: np.ndarray) -> list[float]:
    """transformers' loss of each window by itself."""
    with torch.no_grad():
        rows = torch.from_numpy(windows_nt)
        return [network(input_ids=row[None], labels=row[None]).loss.item() for row in rows]


def test_perplexity_is_exp_of_transformers_own_loss(network: LlamaForCausalLM) -> None:
    segments_nt = draw((3, 24))
    result = settings_of((6, 12, 24), 72).evaluate(network, segments_nt, name="it")
    for window in (6, 12, 24):
        windows_nt = segments_nt.reshape(-1, window)
        losses = own_loss(network, windows_nt)
        assert max(losses) - min(losses) > 0.1
        assert result[str(window)] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12, 30, 10_000])
@pytest.mark.parametrize("head_chunk", [1, 7, 2048])
def test_batches_and_chunks_change_nothing(
    network: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, head_chunk: int
) -> None:
    windows_nt = draw((5, 12))
    monkeypatch.setattr(losses, "_HEAD_CHUNK", head_chunk)
    nll = negative_log_likelihood(network, windows_nt, batch_tokens=batch_tokens, name="")
    assert nll == pytest.approx(np.mean(own_loss(network, windows_nt)), rel=1e-5)


def test_forward_passes_hold_at_most_the_tokens_asked_for(network: LlamaForCausalLM) -> None:
    shapes: list[tuple[int, ...]] = []

    def watch(module: object, arguments: object, keywords: dict) -> None:
        shapes.append(tuple(keywords["input_ids"].shape))

    handle = network.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
    negative_log_likelihood(network, draw((5, 12)), batch_tokens=30, name="")
    handle.remove()
    assert shapes == [(2, 12), (2, 12), (1, 12)]


def test_evaluation_neither_trains_nor_drops_out(network: LlamaForCausalLM) -> None:
    modes: list[tuple[bool, bool]] = []

    def watch(module: torch.nn.Module, arguments: object) -> None:
        modes.append((torch.is_grad_enabled(), module.training))

    network.train()
    handle = network.get_decoder().register_forward_pre_hook(watch)
    settings_of((6, 12), 12).evaluate(network, draw((1, 12)), name="")
    handle.remove()
    assert modes == [(False, False)] * 2


@pytest.mark.parametrize("windows", [(100, 512), (128, 384, 512), (512, 1000)], ids=str)
def test_windows_that_do_not_divide_the_largest_are_refused(windows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"do not divide the largest, {max(windows)}") as caught:
        settings_of(windows, 4096)
    odd = [w for w in windows if max(windows) % w]
    assert f"{odd} do not divide" in str(caught.value)


def test_a_headline_that_is_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"headline=256 is not among windows=\[128, 512\]"):
        settings_of((128, 512), 4096, headline=256)


def test_segments_are_whole_and_evenly_spaced() -> None:
    found = segments(documents(25, 9, 61), 10, 4)
    # Segments start at 0 and 10 of the first document and at 34, 44, ..., 84 of the third.
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [0, 34, 64, 84]
    assert (found == found[:, :1] + np.arange(10)).all(), "a segment is a stretch of one document"


def test_segments_are_all_there_are_where_more_are_asked_for() -> None:
    found = segments(documents(25, 10, 40), 10, 1000)
    assert found[:, 0].tolist() == [0, 10, 25, 35, 45, 55, 65]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    tokens=st.integers(1, 200),
    divisors=st.sets(st.sampled_from([2, 3, 4, 6]), max_size=3),
)
def test_every_window_scores_the_same_text(
    lengths: list[int], tokens: int, divisors: set[int]
) -> None:
    config = settings_of((12, *divisors), tokens)
    given_documents = documents(*lengths)
    if max(lengths) < 12:
        with pytest.raises(ValueError, match="longest held-out document"):
            segments(given_documents, 12, max(1, tokens // 12))
        return
    found = segments(given_documents, 12, max(1, tokens // 12))
    count, room = len(found), sum(n // 12 for n in lengths)
    assert count == min(room, max(1, tokens // 12))
    assert len(np.unique(found[:, 0])) == count, "no segment is taken twice"
    for window in config.windows:
        windows_nt = found.reshape(-1, window)
        assert windows_nt.size == found.size
        assert (windows_nt.flatten() == found.flatten()).all()
        assert (np.diff(windows_nt, axis=1) == 1).all()


@pytest.mark.parametrize(("lengths", "longest"), [((3, 99, 40), 99), ((), 0)], ids=str)
def test_documents_shorter_than_the_largest_window_are_refused_with_both_numbers(
    lengths: tuple[int, ...], longest: int
) -> None:
    with pytest.raises(ValueError, match="hold out longer documents") as caught:
        segments(documents(*lengths), 100, 10)
    assert "the setting needs 100 tokens" in str(caught.value)
    assert f"document has {longest}:" in str(caught.value)


def test_scores_are_their_definitions() -> None:
    found = scores({8: 10.0, 4: 20.0}, {8: 50.0, 4: 30.0}, {8: 20.0, 4: 18.0})
    assert found[8].model_dump() == pytest.approx(
        {
            "gap_closed": (20 - 50) / (10 - 50),
            "gap_closed_nll": (math.log(20) - math.log(50)) / (math.log(10) - math.log(50)),
            "recovery": 100 * 10 / 20,
        }
    )
    better_than_native = found[4]
    assert better_than_native.gap_closed == pytest.approx(1.2)
    assert better_than_native.recovery == pytest.approx(100 * 20 / 18)


@pytest.mark.parametrize(("student", "closed"), [(10.0, 1.0), (50.0, 0.0), (90.0, -1.0)])
def test_the_ends_of_the_gap(student: float, closed: float) -> None:
    found = scores({8: 10.0}, {8: 50.0}, {8: student})[8]
    assert found.gap_closed == pytest.approx(closed)
    nll = found.gap_closed_nll
    assert nll is not None
    assert (nll > 0, nll < 1) == (closed > 0, closed < 1)


@pytest.mark.parametrize("scaled", [10.0, 9.0], ids=["equal", "better"])
def test_no_gap_where_scaling_did_no_harm(scaled: float) -> None:
    found = scores({8: 10.0}, {8: scaled}, {8: 12.5})[8]
    assert found == PerplexityScore(recovery=80.0)


def test_figures_that_are_not_finite_are_refused(network: LlamaForCausalLM) -> None:
    """As of a model whose activations overflow in long windows only."""
    broken = copy.deepcopy(network)
    broken.lm_head.weight.data[3] = float("inf")
    with pytest.raises(EvaluationError, match="logits are not finite"):
        negative_log_likelihood(broken, draw((2, 16)), batch_tokens=64, name="x")


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
    assert table.title.startswith(
        "Perplexity of held-out sotu text by window in tokens (3 documents,"
    )
    assert table.columns == ("model", "ppl 128", "ppl 512", "gap closed @512")
    assert table.rows == (
        ("native", 40.0, 33.456, None),
        ("scaled", 90.0, 132.9, None),
        ("after ard", 45.0, 39.5, 0.915),
    )
    assert table.cells(table.rows[0]) == ["native", "40.00", "33.46", "-"]
    assert table.cells(table.rows[2])[-1] == "91.5%"
    assert table.notes == ("recovery in windows of 512 tokens: 84.7% of the native model",)


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


def test_large_models_are_freed_one_after_the_other(
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
    monkeypatch.setattr(suite, "KEPT_SHARE", 0.0)
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
