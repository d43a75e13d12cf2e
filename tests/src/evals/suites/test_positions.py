"""Perplexity by position: the same tokens after contexts of different lengths."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.evals.suite import Evaluation, EvaluationError
from src.evals.suites import positions
from src.evals.suites.positions import PositionsResults, PositionsSuite, token_nll
from src.models.rope import LinearScaling
from src.results import parse

SUITE = PositionsSuite(segments=3, last=8, sliding=16, edges=(1, 2, 4, 16))
LENGTHS = (24, 48)


@pytest.fixture(scope="module")
def segments() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 257, (3, SUITE.needed(LENGTHS)))


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


def test_figures_are_means_over_the_right_tokens(
    small_llama: Any, segments: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(positions.PASS_TOKENS, "cpu", 60)
    found = SUITE.evaluate(small_llama, segments, LENGTHS, name="x")
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


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        PositionsSuite(last=100, sliding=150)
    with pytest.raises(ValueError, match="begin at 1"):
        PositionsSuite(edges=(0, 2))
    with pytest.raises(ValueError, match=r"positions\.last=256 .* the length 200 has no room"):
        PositionsSuite(lengths=(200, 1024))


def test_figures_that_are_not_finite_are_refused(small_llama: Any, segments: np.ndarray) -> None:
    broken = copy.deepcopy(small_llama)
    broken.get_output_embeddings().weight.data[3] = float("inf")
    with pytest.raises(EvaluationError, match="logits are not finite"):
        token_nll(broken, segments, 8)


def test_text_is_scored_at_the_lengths_within_each_window(evaluation: Evaluation) -> None:
    suite = PositionsSuite(
        lengths=(1024, 2048), segments=2, last=64, sliding=128, edges=(1, 16, 256)
    )
    found = suite.run(evaluation).record
    assert found is not None
    record = parse(json.dumps(found.plain(), allow_nan=False), PositionsResults)
    assert record == found
    assert record is not None
    assert record.lengths == (1024, 2048)
    by_name = {model.name: set(model.last_k) for model in record.models}
    both = {1024, 2048}
    assert by_name == {"native": {1024}, "scaled": both, "after ard": both}
    (table,) = suite.tables(record)
    assert table.rows[0][3] is None
    assert all(table.cells(row) for row in table.rows)
    summary = suite.summary(record)
    assert (
        summary["eval/scaled/long/perplexity_last/2048"] == record.models[1].last_k[2048].perplexity
    )


def test_default_lengths_need_room_for_the_scored_tokens(evaluation: Evaluation) -> None:
    longer = replace(evaluation.candidates[1], scaling=LinearScaling("linear", 8192))
    suite = PositionsSuite(last=4096, sliding=4096)
    (problem,) = suite.problems(replace(evaluation, candidates=(longer,)))
    assert "the length 4096 has no room" in problem
    (problem,) = PositionsSuite(lengths=(2048,)).problems(
        replace(evaluation, data=replace(evaluation.data, held_out=()))
    )
    assert "hold out longer documents" in problem
