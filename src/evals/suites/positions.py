"""Perplexity of held-out text by position, in a sliding window, and of the last tokens.

All three measure on the same text how much a longer context helps a model:

- *by position*: negative log-likelihood of the tokens at positions 1, 2, ..., in bins;
- *last-k*: the same last k tokens of each segment, after contexts of different lengths;
- *sliding*: the last `sliding` tokens of each segment, in windows that advance by k, so that the
  model predicts each token after at least window - k others.

Shapes: n segments, t tokens, k scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from src.evals.halves import half_of_texts
from src.evals.probed import Asked, ProbeSuite
from src.evals.scoring import (
    Count,
    Probe,
    Reader,
    Session,
    chosen_lengths,
    made,
    perplexity_of,
    settings_of,
    spread_segments,
)
from src.evals.suite import LIMITED, NOT_FINITE, Evaluation, EvaluationError, ResultTable
from src.progress import meter
from src.results import ModelRecord, Record, SuiteResults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The most tokens of one pass, on a GPU and elsewhere.
PASS_TOKENS = {"cuda": 65_536, "cpu": 4096}


class TextScore(Record):
    """Negative log-likelihood in nats a token, perplexity, and the scored tokens."""

    nll: float
    perplexity: float
    tokens: NonNegativeInt


class PositionBins(Record):
    """Scores by position: bins begin at `edges`, the last ends with the text."""

    edges: tuple[PositiveInt, ...] = ()
    nll: tuple[float, ...] = ()
    perplexity: tuple[float, ...] = ()
    tokens: tuple[NonNegativeInt, ...] = ()


class PositionsModel(ModelRecord):
    """Perplexity by position; of the last tokens, and sliding, by length of the context."""

    by_position: PositionBins = PositionBins()
    last_k: dict[PositiveInt, TextScore] = Field(default_factory=dict)
    sliding: dict[PositiveInt, TextScore] = Field(default_factory=dict)


class PositionsResults(SuiteResults[PositionsModel]):
    """`evals/positions.json`."""

    suite: ClassVar[str] = "positions"
    lengths: tuple[PositiveInt, ...] = ()
    last: PositiveInt | None = None
    """Tokens that are scored after each context; sliding windows advance by as many."""


@dataclass(frozen=True)
class PositionsSuite(ProbeSuite):
    """How text is scored.

    Attributes:
        limit, split: most segments, and the half of each held-out document that is read.
    """

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """As in the suite `ruler`."""
    segments: Count = 16  # number of segments of held-out text, each as long as the longest length
    last: Count = 256  # k, tokens that are scored after contexts of different lengths
    sliding: Count = 1024
    """Tokens at the end of a segment that the sliding windows score, a multiple of k."""
    edges: Annotated[tuple[Count, ...], Field(min_length=1)] = (
        *(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    )
    """First positions of the bins, ascending from 1; the last bin has no end."""

    name: ClassVar[str] = "positions"
    record: ClassVar[type[PositionsResults]] = PositionsResults

    def __post_init__(self) -> None:
        if self.sliding % self.last:
            raise ValueError(f"sliding={self.sliding} is not a multiple of last={self.last}")
        if self.edges[0] != 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges={list(self.edges)}: give ascending positions that begin at 1")
        if self.lengths is not None and (message := self._too_short(self.lengths)):
            raise ValueError(message)

    def _too_short(self, lengths: Sequence[int]) -> str | None:
        """Why these lengths cannot be scored; None if they can."""
        if min(lengths) > self.last:
            return None
        return (
            f"positions.last={self.last} tokens are scored after others, for which the length "
            f"{min(lengths)} has no room: give longer lengths, a smaller positions.last, or "
            "positions=null"
        )

    def needed(self, lengths: Sequence[int]) -> int:
        """Tokens that a segment needs: the longest window before its first scored token."""
        return max(lengths) + self.sliding - self.last

    def probes(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Probe]:
        """One probe of all lengths; none if there are no lengths or no text."""
        lengths = chosen_lengths(self.lengths, readers, failures)
        if not lengths:
            return []
        make = partial(self._probe, evaluation, lengths)
        return list(made([(self.name, make)], failures).values())

    def scored(self, asked: Asked) -> PositionsResults:
        """Every model's figures at the lengths within its window."""
        models = tuple(
            PositionsModel(**reader.identity, **asked.values[reader.name][self.name][0])
            for reader in asked.readers
        )
        return PositionsResults(
            **self.about(asked),
            models=models,
            lengths=tuple(sorted({length for model in models for length in model.last_k})),
            last=self.last,
        )

    def _probe(self, evaluation: Evaluation, lengths: Sequence[int]) -> Probe:
        if message := self._too_short(lengths):
            raise EvaluationError(message)
        corpus, needed = evaluation.corpus, self.needed(lengths)
        segments_nt = spread_segments(
            half_of_texts(corpus.held_out_documents(), self.split),
            needed,
            min(self.segments, self.limit or self.segments),
            needed_by=f"perplexity by position, lengths={list(lengths)}, sliding={self.sliding},",
        )
        text = f"{corpus.fingerprint(needed)}/{len(segments_nt)}"
        settings = settings_of(self, "segments", "limit")
        key = settings | {"lengths": list(lengths), "text": text}
        return Probe(self.name, key, partial(self._values, segments_nt, lengths), min(lengths))

    def _values(
        self, segments_nt: np.ndarray, lengths: Sequence[int], session: Session
    ) -> list[dict[str, Any]]:
        if not session.evaluation.is_main:
            return []
        within = [length for length in lengths if length <= session.reader.window]
        return [self.evaluate(session.network, segments_nt, within, name=session.reader.name)]

    def evaluate(
        self, model: PreTrainedModel, segments_nt: np.ndarray, lengths: Sequence[int], *, name: str
    ) -> dict[str, Any]:
        """A model's figures at these lengths, as fields of `PositionsModel`.

        Raises EvaluationError if a figure is not finite.
        """
        device = next(model.parameters()).device.type
        pass_tokens = PASS_TOKENS["cuda" if device == "cuda" else "cpu"]
        steps = self.sliding // self.last
        total = len(segments_nt) * (1 + steps * len(lengths))
        last_k, sliding = {}, {}
        with meter(f"perplexity by position, {name}", total) as progress:

            def scored(windows_nt: np.ndarray, last: int) -> np.ndarray:
                rows = max(1, pass_tokens // windows_nt.shape[1])
                parts = []
                for start in range(0, len(windows_nt), rows):
                    parts.append(token_nll(model, windows_nt[start : start + rows], last))
                    progress.advance(len(parts[-1]))
                return np.concatenate(parts)

            by_position = scored(segments_nt[:, : max(lengths)], max(lengths) - 1)
            for length in lengths:
                ends = [segments_nt.shape[1] - i * self.last for i in range(steps)]
                scores = [scored(segments_nt[:, end - length : end], self.last) for end in ends]
                last_k[str(length)] = _figures(scores[0])
                sliding[str(length)] = _figures(np.stack(scores))
        bins = _binned(by_position, self.edges)
        return {"by_position": bins, "last_k": last_k, "sliding": sliding}

    @staticmethod
    def tables(record: PositionsResults) -> Sequence[ResultTable]:
        """One row per model, one column per length."""
        rows = []
        for model in record.models:
            for kind, scores in (("last-k", model.last_k), ("sliding", model.sliding)):
                cells = (scores[n].perplexity if n in scores else None for n in record.lengths)
                rows.append((model.name, kind, *cells))
        return [
            ResultTable(
                name=record.marked("long_perplexity", "_limit_"),
                title="Perplexity of the same tokens by tokens of the context (lower is better"
                f"{record.marked('', LIMITED)})",
                columns=("model", "scored", *map(str, record.lengths)),
                rows=tuple(rows),
                formats=("", "", *(".2f" for _ in record.lengths)),
            )
        ]

    @staticmethod
    def summary(record: PositionsResults) -> dict[str, float]:
        """Perplexities of the last tokens; names of limited figures say so."""
        path = f"{record.marked('long', '@limit')}/perplexity_last"
        return record.figures(
            lambda m: {f"{path}/{length}": scored.perplexity for length, scored in m.last_k.items()}
        )


def token_nll(model: PreTrainedModel, ids_bt: np.ndarray, last: int) -> np.ndarray:
    """Negative log-likelihood, in nats, of each of the last tokens of each row, float64 [b, last].

    A row's first token has no prediction, so `last` is at most t - 1. Raises EvaluationError if a
    value is not finite.
    """
    import torch

    from src.evals.losses import token_losses

    assert 0 < last < ids_bt.shape[1]
    ids = torch.from_numpy(ids_bt).to(next(model.parameters()).device)
    parts = list(token_losses(model, ids, last, reduction="none"))
    nll = torch.cat(parts).double().cpu().numpy().reshape(len(ids_bt), last)
    if not np.isfinite(nll).all():
        raise EvaluationError(NOT_FINITE)
    return nll


def _figures(nll: np.ndarray) -> dict[str, Any]:
    mean = float(nll.mean())
    return {"nll": mean, "perplexity": perplexity_of(mean), "tokens": int(nll.size)}


def _binned(nll_nt: np.ndarray, edges: Sequence[int]) -> dict[str, Any]:
    """Bins of positions; column i is the token at position i + 1."""
    starts = [edge for edge in edges if edge <= nll_nt.shape[1]]
    ends = [*starts[1:], nll_nt.shape[1] + 1]
    pairs = zip(starts, ends, strict=True)
    bins = [_figures(nll_nt[:, start - 1 : end - 1]) for start, end in pairs]
    return {"edges": starts} | {key: [figures[key] for figures in bins] for key in bins[0]}


SUITE = PositionsSuite
