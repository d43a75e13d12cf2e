"""RULER's samples as a probe: prompts are answered greedily and scored by their references."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import Any, Literal

from src.evals import retrieval
from src.evals.halves import Split, places
from src.evals.ruler.matching import score
from src.evals.ruler.sample import Sample, digest
from src.evals.scoring import Probe, Session
from src.evals.seconds import SECONDS


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

    def of(self, session: Session) -> list[array[int]] | None:
        """The ids of the process's share; None for a reader with retrieval, whose prompts differ.

        Raises:
            GenerationError: as `encode` does.
        """
        from src.evals.generation import encode

        if session.reader.retrieval is not None:
            return None
        share = session.evaluation.rank, session.evaluation.size
        with self._lock:
            if share not in self._ids:
                asked = session.share(self._samples)
                encoded = encode(
                    session.evaluation.tokenizer,
                    [sample.prompt for sample in asked],
                    window=session.reader.window,
                    room=[sample.max_new_tokens for sample in asked],
                )
                self._ids[share] = [array("i", ids) for ids in encoded]
            return self._ids[share]


def _values(
    name: str,
    samples: Sequence[Sample],
    batch_tokens: int | Literal["auto"],
    tokens: _Tokens,
    session: Session,
) -> list[dict[str, Any]]:
    from src.evals.generation import generate

    asked: list[Sample] = session.share(samples)
    reader, tokenizer = session.reader, session.evaluation.tokenizer
    if reader.retrieval is not None:
        asked = [
            retrieval.shortened(tokenizer, sample, reader.budget, reader.retrieval)
            for sample in asked
        ]

    def judged(number: int, answer: str) -> float:
        return score(answer, asked[number].outputs, asked[number].match)

    with SECONDS.of("tokenizing prompts"):
        encoded = tokens.of(session)
    answers = generate(
        session.network,
        tokenizer,
        [sample.prompt for sample in asked] if encoded is None else encoded,
        [sample.max_new_tokens for sample in asked],
        window=reader.window,
        batch_tokens=batch_tokens,
        # Later tokens cannot lower the score of an answer that holds all references.
        enough=lambda number, answer: judged(number, answer) == 1,
        name=f"{name}, {reader.name}",
        kept=session.rows,
    )
    return [{"score": judged(i, text), "answer": text} for i, text in enumerate(answers)]


def number_of(samples: int, limit: int | None, split: Split) -> int:
    """How many samples are made, so that the half that is asked has `limit` of them at most."""
    halves = 1 if split == "all" else 2
    return samples if limit is None else min(samples, halves * limit)


def half_of(samples: Sequence[Sample], split: Split) -> list[Sample]:
    """The samples of a half: even numbers for validation, odd ones for test.

    Raises:
        EvaluationError: there are none.
    """
    kept = set(places(1 + max(sample.index for sample in samples), split, neighbours=1))
    return [sample for sample in samples if sample.index in kept]


def note(sample: Sample) -> dict[str, Any]:
    """What an answer's line says of its sample."""
    return {"outputs": list(sample.outputs), "depth": sample.depth}
