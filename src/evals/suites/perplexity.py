"""Perplexity of held-out text by window length: all models on the same windows.

Every window length scores the same text: segments as long as the largest window, spread over the
held-out documents, each cut into windows. A model reads each window without context, so the first
token of a window has no prediction. Perplexity is exp of the mean negative log-likelihood per
predicted token, in nats.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from src.evals.halves import Split, half_of_texts, named
from src.evals.scoring import Count, cache_key, perplexity_of, settings_of, spread_segments
from src.evals.suite import (
    NOT_FINITE,
    Candidate,
    Evaluation,
    EvaluationError,
    Outcome,
    ResultTable,
    records_of,
)
from src.progress import meter
from src.results import Dataset, PerplexityModel, PerplexityResults, PerplexityScore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A smaller relative rise of perplexity over the native model counts as none.
MINIMAL_GAP = 0.01


@dataclass(frozen=True)
class PerplexitySuite:
    """Window lengths, in tokens, and how much text is scored."""

    windows: Annotated[tuple[Annotated[int, Field(gt=1)], ...], Field(min_length=1)]
    """Lengths; the largest decides the segments."""
    tokens: Count
    """Of text scored at each window length, rounded down to whole segments, at least one."""
    headline: Annotated[int, Field(gt=1)]  # the window whose scores are quoted
    batch_tokens: Count = 4096  # most tokens of one forward pass, but at least one window
    split: Split = "all"  # the half of each held-out document that is read; `all` for both

    name: ClassVar[str] = "perplexity"
    needs_run: ClassVar[bool] = False
    record: ClassVar[type[PerplexityResults]] = PerplexityResults

    def __post_init__(self) -> None:
        largest = max(self.windows)
        odd = [w for w in self.windows if largest % w]
        if odd:
            raise ValueError(
                f"windows={list(self.windows)}: {odd} do not divide the largest, {largest}, so "
                "they would score other text than it does"
            )
        if self.headline not in self.windows:
            raise ValueError(f"headline={self.headline} is not among windows={list(self.windows)}")

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """No held-out document is long enough."""
        try:
            self._fitted(evaluation)._segments(evaluation)
        except EvaluationError as error:
            return [str(error)]
        return []

    def run(self, evaluation: Evaluation) -> Outcome:
        """Score every model; of several processes the first does all."""
        if not evaluation.is_main:
            return Outcome(None)
        fitted = self._fitted(evaluation)
        if left_out := sorted(set(self.windows) - set(fitted.windows)):
            print(
                f"eval.perplexity.windows: {left_out} are longer than every document that "
                "data.held_out_share has held out, and are left out",
                file=sys.stderr,
            )
        return fitted._run(evaluation)

    def _fitted(self, evaluation: Evaluation) -> PerplexitySuite:
        """The suite without windows that no document has, if nobody chose the documents."""
        if not evaluation.data.chooses_held_out:
            return self
        documents = half_of_texts(evaluation.corpus.held_out_documents(), self.split)
        longest = max((len(ids) for _, ids in documents), default=0)
        windows = tuple(window for window in self.windows if window <= longest)
        if not windows:
            return self
        headline = self.headline if self.headline in windows else max(windows)
        return replace(self, windows=windows, headline=headline)

    def _run(self, evaluation: Evaluation) -> Outcome:
        segments_nt, dataset = self._segments(evaluation)
        models, failures = records_of(
            evaluation.candidates, lambda each: self._model(evaluation, each, segments_nt, dataset)
        )
        record = PerplexityResults(
            split=named(self.split),
            failures=failures,
            models=models,
            dataset=dataset,
            windows=self.windows,
            headline=self.headline,
        )
        if record.native is None or record.scaled is None:
            return Outcome(record)
        native, scaled = record.native.perplexity, record.scaled.perplexity
        scored = tuple(
            model.model_copy(update={"scores": scores(native, scaled, model.perplexity)})
            if model in record.students
            else model
            for model in models
        )
        return Outcome(record.model_copy(update={"models": scored}))

    def _segments(self, evaluation: Evaluation) -> tuple[np.ndarray, Dataset]:
        """Segments of the largest window, int64 [segments, window], and their key for the cache."""
        corpus = evaluation.corpus
        documents = half_of_texts(corpus.held_out_documents(), self.split)
        length = max(self.windows)
        number = max(1, self.tokens // length)
        segments_nt = spread_segments(
            documents, length, number, needed_by=f"eval.perplexity.windows={list(self.windows)}"
        )
        dataset = Dataset(
            name=corpus.name,
            documents=tuple(name for name, _ in documents),
            fingerprint=corpus.fingerprint(length),
            tokens=int(segments_nt.size),
        )
        return segments_nt, dataset

    def _model(
        self,
        evaluation: Evaluation,
        candidate: Candidate,
        segments_nt: np.ndarray,
        dataset: Dataset,
    ) -> PerplexityModel:
        # The headline only selects a figure; batches change figures only by rounding.
        settings = settings_of(self, "headline", "batch_tokens")
        text = dataset.fingerprint
        key = cache_key(evaluation, candidate, self.name, text=text, settings=settings)

        def measured() -> dict[str, float]:
            with evaluation.loaded(candidate) as network:
                return self.evaluate(network, segments_nt, name=candidate.name)

        nll = {int(window): value for window, value in evaluation.cache.of(key, measured).items()}
        return PerplexityModel(
            **candidate.identity,
            perplexity={window: perplexity_of(value) for window, value in nll.items()},
            nll=nll,
            tokens={w: segments_nt.size // w * (w - 1) for w in self.windows},
        )

    def evaluate(
        self, model: PreTrainedModel, segments_nt: np.ndarray, *, name: str
    ) -> dict[str, float]:
        """Negative log-likelihood in nats per predicted token, by window."""
        model.eval()
        return {
            str(window): negative_log_likelihood(
                model,
                segments_nt.reshape(-1, window),
                batch_tokens=self.batch_tokens,
                name=f"perplexity, {name}, window {window}",
            )
            for window in self.windows
        }

    @staticmethod
    def tables(record: PerplexityResults) -> Sequence[ResultTable]:
        """One row per model, one column per window, and last the gap closed at the headline."""
        headline = record.headline or max(record.windows)
        rows = [
            (m.name, *(m.perplexity[n] for n in record.windows), m.score(headline).gap_closed)
            for m in record.models
        ]
        notes = []
        if record.final and (recovery := record.final.score(headline).recovery) is not None:
            notes.append(
                f"recovery in windows of {headline} tokens: {recovery:.1f}% of the native model"
            )
        number = len(record.dataset.documents)
        return [
            ResultTable(
                name="perplexity",
                title=f"Perplexity of held-out {record.dataset.name} text by window in tokens "
                f"({number} document{'' if number == 1 else 's'}, lower is better)",
                columns=("model", *(f"ppl {n}" for n in record.windows), f"gap closed @{headline}"),
                rows=tuple(rows),
                formats=("", *(".2f" for _ in record.windows), ".1%"),
                notes=tuple(notes),
            )
        ]

    @staticmethod
    def summary(record: PerplexityResults) -> dict[str, float]:
        """Perplexity by model and window, and the last trained model's scores."""
        figures = record.figures(
            lambda m: {f"perplexity/{window}": value for window, value in m.perplexity.items()}
        )
        for window, score in record.final.scores.items() if record.final else ():
            known = score.model_dump(exclude_none=True)
            figures |= {f"eval/{key}/{window}": value for key, value in known.items()}
        return figures


