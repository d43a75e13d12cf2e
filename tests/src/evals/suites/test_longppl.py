"""LongPPL: key tokens by their definition, the same for all models, and the figures of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.evals.suite import Evaluation, EvaluationError
from src.evals.suites.longppl import LongPplSuite, _evaluator
from src.results import parse

NATIVE, SCALED = 1024, 2048  # the windows of the models in conftest.py
# Random models gain little from context, and nothing is likely.
SUITE = LongPplSuite((900, 1500), segments=2, short=800, step=300, gain=0.02, likely=-9.0)


def full_nll(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids[None])).logits[0].double()
    chosen = torch.log_softmax(logits[:-1], -1).gather(1, torch.from_numpy(ids[1:, None]))
    return -chosen[:, 0].numpy()


@pytest.mark.parametrize(("short", "step", "tokens"), [(12, 5, 40), (12, 5, 14), (8, 3, 17)])
def test_short_windows_hold_at_most_so_many_tokens(
    small_llama: Any, short: int, step: int, tokens: int
) -> None:
    suite = LongPplSuite(short=short, step=step)
    segments = np.random.default_rng(1).integers(0, 257, (2, tokens))
    found = suite._windowed(small_llama, segments, "x", short=True)
    assert found.shape == (2, tokens - short)
    for row, segment in zip(found, segments, strict=True):
        for place, value in zip(range(short, tokens), row, strict=True):
            # The window that scores a token ends at most step - 1 tokens after it.
            ends = range(place + 1, min(place + step, tokens) + 1)
            possible = [full_nll(small_llama, segment[e - short : e])[place - e] for e in ends]
            assert min(abs(value - nll) for nll in possible) < 1e-4
    whole = suite._windowed(small_llama, segments, "x", short=False)
    expected = np.stack([full_nll(small_llama, row)[short - 1 :] for row in segments])
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


def test_all_models_are_scored_on_the_evaluators_key_tokens(evaluation: Evaluation) -> None:
    result = SUITE.run(evaluation)
    assert result.record is not None
    record: Any = parse(json.dumps(result.record.plain(), allow_nan=False), SUITE.record)
    assert record == result.record
    assert not record.failures
    assert set(record.keys) == {900, 1500}
    assert record.tokens == {900: 2 * 100, 1500: 2 * 700}
    by_name = {model.name: model.by_length for model in record.models}
    assert {name: set(found) for name, found in by_name.items()} == {
        "native": {900},
        "scaled": {900, 1500},
        "after ard": {900, 1500},
    }
    native = evaluation.of_role("native")[0]
    segments = SUITE._segments(evaluation, 900)
    with evaluation.loaded(native) as network:
        long = SUITE._windowed(network, segments, "x", short=False)
        short = SUITE._windowed(network, segments, "x", short=True)
    key = (short - long > SUITE.gain) & (-long > SUITE.likely)
    assert 0 < key.sum() < key.size
    assert record.keys[900] == key.sum()
    found = by_name["native"][900]
    assert found.longppl == pytest.approx(math.exp(long[key].mean()), rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(long.mean()), rel=1e-4)
    (table,) = SUITE.tables(record)
    assert all(table.cells(row) for row in table.rows)
    assert set(SUITE.summary(record)) == {
        "eval/native/longppl/900",
        *(f"eval/{name}/longppl/{n}" for name in ("scaled", "after ard") for n in (900, 1500)),
    }


def test_the_evaluator_is_the_native_model_or_yarn(evaluation: Evaluation) -> None:
    native = evaluation.of_role("native")[0]
    assert _evaluator(native, NATIVE) is native
    beyond = _evaluator(native, SCALED)
    assert beyond.window == SCALED
    assert beyond.scaling is not None
    assert beyond.scaling.type == "yarn"
    assert beyond.fingerprint != native.fingerprint


def test_what_cannot_be_measured_is_said(evaluation: Evaluation) -> None:
    with pytest.raises(ValueError, match=r"step=4096 must be less than short=4096"):
        LongPplSuite(step=4096)
    with pytest.raises(ValueError, match=r"lengths=\[100\]: each must be more than short=4096"):
        LongPplSuite((100,))
    (problem,) = replace(SUITE, lengths=(900, 5000)).problems(evaluation)
    assert "beyond the longest window of the models, 2048" in problem
    (problem,) = replace(SUITE, lengths=None, short=10_000).problems(evaluation)
    assert "below all of" in problem
    none = replace(SUITE, lengths=(900,), gain=50.0)
    with pytest.raises(EvaluationError, match="none of 200 tokens is a key token"):
        none.run(evaluation)
    without = replace(evaluation, candidates=evaluation.candidates[1:])
    with pytest.raises(EvaluationError, match="no native model to choose key tokens with"):
        SUITE.run(without)
