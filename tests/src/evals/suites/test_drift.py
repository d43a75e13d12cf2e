"""The drift suite on the tiny model: what is compared with what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.drift import DriftSuite
from src.results import DriftResults, parse

SUITE = DriftSuite(length=128, segments=2, edges=(0, 1, 8, 64))


def test_the_scaled_model_has_drifted_and_the_suite_says_where(evaluation: Evaluation) -> None:
    found = SUITE.run(evaluation).record
    assert found is not None
    record = parse(json.dumps(found.plain(), allow_nan=False), DriftResults)
    assert record is not None
    scaled, trained = record.models
    assert (scaled.name, trained.name) == ("scaled", "after ard")
    assert record.edges == (0, 1, 8, 64)
    for relation in ("qq", "kk", "vv"):
        assert len(scaled.relation_kl[relation]) == 2
        assert len(scaled.relation_kl_by_position[relation]) == 4
    # Only positions differ, so the first layer's values are those of the native model, and the
    # first token, which sees itself alone, has nothing to differ in.
    assert scaled.relation_kl["vv"][0] == pytest.approx(0, abs=1e-6)
    assert scaled.relation_kl["qq"][0] > 1e-4
    assert scaled.relation_kl_by_position["qq"][0] == pytest.approx(0, abs=1e-6)
    # Other weights are further away than another scaling.
    assert trained.logit_kl > scaled.logit_kl > 0
    assert trained.hidden_cosine[-1] < scaled.hidden_cosine[-1]
    (table,) = SUITE.tables(record)
    assert [row[0] for row in table.rows] == ["scaled", "after ard"]
    assert all(table.cells(row) for row in table.rows)
    assert SUITE.summary(record)["eval/scaled/drift/logit_kl"] == scaled.logit_kl


def test_a_second_run_is_read_from_the_cache(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SUITE.run(evaluation)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("src.evals.suite.load_model", refuse)
    assert SUITE.run(evaluation).record == first.record


def test_what_cannot_be_compared_is_refused(evaluation: Evaluation) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    with pytest.raises(EvaluationError, match="give run=RUN_DIR"):
        SUITE.run(alone)
    beyond = replace(SUITE, length=4096)
    assert "longer than the native window" in beyond.problems(evaluation)[0]
    longest = replace(SUITE, length=1024, segments=1)
    assert not SUITE.problems(evaluation)
    few = replace(evaluation, data=replace(evaluation.data, held_out=()))
    assert "hold out longer" in longest.problems(few)[0]
    assert SUITE.run(replace(evaluation, rank=1, size=2)).record is None


def test_a_model_that_has_diverged_is_named(
    evaluation: Evaluation, diverge: Callable[[Candidate], Candidate]
) -> None:
    native, scaled, trained = evaluation.candidates
    found = SUITE.run(replace(evaluation, candidates=(native, scaled, diverge(trained)))).record
    assert found is not None
    assert found.failures.keys() == {"after ard"}
    assert "the model's logits are not finite" in found.failures["after ard"]
    assert [m.name for m in found.models] == ["scaled"]
