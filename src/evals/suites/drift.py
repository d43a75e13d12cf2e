"""How far a student has drifted from the native model on short text: what distillation lowers.

Both models read the same text. The suite compares, layer by layer, the self-relations of queries,
keys and values (softmax(alpha X X^T), as in src/objectives/relation.py), the attention rows
(softmax(alpha Q K^T)), the hidden states after each layer, and the predictions. All divergences are
KL(native || student) in nats, means over heads and tokens. By position the first tokens have their
own bins, since attention gathers on them.

Shapes: b rows, h heads, g key-value heads, t tokens, d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from src.evals.scoring import Count, cache_key, spread_segments
from src.evals.suite import Candidate, Evaluation, EvaluationError, Outcome, ResultTable, records_of
from src.results import TRAINED, Curve, Dataset, DriftModel, DriftResults

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DriftSuite:
    """The text that is compared."""

    length: Count = 2048  # tokens of a segment, at most the native window
    segments: Count = 8  # number of segments, evenly spaced over the held-out text
    edges: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (
        *(0, 1, 4, 16, 64, 256, 1024, 4096),
    )
    """First positions of the bins, ascending from 0; the last bin has no end. Position 0 sees only
    itself, so its relations cannot differ."""

    name: ClassVar[str] = "drift"
    needs_run: ClassVar[bool] = True
    record: ClassVar[type[DriftResults]] = DriftResults

    def __post_init__(self) -> None:
        if self.edges[0] != 0 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges={list(self.edges)}: give ascending positions that begin at 0")

    @property
    def bins(self) -> tuple[int, ...]:
        """Edges below the segment's length."""
        return tuple(edge for edge in self.edges if edge < self.length)

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Nothing to compare, or text that is too short."""
        try:
            self._pair(evaluation)
            self._segments(evaluation)
        except EvaluationError as error:
            return [str(error)]
        return []

    def run(self, evaluation: Evaluation) -> Outcome:
        """Compare every model with the native one; of several processes the first does all."""
        if not evaluation.is_main:
            return Outcome(None)
        native, others = self._pair(evaluation)
        segments_nt, dataset = self._segments(evaluation)
        with ExitStack() as held:
            # Loaded for the first model that is not cached, and kept for the others.
            teacher = cache(lambda: held.enter_context(evaluation.loaded(native, capture=True)))
            models, failures = records_of(
                others,
                lambda each: self._model(evaluation, native, teacher, each, segments_nt, dataset),
            )
        text = {"dataset": dataset, "length": self.length, "edges": self.bins}
        return Outcome(DriftResults(failures=failures, models=models, **text))

    def _pair(self, evaluation: Evaluation) -> tuple[Candidate, tuple[Candidate, ...]]:
        natives = evaluation.of_role("native")
        others = evaluation.of_role("scaled", *TRAINED, "comparison")
        if not natives or not others:
            raise EvaluationError(
                "eval=drift compares a run's models with the native one: give run=RUN_DIR instead "
                "of a model's name, without stages=last_alone"
            )
        native = natives[0]
        if self.length > native.window:
            raise EvaluationError(
                f"eval.drift.length={self.length} is longer than the native window of "
                f"{native.window}, for which the native model was trained; choose at most that"
            )
        return native, others

    def _segments(self, evaluation: Evaluation) -> tuple[np.ndarray, Dataset]:
        """Segments, int64 [n, length], and their key for the cache."""
        corpus = evaluation.corpus
        segments_nt = spread_segments(
            corpus.held_out_documents(), self.length, self.segments, needed_by="eval.drift.length"
        )
        fingerprint, tokens = corpus.fingerprint(self.length), int(segments_nt.size)
        return segments_nt, Dataset(name=corpus.name, fingerprint=fingerprint, tokens=tokens)

    def _model(
        self,
        evaluation: Evaluation,
        native: Candidate,
        teacher: Callable[[], PreTrainedModel],
        candidate: Candidate,
        segments_nt: np.ndarray,
        dataset: Dataset,
    ) -> DriftModel:
        key = cache_key(
            evaluation,
            candidate,
            self.name,
            text=dataset.fingerprint,
            settings=asdict(self),
            native=native.fingerprint,
        )

        def measured() -> dict[str, Any]:
            from src.evals.divergence import evaluate

            reference = teacher()
            with evaluation.loaded(candidate, capture=True) as student:
                return evaluate(reference, student, segments_nt, self.bins, name=candidate.name)

        return DriftModel(**candidate.identity, **evaluation.cache.of(key, measured))

    @staticmethod
    def tables(record: DriftResults) -> Sequence[ResultTable]:
        """Means over layers, one row per model."""
        columns = ("model", "KL qq", "KL kk", "KL vv", "KL attention", "hidden cosine", "KL logits")
        assert record.dataset is not None
        return [
            ResultTable(
                name="drift",
                title=f"Drift from the native model on held-out {record.dataset.name} text, "
                f"{record.length} tokens at a time (means over layers, nats)",
                columns=columns,
                rows=tuple((model.name, *_means(model).values()) for model in record.models),
                formats=("", *(".4g" for _ in columns[1:])),
            )
        ]

    @staticmethod
    def summary(record: DriftResults) -> dict[str, float]:
        """Means over layers by model."""
        return record.figures(lambda m: {f"drift/{k}": v for k, v in _means(m).items()})


def _means(model: DriftModel) -> dict[str, float]:
    """Figures of a model as means over layers."""
    curves: dict[str, Curve] = {r: model.relation_kl[r] for r in ("qq", "kk", "vv")}
    curves |= {"attention_kl": model.attention_kl, "hidden_cosine": model.hidden_cosine}
    means = {name: sum(v or 0.0 for v in curve) / len(curve) for name, curve in curves.items()}
    return means | {"logit_kl": model.logit_kl or 0.0}


SUITE = DriftSuite
