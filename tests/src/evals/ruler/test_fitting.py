"""The largest number that fits, for any growth of tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.evals.ruler.fitting import Ruler, most
from src.evals.ruler.sample import RulerError


class Letters:
    """A token for each letter."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text)}


def ruler(budget: int) -> Ruler:
    return Ruler("t", Letters(), budget + 5, 5)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(0, 9), min_size=1, max_size=300),
    budget=st.integers(0, 900),
    base=st.integers(0, 20),
)
def test_nothing_larger_fits(steps: list[int], budget: int, base: int) -> None:
    sizes = [base]
    for step in steps:
        sizes.append(sizes[-1] + step)
    if base > budget:
        with pytest.raises(RulerError, match="choose a longer length"):
            most(lambda n: "x" * sizes[n], ruler(budget), least=0, limit=len(steps))
        return
    found = most(lambda n: "x" * sizes[n], ruler(budget), least=0, limit=len(steps))
    assert found == max(n for n, size in enumerate(sizes) if size <= budget)


def test_few_looks_are_needed_where_tokens_grow_evenly() -> None:
    looks = []

    def build(n: int) -> str:
        looks.append(n)
        return "x" * (7 * n + 100)

    assert most(build, ruler(8000), least=1, limit=100_000) == 1128
    assert len(looks) <= 8
    assert max(looks) < 1300


def test_a_sample_outside_one_percent_is_refused() -> None:
    ruler(995).check(990)
    ruler(995).check(995)
    for tokens in (984, 996):
        with pytest.raises(RulerError, match="cannot be made 1000 tokens long"):
            ruler(995).check(tokens)
