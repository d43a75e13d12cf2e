"""Scores of answers that lm-eval has no metric for, one item at a time."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from src.evals.sandbox import Kind, runs

_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def f1(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Token F1 and exact match against the best reference, as in SQuAD's own script."""
    answered = normalized(results[0])
    pairs = [(answered, normalized(answer)) for answer in doc["answers"]]
    return {
        "f1": max(_token_f1(*pair) for pair in pairs),
        "exact_match": max(float(a == b) for a, b in pairs),
    }


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and repeated blanks."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _token_f1(given: str, wanted: str) -> float:
    mine, theirs = given.split(), wanted.split()
    if not mine or not theirs:
        return float(mine == theirs)
    common = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * common / (len(mine) + len(theirs))


def last_number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last number of the answer is the right one."""
    numbers = _NUMBER.findall(results[0])
    last = numbers[-1].replace(",", "").rstrip(".") if numbers else ""
    return {"exact_match": float(last == doc["short_answer"].replace(",", ""))}


def bits_per_byte(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """Log-likelihood of the reference answer, in nats, and its length in bytes."""
    loglikelihood, _ = results[0]
    return {"bits_per_byte": (loglikelihood, len(doc["gold"].encode()))}


def passes_humaneval(
    doc: Mapping[str, Any], results: Sequence[str], kind: Kind | None = None
) -> dict[str, float]:
    """Whether the prompt's function, completed by the model, passes the tests."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"exact_match": float(runs(f"{doc['prompt']}{results[0]}\n", tests, kind=kind))}


def passes_mbpp(
    doc: Mapping[str, Any], results: Sequence[str], kind: Kind | None = None
) -> dict[str, float]:
    """Whether the written function passes the tests."""
    program = f"{results[0]}\n{doc['test_setup_code']}\n"
    return {"exact_match": float(runs(program, "\n".join(doc["test_list"]), kind=kind))}


SCORERS: dict[str, Callable[..., dict[str, Any]]] = {
    scorer.__name__: scorer
    for scorer in (f1, last_number, bits_per_byte, passes_humaneval, passes_mbpp)
}
