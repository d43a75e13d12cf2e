"""Halves share no item, are all together, and are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from src.evals.halves import half, half_of_task, half_of_texts, named, places
from src.evals.preparing import Questions, prepare
from src.evals.suite import EvaluationError
from src.evals.suites.ruler import RulerSuite
from src.settings import strict
from src.settings.config import EvaluateConfig
from tests.conftest import by_default

HALVES = ("validation", "test")


@pytest.mark.parametrize("number", [17, 31, 32, 33, 100, 1000])
def test_halves_are_all_items_once(number: int) -> None:
    validation, test = (places(number, split) for split in HALVES)
    assert sorted(validation + test) == places(number, "all") == list(range(number))
    assert abs(len(validation) - len(test)) <= 16
    assert len({i // 16 for i in validation} & {i // 16 for i in test}) == 0, "neighbours stay"
    longer = places(2 * number, "test")
    assert longer[: len(test)] == test or number % 32, "more items move none"


def test_an_empty_half_is_refused() -> None:
    assert half(list("ab"), "validation") == ["a", "b"]
    with pytest.raises(EvaluationError, match=r"split=test: of 2 items none .* begin after 16"):
        half(list("ab"), "test")
    assert [named(split) for split in ("all", *HALVES)] == [None, *HALVES]


def test_texts_are_cut_in_the_middle() -> None:
    documents = [("a", np.arange(5)), ("b", np.arange(4))]
    first, second = (half_of_texts(documents, split) for split in HALVES)
    for (name, tokens), (_, early), (_, late) in zip(documents, first, second, strict=True):
        assert np.concatenate([early, late]).tolist() == tokens.tolist(), name
    assert half_of_texts(documents, "all") == documents


def test_samples_are_halved_by_their_numbers() -> None:
    samples: list[Any] = [SimpleNamespace(index=i, depth=d) for d in (0, 50) for i in range(5)]
    asked = {split: RulerSuite(split=split)._half(lambda: samples) for split in HALVES}
    assert [s.index for s in asked["validation"]] == [0, 2, 4, 0, 2, 4]
    assert [s.index for s in asked["test"]] == [1, 3, 1, 3]
    assert RulerSuite(limit=7, split="test").number(100) == 14
    assert RulerSuite(limit=7).number(100) == 7
    assert RulerSuite(split="test").number(10) == 10


def test_a_task_asks_its_half_and_keeps_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "split": split,
            "subject": "law",
            "question": f"{split} {i}?",
            "choices": list("abcd"),
            "answer": 0,
        }
        for split, number in (("dev", 5), ("test", 40))
        for i in range(number)
    ]
    monkeypatch.setattr("src.evals.packaged.documents", lambda name: rows)
    asked, examples, digests = {}, {}, set()
    for split in ("all", *HALVES):
        (task,), failures = prepare(Questions(("mmlu",), split=split))  # type: ignore[arg-type]
        assert not failures
        (own,) = task.tasks.values()
        asked[split] = [row["question"] for row in own.eval_docs]
        examples[split] = [row["question"] for row in own.fewshot_docs()]
        digests.add(task.digest)
    assert sorted(asked["validation"] + asked["test"]) == sorted(asked["all"])
    assert asked["validation"][-1] == "test 39?"
    assert examples["all"] == examples["validation"] == examples["test"]
    assert len(examples["all"]) == 5
    assert len(digests) == 3, "the cache keeps halves apart"


def test_a_task_of_validation_items_alone_is_halved_too() -> None:
    from datasets import Dataset

    config = SimpleNamespace(validation_split="dev", test_split=None)
    items = Dataset.from_list([{"n": i} for i in range(40)])
    task = SimpleNamespace(
        config=config, dataset={"dev": items, "train": items}, has_test_docs=lambda: False
    )
    half_of_task(task, "test")
    assert task.dataset["dev"]["n"] == list(range(16, 32))
    assert len(task.dataset["train"]) == 40


@pytest.mark.parametrize(
    "name",
    [
        *("all", "short", "inheritance", "ruler", "needle_depth", "papers", "positions"),
        *("perplexity", "longppl", "long_tasks", "few_shot"),
    ],
)
@by_default(lambda name: name == "all")
def test_one_key_chooses_the_half_of_every_suite(
    compose_plain: Callable[..., dict], name: str
) -> None:
    def halves(*overrides: str) -> dict[str, str]:
        plain = compose_plain("model=tiny", f"eval={name}", *overrides, name="evaluate")
        suites: list[Any] = strict.load_plain(EvaluateConfig, plain).eval.suites()
        return {suite.name: suite.split for suite in suites if suite.name != "drift"}

    chosen = halves("split=test")
    assert set(chosen.values()) == {"test"}
    assert len(chosen) == (7 if name == "all" else 1)
    assert set(halves().values()) == {"all"}
