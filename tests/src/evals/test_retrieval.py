"""Chunks, their ranking, and prompts that fit."""

from __future__ import annotations

from typing import Any

import pytest

from src.evals.retrieval import (
    GAP,
    RetrievalConfig,
    chunks_of,
    ranked,
    retrieve,
    shortened,
)
from src.evals.ruler.material import Material
from src.evals.ruler.tasks import samples_of
from src.evals.suite import EvaluationError

CONFIG = RetrievalConfig(chunk_tokens=120)


def test_chunks_are_the_text_cut_at_ends_of_sentences(byte_tokenizer: Any, story: Any) -> None:
    text = "\n".join(story) + "x" * 200 + " end"
    chunks = chunks_of(byte_tokenizer, text, 60)
    assert "".join(chunks) == text
    assert all(chunk[-1].isspace() for chunk in chunks[:-1])
    assert max(len(c) for c in chunks if "x" * 50 not in c) <= 80
    for sentence in story:
        assert len(sentence) >= 40 or any(sentence in chunk for chunk in chunks)
    assert chunks_of(byte_tokenizer, "", 40) == []


def test_the_chunk_with_the_words_of_the_question_comes_first() -> None:
    chunks = ["the grass is green ", "a glove lay on the beach ", "nobody said a word "]
    assert ranked(chunks, "whose glove was it?")[0] == 1
    assert ranked(chunks, "the of and") == [0, 1, 2]
    assert ranked(chunks, "zebra") == [0, 1, 2]


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "niah_single_2"])
def test_needles_are_found_in_a_quarter_of_the_window(
    name: str, byte_tokenizer: Any, material: Material
) -> None:
    for sample in samples_of(
        name, 4096, range(3), seed=1, tokenizer=byte_tokenizer, material=material
    ):
        short = shortened(byte_tokenizer, sample, 1024, CONFIG)
        assert len(byte_tokenizer(short.prompt)["input_ids"]) == short.prompt_tokens
        assert short.tokens <= 1024
        assert short.tokens > 900
        assert sample.outputs[0] in short.context
        assert (short.head, short.tail, short.outputs) == (
            sample.head,
            sample.tail,
            sample.outputs,
        )
        pieces = short.context.split(GAP)
        places = [sample.context.find(piece) for piece in pieces if piece]
        assert -1 not in places


def test_a_prompt_that_fits_stays_as_it_is(byte_tokenizer: Any, material: Material) -> None:
    (sample,) = samples_of(
        "niah_single_2", 2048, range(1), seed=1, tokenizer=byte_tokenizer, material=material
    )
    assert shortened(byte_tokenizer, sample, 2048, CONFIG) == sample
    assert shortened(byte_tokenizer, sample, 1024, CONFIG) != sample


def test_a_question_that_does_not_fit_is_refused(byte_tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="more than the 10"):
        retrieve(byte_tokenizer, ("long head ", " tail"), "a b c d", "a", room=10, config=CONFIG)
