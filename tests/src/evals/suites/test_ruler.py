"""RULER on the tiny model and own text: figures, failures, cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.data.config import TextFiles
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler.loading import MaterialConfig
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.suites.ruler import RulerSuite
from src.results import RulerResults, parse

NATIVE, SCALED = 1024, 2048  # the windows of the models in conftest.py
TASKS = ("fwe", "qa_squad")


@pytest.fixture
def suite(material_config: MaterialConfig) -> RulerSuite:
    return RulerSuite(
        lengths=(NATIVE, SCALED),
        tasks=TASKS,
        samples=2,
        material=material_config,
        retrieval=RetrievalConfig(chunk_tokens=100),
        resamples=50,
    )


def record_of(suite: RulerSuite, evaluation: Evaluation) -> RulerResults:
    """The record as it is read from its file."""
    record = suite.run(evaluation).record
    assert record is not None
    read = parse(json.dumps(record.plain(), allow_nan=False), RulerResults)
    assert read == record
    assert read is not None
    return read


def test_everything_is_answered_within_the_windows(
    evaluation: Evaluation, suite: RulerSuite
) -> None:
    suite = replace(suite, samples=(1, 2))
    record = record_of(suite, evaluation)
    assert not record.failures
    by_name = {model.name: model for model in record.models}
    assert {name: model.role for name, model in by_name.items()} == {
        "native": "native",
        "scaled": "scaled",
        "after ard": "final",
        "native + BM25": "retrieval",
    }
    assert set(by_name["native"].by_length) == {NATIVE}
    for name in ("scaled", "after ard", "native + BM25"):
        model = by_name[name]
        assert set(model.by_length) == {NATIVE, SCALED}
        assert set(model.results) == {f"ruler_{t}_{n}" for t in TASKS for n in (NATIVE, SCALED)}
        for task, result in model.results.items():
            assert 0 <= result.value <= 1
            assert result.n == (1 if task.endswith(f"_{NATIVE}") else 2)
    assert [m.name for m in record.students if m.scores.tasks] == ["after ard", "native + BM25"]
    tables = {table.name: table for table in suite.tables(record)}
    assert set(tables) == {"ruler", f"ruler_{NATIVE}", f"ruler_{SCALED}"}
    assert tables["ruler"].rows[0][2] is None
    assert all(table.cells(row) for table in tables.values() for row in table.rows)
    assert all(isinstance(value, float) for value in suite.summary(record).values())
    assert f"eval/scaled/long/ruler/{SCALED}" in suite.summary(record)
    items = suite.run(evaluation).items
    lines = [i for i in items if i["model"] == "scaled" and i["task"] == "ruler_fwe_2048"]
    assert [line["item"] for line in lines] == [0, 1]
    assert len(lines[0]["outputs"]) == 3


def test_what_has_been_answered_is_not_asked_again(
    evaluation: Evaluation, suite: RulerSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = suite.run(evaluation)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("src.evals.suite.load_model", refuse)
    again = suite.run(evaluation)
    assert again.record == first.record
    assert again.items == first.items


def test_answers_of_fused_kernels_are_others_and_say_so(
    evaluation: Evaluation, suite: RulerSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = replace(suite, lengths=(NATIVE,), tasks=("fwe",), samples=1, retrieval=None)
    assert record_of(suite, evaluation).fused_kernels is False
    entries = [*evaluation.cache.folder.rglob("*.gz")]
    fused: list[bool] = []

    def answers(*args: Any, **options: Any) -> list[str]:
        fused.append(options["fused"])
        return ["an answer"]

    monkeypatch.setattr("src.evals.generation.continued", answers)
    assert record_of(suite, replace(evaluation, fused=True)).fused_kernels is True
    assert fused == [True] * 3
    assert len([*evaluation.cache.folder.rglob("*.gz")]) == 2 * len(entries) == 6
    record_of(suite, evaluation)
    assert len(fused) == 3


def test_one_task_that_fails_leaves_the_others(
    evaluation: Evaluation, suite: RulerSuite, material_config: MaterialConfig, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"data": [')
    chosen = replace(
        suite,
        lengths=(NATIVE, 65_536),
        tasks=("cwe", "fwe", "qa_squad", "qa_hotpot"),
        samples=1,
        material=replace(material_config, squad=str(broken)),
    )
    record = record_of(chosen, evaluation)
    assert list(record.models[0].results) == [f"ruler_fwe_{NATIVE}"]
    expected = {
        f"ruler_cwe_{NATIVE}": "choose a longer length, or leave the task out",
        f"ruler_qa_squad_{NATIVE}": "not squad's own JSON",
        f"ruler_qa_hotpot_{NATIVE}": "hotpotqa=FILE",
        "length 65536": "beyond the longest window of the models, 2048",
    }
    assert set(record.failures) == set(expected)
    for what, message in expected.items():
        assert message in record.failures[what]
        assert "\n" not in record.failures[what]
    problems = "\n".join(chosen.problems(evaluation))
    assert all(message in problems for message in expected.values())


def test_means_over_different_tasks_say_so(evaluation: Evaluation, suite: RulerSuite) -> None:
    record = record_of(replace(suite, samples=1), evaluation)
    notes = RulerSuite.tables(record)[0].notes
    assert not any("different tasks" in note for note in notes)
    *others, last = record.models
    mean = last.by_length[SCALED].model_copy(update={"tasks": (f"ruler_fwe_{SCALED}",)})
    cut = last.model_copy(update={"by_length": {**last.by_length, SCALED: mean}})
    notes = RulerSuite.tables(record.model_copy(update={"models": (*others, cut)}))[0].notes
    assert notes[-1] == (
        "The means are over different tasks. Tasks of "
        f"native, scaled, after ard, native + BM25 at {NATIVE} tokens: 2; "
        f"scaled, after ard at {SCALED} tokens: 2; native + BM25 at {SCALED} tokens: 1."
    )


def test_a_misspelt_task_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ValueError, match=r"tasks=\['cwe', 'niah_singel_1'\]: .* 'niah_single_1'"):
        RulerSuite(tasks=("cwe", "niah_singel_1"))


def test_samples_by_length_need_the_lengths() -> None:
    for lengths in (None, (NATIVE,)):
        with pytest.raises(ValueError, match="give one number, or `lengths` beside it"):
            RulerSuite(lengths=lengths, samples=(1, 2))


def test_nothing_to_ask_is_an_error(evaluation: Evaluation) -> None:
    with pytest.raises(EvaluationError, match="beyond the longest window"):
        RulerSuite(lengths=(9999,), tasks=("fwe",), samples=1).run(evaluation)


def test_a_window_below_all_default_lengths_is_named(evaluation: Evaluation) -> None:
    suite = RulerSuite(tasks=("fwe",), samples=1)
    with pytest.raises(
        EvaluationError, match=r"window of the models, 2048, is below all of \[4096"
    ):
        suite.run(evaluation)
    (problem,) = suite.problems(evaluation)
    assert "set eval.SUITE.lengths (eval.long.lengths with eval=long) to" in problem


def test_a_model_that_has_diverged_is_named(
    evaluation: Evaluation, suite: RulerSuite, diverge: Callable[[Candidate], Candidate]
) -> None:
    _, scaled, trained = evaluation.candidates
    asked = replace(evaluation, candidates=(scaled, diverge(trained)))
    record = record_of(replace(suite, lengths=(NATIVE,)), asked)
    assert record.failures.keys() == {"after ard"}
    assert "the model's logits are not finite" in record.failures["after ard"]
    assert [model.name for model in record.models] == ["scaled"]


def test_a_limit_is_marked(evaluation: Evaluation, suite: RulerSuite) -> None:
    chosen = replace(suite, lengths=(NATIVE,), limit=1)
    record = record_of(chosen, evaluation)
    assert record.limit == 1
    for model in record.models:
        for result in model.results.values():
            assert (result.n, result.stderr) == (1, None)
        assert all(mean.stderr is None for mean in model.by_length.values())
    for table in chosen.tables(record):
        assert "limit=1" in table.title
        assert table.name.endswith("_limit_1")
    assert all("/long@limit1/" in name for name in chosen.summary(record))


def test_what_is_named_twice_is_asked_once(evaluation: Evaluation, suite: RulerSuite) -> None:
    twice = replace(suite, lengths=(NATIVE,), tasks=("fwe", "fwe"), samples=1)
    assert list(record_of(twice, evaluation).models[0].results) == [f"ruler_fwe_{NATIVE}"]


def test_prose_of_ones_own_is_read(
    evaluation: Evaluation, suite: RulerSuite, material_config: MaterialConfig
) -> None:
    missing = replace(material_config, prose=TextFiles("files", ("no/such/file.txt",)))
    chosen = replace(suite, lengths=(NATIVE,), tasks=("niah_single_2",), material=missing)
    (problem,) = chosen.problems(evaluation)
    assert "no/such/file.txt" in problem
