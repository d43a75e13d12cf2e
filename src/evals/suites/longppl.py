"""LongPPL (2410.23771): perplexity of the tokens that need long context.

An evaluator reads each segment of held-out text twice: whole, and in short windows. A token is a
key token if the long context helps it (by more than `gain` nats) and it is likely then (above
`likely` nats). LongPPL of a model is its perplexity of the key tokens, given the whole segment. All
models are scored on the same key tokens.

The paper's evaluator is a stronger model. Here it is the native model itself, with YaRN where the
segment is longer than its window: it finds what it has read far back without any training.

Shapes: n segments, t tokens, k scored tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from src.evals.halves import Split, half_of_texts, named
from src.evals.scoring import (
    Count,
    Reader,
    cache_key,
    chosen_lengths,
    perplexity_of,
    spread_segments,
)
from src.evals.suite import Candidate, Evaluation, EvaluationError, Outcome, ResultTable, records_of
from src.evals.suites.positions import token_nll
from src.models.rope.yarn import YarnScaling
from src.progress import meter
from src.results import ModelRecord, Record, SuiteResults

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PASS_TOKENS = 32_768


class KeyScore(Record):
    """Perplexity of the key tokens, and of all tokens that could have been such."""

    longppl: float
    perplexity: float


class LongPplModel(ModelRecord):
    """Scores by length in tokens."""

    by_length: dict[PositiveInt, KeyScore] = Field(default_factory=dict)


class LongPplResults(SuiteResults[LongPplModel]):
    """`evals/longppl.json`."""

    suite: ClassVar[str] = "longppl"
    keys: dict[PositiveInt, PositiveInt] = Field(default_factory=dict)
    """Number of key tokens by length."""
    tokens: dict[PositiveInt, PositiveInt] = Field(default_factory=dict)
    """Tokens among which they are, by length."""


@dataclass(frozen=True)
class LongPplSuite:
    """How key tokens are chosen. Defaults are the paper's."""

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Tokens of a segment, more than `short`; null for 8K, 16K and 32K, up to the largest window of
    a model."""
    segments: Count = 8  # at each length
    short: Count = 4096  # tokens of the evaluator's short windows
    step: Count = 1024  # tokens that each short window scores, its last ones
    gain: float = 2.0  # log-likelihood that the long context must add to a key token, in nats
    likely: float = -2.0  # least log-likelihood of a key token with the long context, in nats
    split: Split = "all"  # the half of each held-out document that is read; `all` for both

    name: ClassVar[str] = "longppl"
    needs_run: ClassVar[bool] = False
    record: ClassVar[type[LongPplResults]] = LongPplResults

    def __post_init__(self) -> None:
        if self.step >= self.short:
            raise ValueError(
                f"step={self.step} must be less than short={self.short}, the window that it is at "
                "the end of"
            )
        if self.lengths is not None and min(self.lengths) <= self.short:
            raise ValueError(
                f"lengths={list(self.lengths)}: each must be more than short={self.short}"
            )

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Lengths beyond every window, and text that is too short."""
        failures: dict[str, str] = {}
        for length in self._lengths(evaluation, failures):
            try:
                self._segments(evaluation, length)
            except EvaluationError as error:
                failures[str(length)] = str(error)
        return [f"eval.longppl: {message}" for message in failures.values()]

    def run(self, evaluation: Evaluation) -> Outcome:
        """Score every model; of several processes the first does all."""
        if not evaluation.is_main:
            return Outcome(None)
        failures: dict[str, str] = {}
        keys: dict[int, np.ndarray] = {}
        segments: dict[int, np.ndarray] = {}
        for length in self._lengths(evaluation, failures):
            try:
                segments[length] = self._segments(evaluation, length)
                keys[length] = self._keys(evaluation, segments[length])
            except EvaluationError as error:
                failures[f"length {length}"] = str(error)
        if not keys:
            raise EvaluationError("; ".join(failures.values()))
        models, failed = records_of(
            evaluation.candidates, lambda each: self._model(evaluation, each, segments, keys)
        )
        record = LongPplResults(
            split=named(self.split),
            failures=failures | failed,
            models=models,
            keys={length: int(key_nt.sum()) for length, key_nt in keys.items()},
            tokens={length: key_nt.size for length, key_nt in keys.items()},
        )
        return Outcome(record)

    def _lengths(self, evaluation: Evaluation, failures: dict[str, str]) -> list[int]:
        readers = [Reader(candidate) for candidate in evaluation.candidates]
        chosen = chosen_lengths(self.lengths, readers, failures)
        longer = [length for length in chosen if length > self.short]
        if not longer and not failures:
            failures["lengths"] = (
                f"no length up to the models' windows is more than short={self.short}: evaluate a "
                "model with a larger window, or set eval.longppl.short to less"
            )
        return longer

    def _segments(self, evaluation: Evaluation, length: int) -> np.ndarray:
        documents = half_of_texts(evaluation.corpus.held_out_documents(), self.split)
        return spread_segments(documents, length, self.segments, needed_by="eval.longppl")

    def _keys(self, evaluation: Evaluation, segments_nt: np.ndarray) -> np.ndarray:
        """Which of each segment's tokens after the first `short` ones are key tokens."""
        natives = evaluation.of_role("native")
        if not natives:
            raise EvaluationError("there is no native model to choose key tokens with")
        evaluator = _evaluator(natives[0], segments_nt.shape[1])
        long_nk = self._nll(evaluation, evaluator, segments_nt, short=False)
        short_nk = self._nll(evaluation, evaluator, segments_nt, short=True)
        key_nk = (short_nk - long_nk > self.gain) & (-long_nk > self.likely)
        if not key_nk.any():
            raise EvaluationError(
                f"length {segments_nt.shape[1]}: none of {key_nk.size} tokens is a key token; read "
                "more (eval.longppl.segments), or ask for less (eval.longppl.gain)"
            )
        return key_nk

    def _model(
        self,
        evaluation: Evaluation,
        candidate: Candidate,
        segments: dict[int, np.ndarray],
        keys: dict[int, np.ndarray],
    ) -> LongPplModel:
        """A model's scores at the lengths within its window."""
        scores = {}
        for length, key_nk in keys.items():
            if length <= candidate.window:
                nll_nk = self._nll(evaluation, candidate, segments[length], short=False)
                of_keys, of_all = (
                    perplexity_of(float(nll.mean())) for nll in (nll_nk[key_nk], nll_nk)
                )
                scores[length] = KeyScore(longppl=of_keys, perplexity=of_all)
        return LongPplModel(**candidate.identity, by_length=scores)

    def _nll(
        self, evaluation: Evaluation, candidate: Candidate, segments_nt: np.ndarray, *, short: bool
    ) -> np.ndarray:
        """Nats of the tokens after the first `short` ones, [n, k], whole segments or windows."""
        key = cache_key(
            evaluation,
            candidate,
            self.name,
            text=hashlib.sha256(segments_nt.tobytes()).hexdigest(),
            short=self.short,
            step=self.step if short else None,
        )

        def measured() -> list[list[float]]:
            with evaluation.loaded(candidate) as network:
                shown = "LongPPL's short windows" if short else "LongPPL"
                name = f"{shown}, {candidate.name}"
                return self._windowed(network, segments_nt, name, short=short).round(5).tolist()

        return np.array(evaluation.cache.of(key, measured))

    def _windowed(
        self, model: PreTrainedModel, segments_nt: np.ndarray, name: str, *, short: bool
    ) -> np.ndarray:
        """Each token from the whole segment before it, or from windows of `short` tokens.

        These score their last `step` tokens, so that there are `short` - `step` before each.
        """
        n, t = segments_nt.shape
        window, step = (self.short, self.step) if short else (t, t - self.short)
        ends = [*range(self.short + step, t, step), t]
        rows = max(1, _PASS_TOKENS // window)
        nll_nk = np.zeros((n, t - self.short))
        with meter(name, n * len(ends)) as progress:
            for segment_t, row_k in zip(segments_nt, nll_nk, strict=True):
                for at in range(0, len(ends), rows):
                    some = ends[at : at + rows]
                    windows_bt = np.stack([segment_t[end - window : end] for end in some])
                    nll_bk = token_nll(model, windows_bt, step)
                    for end, nll_k in zip(some, nll_bk, strict=True):
                        kept = min(step, end - self.short)
                        row_k[end - self.short - kept : end - self.short] = nll_k[-kept:]
                    progress.advance(len(some))
        return nll_nk

    @staticmethod
    def tables(record: LongPplResults) -> Sequence[ResultTable]:
        """LongPPL and perplexity, one row per model."""
        lengths = list(record.keys)
        rows = []
        for model in record.models:
            for name in ("longppl", "perplexity"):
                scores = [model.by_length.get(length) for length in lengths]
                cells = (None if score is None else getattr(score, name) for score in scores)
                rows.append((model.name, name, *cells))
        shares = (record.keys[n] / record.tokens[n] for n in lengths)
        return [
            ResultTable(
                name=record.marked("longppl", "_limit_"),
                title="LongPPL: perplexity of tokens that need long context, by length in tokens "
                f"(lower is better{record.marked('', ', limit=')})",
                columns=("model", "of", *map(str, lengths)),
                rows=tuple(rows),
                formats=("", "", *(".2f" for _ in lengths)),
                notes=("key tokens: " + ", ".join(f"{share:.1%}" for share in shares),),
            )
        ]

    @staticmethod
    def summary(record: LongPplResults) -> dict[str, float]:
        """LongPPL by model and length; names of halves say so."""
        suite = record.marked("longppl", "@limit")
        return record.figures(lambda m: {f"{suite}/{n}": s.longppl for n, s in m.by_length.items()})


def _evaluator(native: Candidate, length: int) -> Candidate:
    """The native model, with YaRN where the length is beyond its window."""
    if length <= native.window:
        return native
    return Candidate("evaluator", "scaled", native.model, YarnScaling("yarn", length))


SUITE = LongPplSuite
