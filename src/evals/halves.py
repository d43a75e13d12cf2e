"""The halves of evaluation sets: settings are chosen on one, and results are of the other.

Halves are fixed by the items' places alone, so they are the same on every machine and for every
seed. Items that share a text often stand next to each other: 16 neighbours stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from src.evals.suite import EvaluationError

Split = Literal["all", "validation", "test"]

_NEIGHBOURS = 16
_Item = TypeVar("_Item")


def named(split: Split) -> Literal["validation", "test"] | None:
    """The half as records have it: None for both."""
    return None if split == "all" else split


def places(number: int, split: Split, *, neighbours: int = _NEIGHBOURS) -> list[int]:
    """The places of a half's items among `number` items, ascending; all places of `all`.

    Neighbours are taken in turn, the first ones for validation. Items that do not depend on each
    other need no neighbours (1). Raises EvaluationError if the half is empty.
    """
    if split == "all":
        return list(range(number))
    turn = ("validation", "test").index(split)
    chosen = [i for i in range(number) if i // neighbours % 2 == turn]
    if not chosen:
        raise EvaluationError(
            f"split={split}: of {number} items none is in this half; halves begin after "
            f"{neighbours}: give more items, or split=all"
        )
    return chosen


def half(items: Sequence[_Item], split: Split) -> list[_Item]:
    """A half's items."""
    return [items[i] for i in places(len(items), split)]


def half_of_texts(
    documents: Sequence[tuple[str, np.ndarray]], split: Split
) -> list[tuple[str, np.ndarray]]:
    """Each document's first half of tokens for validation, its second for test."""
    if split == "all":
        return list(documents)
    halves = [(name, np.split(tokens, [len(tokens) // 2])) for name, tokens in documents]
    return [(name, first if split == "validation" else second) for name, (first, second) in halves]


def half_of_task(task: Any, split: Split) -> None:
    """Leave an lm-eval task the half of its own items; examples of other splits stay."""
    if split == "all":
        return
    asked = task.config.test_split if task.has_test_docs() else task.config.validation_split
    documents = task.dataset[asked]
    task.dataset = {**task.dataset, asked: documents.select(places(len(documents), split))}
