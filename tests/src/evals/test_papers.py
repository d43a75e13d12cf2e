"""Yes-or-no questions: prompts, cuts, likelihoods."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.evals.papers import (
    CHOICE_ROOM,
    CHOICES,
    PaperError,
    PaperQuestion,
    choice_nll,
    evaluate,
    questions_of,
)

ITEM = {
    "title": "On lamps",
    "abstract": "We look at lamps.",
    "full_text": {
        "section_name": ["Introduction", "Data ::: Oil", " ::: ", None],
        "paragraphs": [["Lamps are old.", "Some are new."], [""], ["We end here."], [""]],
    },
    "question": "Do they look at lamps?",
    "gold": 0,
}


def test_a_paper_is_title_abstract_and_sections() -> None:
    (item,) = questions_of([ITEM])
    assert item.paper == (
        "On lamps\n\nWe look at lamps.\n\nIntroduction\n\nLamps are old.\n\nSome are new.\n\n"
        "Data ::: Oil\n\nWe end here."
    )
    assert item.tail == "\n\nQuestion: Do they look at lamps?\nAnswer:"


def test_answers_are_the_likelier_choice_after_the_whole_prompt(
    small_llama: Any, byte_tokenizer: Any
) -> None:
    items = questions_of([ITEM, ITEM | {"question": "Is it long?", "gold": 1}])
    found = evaluate(small_llama, byte_tokenizer, items, window=512, name="x")
    for item, result in zip(items, found, strict=True):
        expected = []
        for choice in CHOICES:
            ids = byte_tokenizer(item.paper + item.tail + choice)["input_ids"]
            with torch.no_grad():
                logits = small_llama(input_ids=torch.tensor([ids])).logits[0].double()
            nll = -torch.log_softmax(logits, -1)[range(len(ids) - 1), ids[1:]]
            expected.append(nll[-len(choice) :].sum().item())
        assert result["nll"] == pytest.approx(expected, rel=1e-4)
        assert result["answer"] == expected.index(min(expected))
        assert result["gold"] == item.gold
        assert result["cut"] == 0
        assert result["tokens"] == len(byte_tokenizer(item.paper + item.tail)["input_ids"])


def test_a_long_paper_loses_its_end_and_says_so(small_llama: Any, byte_tokenizer: Any) -> None:
    item = PaperQuestion("lamp " * 100, "Why?", 1)
    (result,) = evaluate(small_llama, byte_tokenizer, [item], window=100, name="x")
    assert result["tokens"] == 500 + len(item.tail)
    assert result["cut"] == 500 - (100 - len(item.tail) - CHOICE_ROOM)
    with pytest.raises(PaperError, match="no room"):
        evaluate(small_llama, byte_tokenizer, [item], window=20, name="x")


def test_rows_of_different_lengths_do_not_disturb_each_other(small_llama: Any) -> None:
    rows = [([5, 6, 7, 8], 2), ([5, 6, 9], 1)]
    together = choice_nll(small_llama, rows)
    alone = [choice_nll(small_llama, [row])[0] for row in rows]
    assert together == pytest.approx(alone, rel=1e-5)


def test_rows_that_differ_in_their_last_token_are_read_once(
    small_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [([5, 6, 7, 8], 1), ([5, 6, 7, 9], 1), ([5, 6, 7, 9, 4], 2)]
    alone = [choice_nll(small_llama, [row])[0] for row in rows]
    read = []
    decoder = small_llama.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(
        decoder, "forward", lambda **given: read.append(given["input_ids"]) or forward(**given)
    )
    assert choice_nll(small_llama, rows) == pytest.approx(alone, rel=1e-5)
    assert [ids.tolist() for ids in read] == [[[5, 6, 7, 0], [5, 6, 7, 9]]]