def negative_log_likelihood(
    model: PreTrainedModel, windows_nt: np.ndarray, *, batch_tokens: int, name: str
) -> float:
    """Mean negative log-likelihood, in nats per predicted token, over windows int64 [n, t].

    Raises EvaluationError if the mean is not finite.
    """
    import torch

    from src.evals.losses import token_losses

    device = next(model.parameters()).device
    n, t = windows_nt.shape
    rows = max(1, batch_tokens // t)
    total = 0.0
    with meter(name, n) as progress:
        for start in range(0, n, rows):
            ids_bt = torch.from_numpy(windows_nt[start : start + rows]).to(device)
            for part in token_losses(model, ids_bt, t - 1, reduction="sum"):
                total += part.item()
            progress.advance(len(ids_bt))
    if not math.isfinite(total):
        raise EvaluationError(NOT_FINITE)
    return total / (n * (t - 1))


def scores(
    native: Mapping[int, float | None],
    scaled: Mapping[int, float | None],
    student: Mapping[int, float | None],
) -> dict[int, PerplexityScore]:
    """Restoration by window, from perplexities.

    `gap_closed` = (student - scaled) / (native - scaled), on perplexity; `gap_closed_nll`, the same
    on its logarithm; `recovery` = 100 * native / student (perplexity is better when lower). A gap
    is None if scaling has made the model worse by less than MINIMAL_GAP, since closing it would be
    noise.
    """
    result: dict[int, PerplexityScore] = {}
    for window, native_value in native.items():
        scaled_value, value = scaled[window], student[window]
        if native_value is None or scaled_value is None or value is None:
            continue
        gap = gap_nll = None
        if scaled_value > native_value * (1 + MINIMAL_GAP):
            gap = (value - scaled_value) / (native_value - scaled_value)
            gap_nll = math.log(value / scaled_value) / math.log(native_value / scaled_value)
        result[window] = PerplexityScore(
            gap_closed=gap, gap_closed_nll=gap_nll, recovery=100 * native_value / value
        )
    return result


SUITE = PerplexitySuite
