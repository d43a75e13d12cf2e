"""LongBench v2 and BABILong: lm-eval's own task files on own texts, asked of the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import datasets
import pytest

from src.evals import measuring
from src.evals.preparing import Questions, prepare
from src.evals.suite import Evaluation, EvaluationError
from src.evals.suites.long_tasks import LongTasksSuite
from src.evals.tasks import LONG_TASKS, definition
from src.results import LongTasksResults, parse

LENGTHS = ("4k", "8k", "16k", "32k", "64k", "128k")
CHOICES = ("in the kitchen", "in the hall", "at sea", "at home")


@pytest.fixture
def asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub with three items of each task; what was asked of it, in order."""
    asked: list[tuple[Any, ...]] = []

    def load(path: str, name: str | None = None, split: str | None = None, **_: Any) -> Any:
        asked.append((path, name, split))
        words = " ".join(f"word{i}" for i in range(160))
        if split is not None:
            told = {"question": "Where is Mary?", "target": "kitchen"}
            rows = [{"input": f"{words} Mary went to kitchen {i}."} | told for i in range(3)]
            return datasets.Dataset.from_list(rows)
        told = {"question": "Where is Mary?", "choices": list(CHOICES)}
        rows = [{"context": f"{i} {words}", "answer": "ABCD"[i]} | told for i in range(3)]
        return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_tasks_are_lm_evals_own(asked_of_the_hub: list[tuple[Any, ...]]) -> None:
    assert set(LONG_TASKS) == {"longbench2", *(f"babilong_{length}" for length in LENGTHS)}
    prepared, failures = prepare(Questions(("longbench2", "babilong_16k"), "hub"))
    assert not failures
    longbench, babilong = (task.tasks for task in prepared)
    assert len(longbench) == 20
    assert all(name.startswith("longbench2_") for name in longbench)
    assert list(babilong) == [f"babilong_16k_babilong_qa{i}" for i in range(1, 6)]
    paths = {path for path, _, _ in asked_of_the_hub}
    assert paths == {"recursal/longbench-v2", "RMT-team/babilong-1k-samples"}
    lengths = {(name, split) for path, name, split in asked_of_the_hub if "babilong" in path}
    assert lengths == {("16k", f"qa{i}") for i in range(1, 6)}
    task: Any = longbench["longbench2_code"]
    first = next(iter(task.eval_docs))
    assert "(C) at sea" in task.doc_to_text(first)
    assert task.doc_to_target(first) == "A"
    assert definition("longbench2").chance == 0.25
    assert definition("babilong_16k").chance == 0.0


def test_models_are_asked_and_long_texts_lose_their_middle(
    evaluation: Evaluation,
    asked_of_the_hub: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    suite = LongTasksSuite(("longbench2", "babilong_4k"), limit=1, resamples=100)
    result = suite.run(alone)
    assert isinstance(result.record, LongTasksResults)
    record = parse(json.dumps(result.record.plain(), allow_nan=False), LongTasksResults)
    assert record == result.record
    assert record is not None
    assert not record.failures
    assert record.source == "hub"
    for model in record.models:
        assert {task: r.n for task, r in model.results.items()} == {
            "longbench2": 20,
            "babilong_4k": 5,
        }
        assert set(model.categories) == {"Long text"}
        # A text of 160 words is longer than the window of 1024 bytes.
        assert model.lm_eval["longbench2_agent_history"]["texts_cut"] == 1
        assert model.lm_eval["babilong_4k_babilong_qa1"]["texts_cut"] == 5
    assert {table.name for table in suite.tables(record)} == {"long_tasks_limit_1"}
    assert all("/long_tasks@limit1/" in name for name in suite.summary(record))
    known = len(asked_of_the_hub)
    assert suite.run(alone).record is not None
    assert len(asked_of_the_hub) > known, "the hub's documents are part of the cache's key"
    # As for models whose scores mean something.
    monkeypatch.setattr(measuring, "_only_random", lambda _: False)
    whole = replace(suite, cut_middle=False, tasks=("longbench2",))
    with pytest.raises(EvaluationError, match="does not fit the model's window of 1024"):
        whole.run(alone)


def test_other_sources_have_no_such_items() -> None:
    _, failures = prepare(Questions(("babilong_8k",), "package"))
    assert failures == {
        "babilong_8k": "source=package: only the hub has the items of 'babilong_8k'; give "
        "source=hub"
    }
