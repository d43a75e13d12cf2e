"""Pieces of the long suite that are computed, cached and reported by themselves.

A unit asks a `Reader`, a model that reads prompts whole or through retrieval, and gives a JSON
value for each of its items. Several processes share a unit's items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from src.evals import papers, positions, retrieval
from src.evals.generation import generate
from src.evals.papers import PaperQuestion
from src.evals.positions import PositionsConfig
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler import Sample, score
from src.evals.ruler.sample import dump
from src.evals.suite import Candidate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Tokens of one pass that scores text, at most, on a GPU and elsewhere.
SCORING_TOKENS = {"cuda": 65_536, "cpu": 4096}


@dataclass(frozen=True)
class Reader:
    """A model, and whether it reads long prompts through retrieval.

    Attributes:
        name: as results call it.
        candidate: the model.
        retrieval: how contexts are shortened to the model's window; None to read them whole.
    """

    name: str
    candidate: Candidate
    retrieval: RetrievalConfig | None = None

    @property
    def window(self) -> int:
        """Tokens that it reads and writes at once."""
        return self.candidate.window

    @property
    def budget(self) -> int:
        """Tokens that retrieval leaves a prompt and its answer; without it the window."""
        chosen = self.retrieval.budget if self.retrieval is not None else None
        return min(chosen or self.window, self.window)

    def reads(self, length: int) -> bool:
        """Whether prompts of this length can be put to it."""
        return self.retrieval is not None or length <= self.window


@dataclass(frozen=True)
class Session:
    """A reader with its model loaded, and this process's share of the items."""

    reader: Reader
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    batch_tokens: int | Literal["auto"]
    rank: int = 0
    size: int = 1


class Unit(Protocol):
    """One piece."""

    @property
    def name(self) -> str:
        """Of the task, as results call it."""
        ...

    @property
    def generates(self) -> bool:
        """Whether the model writes its answers."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything besides the reader and the tokenizer that decides its values."""
        ...

    def fits(self, reader: Reader) -> bool:
        """Whether it can be put to this reader."""
        ...

    def shortened(self, reader: Reader) -> bool:
        """Whether retrieval leaves anything out; where not, the answers are those without it."""
        ...

    def values(self, session: Session) -> list[Any]:
        """A value for each item of the process's share: items rank, rank + size, ...

        Raises:
            ValueError: a subclass of it, where the reader cannot be asked.
        """
        ...


@dataclass(frozen=True)
class RulerUnit:
    """One RULER task at one length, or the depth grid at one length."""

    name: str
    length: int
    samples: tuple[Sample, ...]
    generates: bool = True

    @property
    def key(self) -> Mapping[str, Any]:
        """The samples' own bytes."""
        digest = hashlib.sha256(dump(self.samples).encode()).hexdigest()
        return {"part": "ruler", "samples": digest}

    def fits(self, reader: Reader) -> bool:
        """Whether the length is within the window."""
        return reader.reads(self.length)

    def shortened(self, reader: Reader) -> bool:
        """Whether the length is beyond what is read at once."""
        return reader.retrieval is not None and self.length > reader.budget

    def values(self, session: Session) -> list[dict[str, Any]]:
        """`score`, 0 to 1, and `answer`, which may be cut where it holds all that is asked for."""
        asked = list(self.samples[session.rank :: session.size])
        reader = session.reader
        if reader.retrieval is not None:
            asked = [
                retrieval.shortened(session.tokenizer, sample, reader.budget, reader.retrieval)
                for sample in asked
            ]

        def judged(number: int, answer: str) -> float:
            return score(answer, asked[number].outputs, asked[number].match)

        answers = generate(
            session.network,
            session.tokenizer,
            [sample.prompt for sample in asked],
            [sample.max_new_tokens for sample in asked],
            window=reader.window,
            batch_tokens=session.batch_tokens,
            # Nothing that follows can take away from an answer that holds all references.
            enough=lambda number, answer: judged(number, answer) == 1,
            name=f"{self.name}, {reader.name}",
        )
        return [{"score": judged(i, text), "answer": text} for i, text in enumerate(answers)]


@dataclass(frozen=True)
class PapersUnit:
    """Yes-or-no questions on whole papers."""

    items: tuple[PaperQuestion, ...]
    name: str = "qasper_yesno"
    generates: bool = False

    @property
    def key(self) -> Mapping[str, Any]:
        """The items."""
        digest = hashlib.sha256(repr([asdict(item) for item in self.items]).encode()).hexdigest()
        return {"part": "papers", "version": papers.VERSION, "items": digest}

    def fits(self, reader: Reader) -> bool:
        """Always: a paper that is too long is cut, and counted."""
        return True

    def shortened(self, reader: Reader) -> bool:
        """Some papers are."""
        return reader.retrieval is not None

    def values(self, session: Session) -> list[dict[str, Any]]:
        """As `papers.evaluate`, with `score`."""
        asked = list(self.items[session.rank :: session.size])
        reader = session.reader
        if reader.retrieval is not None:
            room = reader.budget - papers.CHOICE_ROOM
            asked = [
                PaperQuestion(
                    retrieval.retrieve(
                        session.tokenizer,
                        ("", item.tail),
                        item.paper,
                        item.question,
                        room=room,
                        config=reader.retrieval,
                    ).context,
                    item.question,
                    item.gold,
                )
                for item in asked
            ]
        found = papers.evaluate(
            session.network, session.tokenizer, asked, window=reader.window, name=reader.name
        )
        return [item | {"score": float(item["answer"] == item["gold"])} for item in found]


@dataclass(frozen=True)
class PositionsUnit:
    """Perplexity of held-out text by position, sliding and of the last tokens."""

    segments_nt: np.ndarray
    lengths: tuple[int, ...]
    config: PositionsConfig
    fingerprint: str
    name: str = "positions"
    generates: bool = False

    @property
    def key(self) -> Mapping[str, Any]:
        """The text and how it is scored."""
        settings = {"lengths": self.lengths, "settings": asdict(self.config)}
        return {"part": "positions", "text": self.fingerprint, **settings}

    def fits(self, reader: Reader) -> bool:
        """Whether any of the lengths is within the window; text is not retrieved."""
        return reader.retrieval is None and min(self.lengths) <= reader.window

    def shortened(self, reader: Reader) -> bool:
        """Never."""
        return False

    def values(self, session: Session) -> list[dict[str, Any]]:
        """As `positions.evaluate`, one value, at the lengths within the window; by one process."""
        if session.rank:
            return []
        reader = session.reader
        device = next(session.network.parameters()).device.type
        return [
            positions.evaluate(
                session.network,
                self.segments_nt,
                [length for length in self.lengths if length <= reader.window],
                self.config,
                batch_tokens=SCORING_TOKENS["cuda" if device == "cuda" else "cpu"],
                name=reader.name,
            )
        ]
