"""Worked examples: which are shown, that none is asked, and that all items see the same."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from src.evals.halves import Split
from src.evals.preparing import prepare
from src.evals.suite import Evaluation
from src.evals.suites.few_shot import FewShotSuite
from src.evals.suites.short import ShortSuite
from src.results import FewShotResults, parse

FIXTURES = str(Path(__file__).resolve().parents[3] / "fixtures" / "short")


def suite(*tasks: str, folder: str = FIXTURES, **settings: Any) -> FewShotSuite:
    return FewShotSuite(tasks, "folder", folder, resamples=100, **settings)


def asked(of: ShortSuite) -> list[tuple[dict[str, Any], str]]:
    """Every item of a suite's only task with its prompt."""
    prepared, failures = prepare(of)
    assert not failures
    found: list[tuple[dict[str, Any], str]] = []
    for task in prepared[0].tasks.values():
        task.build_all_requests()
        found += {i.doc_id: (i.doc, i.args[0]) for i in task.instances}.values()
    return found


def written(folder: Path, number: int) -> str:
    """ARC-Easy's items, so many; an item's question is its place."""
    choices = {"text": ["yes", "no"], "label": ["A", "B"]}
    lines = [{"question": f"q{i}", "choices": choices, "answerKey": "A"} for i in range(number)]
    (folder / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


@pytest.mark.parametrize("split", ["all", "validation", "test"])
def test_the_last_items_are_shown_and_not_asked(split: Split, tmp_path: Path) -> None:
    of = suite("arc_easy", folder=written(tmp_path, 40), shots=3, split=split)
    shown = "".join(f"Question: q{i}\nAnswer: yes\n\n" for i in (37, 38, 39))
    found = asked(of)
    halves = {"all": range(37), "validation": [*range(16), *range(32, 37)], "test": range(16, 32)}
    assert [item["question"] for item, _ in found] == [f"q{i}" for i in halves[split]]
    for item, prompt in found:
        assert prompt == f"{shown}Question: {item['question']}\nAnswer:"


def test_examples_of_the_task_are_shown_where_it_has_some() -> None:
    few, many = (asked(suite("mmlu", shots=n)) for n in (1, 2))
    own = asked(ShortSuite(("mmlu",), "folder", FIXTURES))
    assert [item for item, _ in few] == [item for item, _ in many] == [item for item, _ in own]
    assert all(len(a) < len(b) for (_, a), (_, b) in zip(few, many, strict=True))
    assert all(
        item["question"] not in prompt.rsplit(item["question"], 1)[0] for item, prompt in few
    )


@pytest.mark.parametrize("task", ["hellaswag", "piqa", "sciq", "lambada", "triviaqa", "winogrande"])
def test_every_kind_of_task_can_show_one(task: str) -> None:
    for item, prompt in asked(suite(task, shots=1)):
        assert item.get("split") != "examples"
        assert "\n\n" in prompt


@pytest.mark.parametrize(
    ("task", "shots", "message"),
    [
        ("squad", 1, "the prompts of 'squad' hold worked examples already; leave it out"),
        ("gsm8k_bpb", 1, "the prompts of 'gsm8k_bpb' hold worked examples already; leave it out"),
        ("arc_easy", 6, "'arc_easy' has 5 examples to show; give at most that, or leave it out"),
        ("mmlu", 9, r"'mmlu' has \d examples to show; give at most that, or leave it out"),
    ],
)
def test_examples_that_are_not_there_are_refused(
    task: str, shots: int, message: str, evaluation: Evaluation
) -> None:
    [problem] = suite(task, shots=shots).problems(evaluation)
    key = f"eval.few_shot.tasks: eval.few_shot.shots={shots}: "
    assert re.fullmatch(re.escape(key) + message, problem)


def test_results_say_how_many_and_are_cached_by_that(evaluation: Evaluation) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    records: list[FewShotResults] = []
    for shots in (1, 2, 1):
        outcome = suite("arc_easy", "lambada", shots=shots).run(alone)
        assert outcome.record is not None
        record = parse(json.dumps(outcome.record.plain()), FewShotResults)
        assert record is not None
        assert (record.shots, record.suite) == (shots, "few_shot")
        assert record.models[0].lm_eval["arc_easy"]["n-shot"] == shots
        records.append(record)
    one, two, again = ({t: r.value for t, r in rec.models[0].results.items()} for rec in records)
    assert one == again
    assert one.keys() == two.keys()
    assert evaluation.cache.folder is not None
    kept = [file for file in evaluation.cache.folder.rglob("*") if file.is_file()]
    assert len(kept) == 4, "an entry for each task and number of examples"
