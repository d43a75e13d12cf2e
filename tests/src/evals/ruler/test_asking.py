"""Prompts are tokenized once, and before the model needs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from src.evals.ruler.asking import probe, score
from src.evals.ruler.material import Material
from src.evals.ruler.sample import Match
from src.evals.ruler.tasks import samples_of
from src.evals.scoring import _prepared


class Counted:
    """A tokenizer that notes how many texts it gets."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.calls = tokenizer, []

    def __call__(self, texts: Any, **options: Any) -> Any:
        self.calls.append(len(texts))
        return self.tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def asked(tokenizer: Any, rank: int = 0, retrieval: Any = None) -> Any:
    """A reader and an evaluation."""
    return (
        SimpleNamespace(retrieval=retrieval, window=1024),
        SimpleNamespace(
            tokenizer=tokenizer, rank=rank, size=2, share=lambda items: list(items[rank::2])
        ),
    )


def test_prompts_are_tokenized_once_for_all_readers_of_a_rank(
    byte_tokenizer: Any, material: Material
) -> None:
    samples = list(
        samples_of("fwe", 1024, range(3), seed=0, tokenizer=byte_tokenizer, material=material)
    )
    tokenizer = Counted(byte_tokenizer)
    prepare: Any = probe("fwe", samples, 8192).prepare
    ids = prepare(*asked(tokenizer))
    assert [list(row) for row in ids] == [
        byte_tokenizer(sample.prompt)["input_ids"] for sample in samples[::2]
    ]
    assert prepare(*asked(tokenizer)) is ids
    assert prepare(*asked(tokenizer, retrieval="bm25")) is None
    assert len(prepare(*asked(tokenizer, rank=1))) == 1
    assert tokenizer.calls == [2, 1]


def test_all_probes_are_prepared_by_another_thread_before_they_are_asked() -> None:
    order: list[str] = []
    probes: list[Any] = [
        SimpleNamespace(prepare=lambda *_, name=name: order.append(f"prepare {name}"))
        for name in "abc"
    ]
    probes.append(SimpleNamespace(prepare=None))
    for number, _ in enumerate(_prepared(probes, *asked(None))):
        order.append(f"ask {number}")
    prepared = [f"prepare {name}" for name in "abc"]
    assert sorted(order) == [*(f"ask {i}" for i in range(4)), *prepared]
    assert [name for name in order if name in prepared] == prepared


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
def test_scores(answer: str, outputs: tuple[str, ...], match: Match, expected: float) -> None:
    assert score(answer, outputs, match) == expected
