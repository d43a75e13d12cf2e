"""Perplexity by position: the same tokens after contexts of different lengths."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from src.evals.positions import PositionsConfig, evaluate, segments_of, token_nll
from src.evals.suite import EvaluationError

CONFIG = PositionsConfig(segments=3, last=8, sliding=16, edges=(1, 2, 4, 16))
LENGTHS = (24, 48)


@pytest.fixture(scope="module")
def segments() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 257, (3, CONFIG.needed(LENGTHS)))


def full_nll(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids[None])).logits[0].double()
    chosen = torch.log_softmax(logits[:-1], -1).gather(1, torch.from_numpy(ids[1:, None]))
    return -chosen[:, 0].numpy()


def test_each_token_is_scored_as_a_whole_pass_scores_it(
    small_llama: Any, segments: np.ndarray
) -> None:
    got = token_nll(small_llama, segments[:, :24], 23)
    expected = np.stack([full_nll(small_llama, row[:24]) for row in segments])
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_figures_are_means_over_the_right_tokens(small_llama: Any, segments: np.ndarray) -> None:
    found = evaluate(small_llama, segments, LENGTHS, CONFIG, batch_tokens=60, name="x")
    whole = np.stack([full_nll(small_llama, row[:48]) for row in segments])
    bins = found["by_position"]
    assert bins["edges"] == [1, 2, 4, 16]
    assert bins["tokens"] == [3, 6, 36, 96]
    for nll, (a, b) in zip(bins["nll"], ((0, 1), (1, 3), (3, 15), (15, 47)), strict=True):
        assert nll == pytest.approx(whole[:, a:b].mean(), rel=1e-4)
    for length in LENGTHS:
        end = segments.shape[1]
        ends = (end, end - 8)
        parts = [
            [full_nll(small_llama, row[e - length : e])[-8:] for row in segments] for e in ends
        ]
        last, sliding = found["last_k"][str(length)], found["sliding"][str(length)]
        assert last["nll"] == pytest.approx(np.mean(parts[0]), rel=1e-4)
        assert sliding["nll"] == pytest.approx(np.mean(parts), rel=1e-4)
        assert (last["tokens"], sliding["tokens"]) == (24, 48)
        assert last["perplexity"] == pytest.approx(math.exp(last["nll"]))


def test_segments_are_spread_and_too_short_text_is_refused() -> None:
    documents = [("a", np.arange(100)), ("b", np.arange(1000, 1055))]
    found = segments_of(documents, 50, 3)
    assert found[:, 0].tolist() == [0, 50, 1000]
    assert segments_of(documents, 50, 2)[:, 0].tolist() == [0, 1000]
    with pytest.raises(ValueError, match=r"needs 101 tokens.*has 100"):
        segments_of(documents, 101, 1)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        PositionsConfig(last=100, sliding=150)
    with pytest.raises(ValueError, match="begin at 1"):
        PositionsConfig(edges=(0, 2))


def test_figures_that_are_not_finite_are_refused(small_llama: Any, segments: np.ndarray) -> None:
    broken = copy.deepcopy(small_llama)
    broken.get_output_embeddings().weight.data[3] = float("inf")
    with pytest.raises(EvaluationError, match="logits are not finite"):
        token_nll(broken, segments, 8)
