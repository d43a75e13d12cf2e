"""What results of the short suite are cached under."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.evals import measuring
from src.evals.cache import ResultCache
from src.evals.preparing import Prepared, Questions
from src.evals.suite import Candidate, Evaluation, EvaluationError
from src.evals.tasks import TaskDefinition, definition
from src.settings.config import RunConfig

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "short"


def _documents(name: str) -> list[dict[str, Any]]:
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_other_documents_of_the_hub_are_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    served = _documents("piqa")
    monkeypatch.setattr(TaskDefinition, "build_from_hub", lambda task: task.build(served))
    first = Prepared(definition("piqa"), None).digest
    assert Prepared(definition("piqa"), None).digest == first
    served[0] = served[0] | {"goal": "Something else"}
    assert Prepared(definition("piqa"), None).digest != first


def test_a_hub_that_cannot_be_reached_fails_the_task_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(task: TaskDefinition) -> None:
        raise EvaluationError(f"{task.name} cannot get its data")

    monkeypatch.setattr(TaskDefinition, "build_from_hub", unreachable)
    evaluation: Any = Evaluation((), None, "cpu", "float32", ResultCache(None))  # type: ignore[arg-type]
    asked = Questions(("piqa",), "hub", None, 2, 64, 64, execute_code=False)
    assert measuring.measure(evaluation, asked).failures == {"piqa": "piqa cannot get its data"}


def test_the_key_holds_tokenizer_and_for_written_answers_what_ends_them(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = compose_run(*tiny_overrides)
    candidate = Candidate("native", "native", own.model)
    evaluation = Evaluation((candidate,), own.data, "cpu", "float32", ResultCache(None))
    questions = Questions(("piqa", "gsm8k"), "folder", str(FIXTURES), 2, 64, 64, execute_code=False)
    chosen = Prepared(definition("piqa"), _documents("piqa"))
    written = Prepared(definition("gsm8k"), _documents("gsm8k"))

    def keys(whole: Evaluation) -> list[dict[str, Any]]:
        # A copy, since a candidate remembers its digests.
        fresh = replace(candidate)
        return [measuring._key(whole, questions, fresh, task) for task in (chosen, written)]

    before = keys(evaluation)
    monkeypatch.setattr(Candidate, "generation_digest", "other ends")
    after = keys(evaluation)
    assert after[0] == before[0]
    assert after[1] != before[1]
    changed = replace(evaluation)
    changed.tokenizer.eos_token = "a"
    assert keys(changed)[0] != after[0]
