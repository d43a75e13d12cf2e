"""Drift of scaled and trained models from the native one, on held-out short text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from src.evals import drift, positions
from src.evals.drift import DriftConfig
from src.evals.suite import (
    Candidate,
    Evaluation,
    EvaluationError,
    ResultTable,
    SuiteResult,
    scores_of,
)
from src.run_folder import SCHEMA

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

# Part of the key under which results are cached: to be raised when a figure changes.
VERSION = 1


@dataclass(frozen=True)
class DriftSuite(DriftConfig):
    """Divergences between the native model and every other."""

    name: ClassVar[str] = "drift"
    needs_run: ClassVar[bool] = True

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """Nothing to compare, or text that is too short."""
        try:
            self._pair(evaluation)
            self._segments(evaluation)
        except EvaluationError as error:
            return [str(error)]
        return []

    def run(self, evaluation: Evaluation) -> SuiteResult:
        """Compare every model with the native one; with several processes the first does it."""
        if not evaluation.is_main:
            return SuiteResult({})
        native, others = self._pair(evaluation)
        found, about = self._segments(evaluation)
        with ExitStack() as held:
            # Loaded for the first model that is not cached, and kept for the others.
            teacher = cache(lambda: held.enter_context(native.loaded(**_where(evaluation))))
            results, failures = scores_of(
                others,
                lambda each: self._score(evaluation, native, teacher, each, found, about),
            )
        content = {
            "schema": SCHEMA,
            "suite": self.name,
            "dataset": about,
            "length": self.length,
            "edges": list(self.bins),
            "models": results,
        }
        return SuiteResult(content, failures=failures)

    def _pair(self, evaluation: Evaluation) -> tuple[Candidate, tuple[Candidate, ...]]:
        natives = evaluation.of_role("native")
        others = evaluation.of_role("scaled", "trained", "comparison")
        if not natives or not others:
            raise EvaluationError(
                "eval=drift compares a run's models with the native one: give run=RUN_DIR instead "
                "of a model's name"
            )
        native = natives[0]
        if self.length > native.window:
            raise EvaluationError(
                f"eval.drift.length={self.length} is longer than the native window of "
                f"{native.window}, in which the native model can be a measure; choose at most that"
            )
        return native, others

    def _segments(self, evaluation: Evaluation) -> tuple[np.ndarray, dict[str, Any]]:
        corpus = evaluation.corpus
        try:
            found = positions.segments_of(corpus.held_out_documents(), self.length, self.segments)
        except ValueError as error:
            raise EvaluationError(f"eval.drift: {error}") from error
        about = {
            "name": corpus.name,
            "fingerprint": corpus.fingerprint(self.length),
            "tokens": int(found.size),
        }
        return found, about

    def _score(
        self,
        evaluation: Evaluation,
        native: Candidate,
        teacher: Callable[[], PreTrainedModel],
        candidate: Candidate,
        found: np.ndarray,
        about: Mapping[str, Any],
    ) -> dict[str, Any]:
        key = {
            "suite": self.name,
            "version": VERSION,
            "settings": asdict(self),
            "native": native.fingerprint,
            "weights": candidate.fingerprint,
            "text": about["fingerprint"],
            "device": evaluation.device,
            "dtype": evaluation.dtype,
        }
        known = evaluation.cache.get(key)
        if known is None:
            reference = teacher()
            with candidate.loaded(**_where(evaluation)) as student:
                known = drift.evaluate(reference, student, found, self, name=candidate.name)
            evaluation.cache.put(key, known)
        return {"name": candidate.name} | known

    @staticmethod
    def tables(content: Mapping[str, Any]) -> Sequence[ResultTable]:
        """Means over layers, a model a row."""
        columns = ("model", "KL qq", "KL kk", "KL vv", "KL attention", "hidden cosine", "KL logits")
        rows = tuple(
            (
                model["name"],
                *(_mean(model["relation_kl"][r]) for r in drift.RELATIONS),
                _mean(model["attention_kl"]),
                _mean(model["hidden_cosine"]),
                model["logit_kl"],
            )
            for model in content["models"]
        )
        data = content["dataset"]
        return [
            ResultTable(
                name="drift",
                title=f"Drift from the native model on held-out {data['name']} text, "
                f"{content['length']} tokens at a time (means over layers, nats)",
                columns=columns,
                rows=rows,
                formats=("", *(".4g" for _ in columns[1:])),
            )
        ]

    @staticmethod
    def summary(content: Mapping[str, Any]) -> dict[str, float]:
        """Means over layers by model."""
        figures = {}
        for model in content["models"]:
            start = f"eval/{model['name']}/drift"
            for relation in drift.RELATIONS:
                figures[f"{start}/{relation}"] = _mean(model["relation_kl"][relation])
            figures[f"{start}/attention_kl"] = _mean(model["attention_kl"])
            figures[f"{start}/hidden_cosine"] = _mean(model["hidden_cosine"])
            figures[f"{start}/logit_kl"] = model["logit_kl"]
        return figures


def _where(evaluation: Evaluation) -> dict[str, Any]:
    """How the models are loaded."""
    return {"device": evaluation.device, "dtype": evaluation.dtype, "capture": True}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SUITE = DriftSuite
