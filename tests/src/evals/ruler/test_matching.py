"""RULER's rules of matching."""

from __future__ import annotations

import pytest

from src.evals.ruler.matching import score


@pytest.mark.parametrize(
    ("answer", "outputs", "match", "expected"),
    [
        (" 123 and 456.", ("123", "456"), "all", 1.0),
        ("123", ("123", "456"), "all", 0.5),
        ("It is the NORTH\x07sea", ("north\nSea",), "all", 1.0),
        ("yes, Oslo", ("Bergen", "oslo"), "part", 1.0),
        ("", ("a",), "part", 0.0),
        ("\n\t", ("a", "b"), "all", 0.0),
    ],
    ids=["all", "half", "case_and_control", "any", "empty", "blank"],
)
def test_scores(answer: str, outputs: tuple[str, ...], match: str, expected: float) -> None:
    assert score(answer, outputs, match) == expected  # type: ignore[arg-type]
