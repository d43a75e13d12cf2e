"""Perplexity by window: transformers' own loss, the same text for every window, exact scores."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from src.evals import scoring
from src.evals.scoring import spread_segments
from src.evals.suite import EvaluationError
from src.evals.suites.perplexity import PerplexitySuite, negative_log_likelihood, scores
from src.results import PerplexityScore

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


def suite(windows: tuple[int, ...], tokens: int, **other: int) -> PerplexitySuite:
    return PerplexitySuite(windows, tokens, **{"headline": windows[0]} | other)


def own_loss(network: LlamaForCausalLM, windows_nt: np.ndarray) -> list[float]:
    """transformers' loss of each window by itself."""
    with torch.no_grad():
        rows = torch.from_numpy(windows_nt)
        return [network(input_ids=row[None], labels=row[None]).loss.item() for row in rows]


def test_perplexity_is_exp_of_transformers_own_loss(network: LlamaForCausalLM) -> None:
    segments_nt = draw((3, 24))
    result = suite((6, 12, 24), 72).evaluate(network, segments_nt, name="it")
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
    monkeypatch.setattr(scoring, "_HEAD_CHUNK", head_chunk)
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
    suite((6, 12), 12).evaluate(network, draw((1, 12)), name="")
    handle.remove()
    assert modes == [(False, False)] * 2


@pytest.mark.parametrize("windows", [(100, 512), (128, 384, 512), (512, 1000)], ids=str)
def test_windows_that_do_not_divide_the_largest_are_refused(windows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"do not divide the largest, {max(windows)}") as caught:
        suite(windows, 4096)
    odd = [w for w in windows if max(windows) % w]
    assert f"{odd} do not divide" in str(caught.value)


def test_a_headline_that_is_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"headline=256 is not among windows=\[128, 512\]"):
        suite((128, 512), 4096, headline=256)


def test_segments_are_whole_and_evenly_spaced() -> None:
    found = segments(documents(25, 9, 61), 10, 4)
    # Segments start at 0 and 10 of the first document and at 34, 44, ..., 84 of the third.
    assert found.dtype == np.int64
    assert found[:, 0].tolist() == [0, 34, 64, 84]
    assert (found == found[:, :1] + np.arange(10)).all(), "a segment is a stretch of one document"


def test_segments_are_all_there_are_where_more_are_asked_for() -> None:
    found = segments(documents(25, 10, 40), 10, 1000)
    assert found[:, 0].tolist() == [0, 10, 25, 35, 45, 55, 65]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    tokens=st.integers(1, 200),
    divisors=st.sets(st.sampled_from([2, 3, 4, 6]), max_size=3),
)
def test_every_window_scores_the_same_text(
    lengths: list[int], tokens: int, divisors: set[int]
) -> None:
    config = suite((12, *divisors), tokens)
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
