"""RULER's samples as probes: prompts are answered greedily and scored by their references.

The rules of the score are those of NVIDIA/RULER, scripts/eval (commit c3f5e3b): control characters
become line ends, case does not count.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Annotated, Any, Literal

from pydantic import Field

from src.evals import retrieval
from src.evals.halves import places
from src.evals.probed import ProbeSuite
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler.loading import MATERIAL, MaterialConfig
from src.evals.ruler.sample import Match, Sample, digest
from src.evals.ruler.store import SampleStore
from src.evals.scoring import Count, Probe, Reader, Session, made
from src.evals.seconds import SECONDS
from src.evals.suite import Evaluation
from src.progress import meter

_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class SampleSuite(ProbeSuite):
    """A suite that asks samples. `limit` and `split` are of each task at each length."""

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """In tokens, prompt and answer together; null for 4K, 8K, 16K and 32K, up to the largest window
    of a model."""
    material: MaterialConfig = MATERIAL  # sources of prose, words and questions
    retrieval: RetrievalConfig | None = None
    """How the native model reads prompts longer than its window; null: not at all."""
    seed: Annotated[int, Field(ge=0)] = 0  # of the samples and of the bootstrap
    batch_tokens: Literal["auto"] | Count = "auto"
    """Tokens of a batch of prompts; `auto` fills a GPU's memory."""

    def number(self, samples: int) -> int:
        """How many of these samples are made, so that the asked half has `limit` at most."""
        halves = 1 if self.split == "all" else 2
        return samples if self.limit is None else min(samples, halves * self.limit)

    def store(self, evaluation: Evaluation) -> SampleStore:
        """Where the samples come from."""
        return SampleStore(evaluation.tokenizer, self.material, self.seed)

    def probes_of(
        self, makers: Iterable[tuple[str, Callable[[], list[Sample]]]], failures: dict[str, str]
    ) -> list[Probe]:
        """A probe for each function that makes samples, by its name."""
        halves = made(((name, partial(self._half, make)) for name, make in makers), failures)
        return [probe(name, each, self.batch_tokens) for name, each in halves.items()]

    def _half(self, make: Callable[[], list[Sample]]) -> list[Sample]:
        """The samples that are asked: even numbers for validation, odd ones for test."""
        samples = make()
        number = 1 + max(sample.index for sample in samples)
        kept = set(places(number, self.split, neighbours=1))
        return [sample for sample in samples if sample.index in kept]

    def note(self, item: Sample) -> Mapping[str, Any]:
        """A sample's references and depth."""
        return {"outputs": list(item.outputs), "depth": item.depth}


def probe(name: str, samples: Sequence[Sample], batch_tokens: int | Literal["auto"]) -> Probe:
    """A probe with samples, all of one length.

    Its values are `score`, 0 to 1, and `answer`, which may be cut once it holds all references.
    """
    tokens = _Tokens(samples)
    return Probe(
        name,
        key={"samples": digest(samples)},
        values=partial(_values, name, samples, batch_tokens, tokens),
        prepare=tokens.of,
        length=samples[0].length,
        generates=True,
        items=samples,
    )


class _Tokens:
    """Token ids of samples, made once for all readers that read them whole."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._lock = Lock()
        self._ids: dict[tuple[int, int], list[array[int]]] = {}

    def of(self, reader: Reader, evaluation: Evaluation) -> list[array[int]] | None:
        """The ids of the process's share; None if a reader's prompts differ, by retrieval."""
        if reader.retrieval is not None:
            return None
        share = evaluation.rank, evaluation.size
        with self._lock:
            if share not in self._ids:
                self._ids[share] = _encoded(evaluation.share(self._samples), reader, evaluation)
            return self._ids[share]


def _encoded(samples: Sequence[Sample], reader: Reader, evaluation: Evaluation) -> list[array[int]]:
    from src.evals.generation import encode

    encoded = encode(
        evaluation.tokenizer,
        [sample.prompt for sample in samples],
        window=reader.window,
        room=[sample.max_new_tokens for sample in samples],
    )
    return [array("i", ids) for ids in encoded]


def _values(
    name: str,
    samples: Sequence[Sample],
    batch_tokens: int | Literal["auto"],
    tokens: _Tokens,
    session: Session,
) -> list[dict[str, Any]]:
    from src.evals.generation import continued

    reader, evaluation = session.reader, session.evaluation
    asked: list[Sample] = evaluation.share(samples)
    tokenizer = evaluation.tokenizer
    if reader.retrieval is not None:
        asked = [
            retrieval.shortened(tokenizer, sample, reader.budget, reader.retrieval)
            for sample in asked
        ]

    def judged(number: int, answer: str) -> float:
        return score(answer, asked[number].outputs, asked[number].match)

    with SECONDS.of("tokenizing prompts"):
        ids = tokens.of(reader, evaluation)
        encoded = _encoded(asked, reader, evaluation) if ids is None else ids
    with meter(f"{name}, {reader.name}", len(asked)) as progress:
        answers = continued(
            session.network,
            tokenizer,
            encoded,
            [sample.max_new_tokens for sample in asked],
            progress=progress,
            batch_tokens=batch_tokens,
            # Later tokens cannot lower the score of an answer that holds all references.
            enough=lambda number, answer: judged(number, answer) == 1,
            kept=session.rows,
            fused=evaluation.fused,
        )
    return [{"score": judged(i, text), "answer": text} for i, text in enumerate(answers)]


def score(answer: str, outputs: Sequence[str], match: Match) -> float:
    """0 to 1: the share of `outputs` in the answer (`all`), or whether it has any (`part`)."""
    text = _CONTROL.sub("\n", answer.strip()).strip().lower()
    matched = [1.0 if output.lower() in text else 0.0 for output in outputs]
    return sum(matched) / len(matched) if match == "all" else max(matched)
