"""A RULER sample, and its storage: one JSON object per line."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from src.evals.suite import EvaluationError

Match = Literal["all", "part"]


class RulerError(EvaluationError):
    """Samples that cannot be made or read; the message names the remedy."""


@dataclass(frozen=True)
class Sample:
    """One prompt and its reference answers.

    Attributes:
        head, context, tail: the prompt in three parts, to be joined without a separator. A
            retriever chooses from the context. Head and tail hold the instruction, a worked example
            if the task has one, the question and the beginning of the answer.
    """

    task: str  # RULER's name of the task
    length: int  # target, in tokens: prompt and tokens to generate together, as RULER counts
    index: int  # number within task and length
    head: str
    context: str
    tail: str
    query: str  # the question, for a retriever
    outputs: tuple[str, ...]  # reference answers
    match: Match  # `all` scores the share of `outputs` found in the answer, `part` whether any is
    prompt_tokens: int  # of the whole prompt, special tokens included
    max_new_tokens: int  # tokens to generate
    depth: float | None = None  # of the needle in percent of the context, if the task sets it

    @property
    def prompt(self) -> str:
        """The whole text that is given to the model."""
        return self.head + self.context + self.tail

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer, to be compared with `length`."""
        return self.prompt_tokens + self.max_new_tokens


def stream(*parts: object) -> random.Random:
    """A random stream for `parts`: the same for equal parts on every machine."""
    name = "/".join(str(part) for part in parts)
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def different(draw: Callable[[], str], number: int) -> list[str]:
    """So many different texts, in the order in which they were drawn."""
    drawn: dict[str, None] = {}
    while len(drawn) < number:
        drawn[draw()] = None
    return list(drawn)


def dump(samples: Iterable[Sample]) -> str:
    """Samples as JSON lines, with keys in a fixed order and characters beyond ASCII escaped.

    Each line has the hash of its content, so that a changed one is noticed.
    """
    plain = (asdict(sample) for sample in samples)
    return "".join(json.dumps(fields | {_SEAL: _seal(fields)}) + "\n" for fields in plain)


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 of samples, whatever else their lines hold."""
    lines = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples)
    return hashlib.sha256(lines.encode()).hexdigest()


_SEAL = "sha256"


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def parse(lines: Sequence[str], name: str) -> list[Sample]:
    """Samples from JSON lines; raises RulerError if a line is damaged, with `name` for the file."""
    samples = []
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            if fields.pop(_SEAL) != _seal(fields):
                raise ValueError("its content and its SHA-256 differ")
            samples.append(Sample(**fields | {"outputs": tuple(fields["outputs"])}))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RulerError(f"{name}, line {number}, is not a RULER sample ({error})") from error
    return samples
