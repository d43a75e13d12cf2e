"""Yes-or-no questions: prompts, cuts, likelihoods, and the suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.evals.losses import choice_nll
from src.evals.retrieval import RetrievalConfig
from src.evals.scoring import Reader, Session
from src.evals.suite import Evaluation, EvaluationError
from src.evals.suites import papers
from src.evals.suites.papers import (
    CHOICE_ROOM,
    CHOICES,
    PaperQuestion,
    PapersSuite,
    questions_of,
)
from src.results import PapersResults, parse

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


def evaluate(
    network: Any, tokenizer: Any, items: Sequence[PaperQuestion], window: int
) -> list[dict[str, Any]]:
    """Values of the items, asked of a loaded model."""
    candidate = SimpleNamespace(name="x", window=window)
    evaluation = SimpleNamespace(tokenizer=tokenizer, rank=0, size=1, share=list)
    reader = Reader(candidate)  # type: ignore[arg-type]
    return papers._values(items, Session(reader, network, evaluation))  # type: ignore[arg-type]


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
    found = evaluate(small_llama, byte_tokenizer, items, 512)
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
    (result,) = evaluate(small_llama, byte_tokenizer, [item], 100)
    assert result["tokens"] == 500 + len(item.tail)
    assert result["cut"] == 500 - (100 - len(item.tail) - CHOICE_ROOM)
    with pytest.raises(EvaluationError, match="no room"):
        evaluate(small_llama, byte_tokenizer, [item], 20)


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


def test_papers_are_cut_or_retrieved_from_and_counted(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        PaperQuestion("The lamp is red. " * 10, "Is the lamp red?", 0),
        PaperQuestion("The lamp is red. " * 100, "Is the lamp blue?", 1),
        PaperQuestion("No lamp is here. " * 20, "Is a lamp here?", 1),
    ]
    monkeypatch.setattr(PapersSuite, "_questions", lambda self, failures: items)
    suite = PapersSuite(retrieval=RetrievalConfig(chunk_tokens=100), resamples=50)
    result = suite.run(evaluation)
    assert result.record is not None
    record = parse(json.dumps(result.record.plain(), allow_nan=False), PapersResults)
    assert record == result.record
    assert record is not None
    by_name = {model.name: model.results["qasper_yesno"] for model in record.models}
    assert by_name["native"].truncated == 1
    assert by_name["scaled"].truncated == 0
    assert by_name["native + BM25"].truncated == 0
    assert by_name["scaled"].chance == pytest.approx(2 / 3)
    (table,) = suite.tables(record)
    assert "the commoner answer alone: 0.667" in table.notes
    assert suite.summary(record)["eval/scaled/long/qasper_yesno"] == by_name["scaled"].value
    assert len(result.items) == 4 * len(items)


def test_a_set_that_cannot_be_had_is_named(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise EvaluationError(f"{name} cannot be had")

    monkeypatch.setattr(papers.packaged, "documents", missing)
    assert PapersSuite().problems(evaluation) == ["qasper_yesno: qasper_yesno cannot be had"]
    with pytest.raises(EvaluationError, match="qasper_yesno cannot be had"):
        PapersSuite().run(evaluation)
