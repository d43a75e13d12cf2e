"""Perplexity of held-out text: native, scaled and trained models on the same windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from src.evals import perplexity
from src.evals.perplexity import PerplexityConfig
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


@dataclass(frozen=True)
class PerplexitySuite(PerplexityConfig):
    """Perplexity by window length."""

    name: ClassVar[str] = "perplexity"
    needs_run: ClassVar[bool] = False

    def problems(self, evaluation: Evaluation) -> Sequence[str]:
        """No held-out document is long enough."""
        try:
            self._segments(evaluation)
        except EvaluationError as error:
            return [str(error)]
        return []

    def run(self, evaluation: Evaluation) -> SuiteResult:
        """Score every model; with several processes the first does it."""
        if not evaluation.is_main:
            return SuiteResult({})
        found, about = self._segments(evaluation)
        results, failures = scores_of(
            evaluation.candidates, lambda each: self._score(evaluation, each, found, about)
        )
        return SuiteResult(self._content(evaluation, about, results), failures=failures)

    def _segments(self, evaluation: Evaluation) -> tuple[np.ndarray, dict[str, Any]]:
        corpus = evaluation.corpus
        documents = corpus.held_out_documents()
        try:
            found = perplexity.segments(documents, self)
        except ValueError as error:
            raise EvaluationError(str(error)) from error
        about = {
            "name": corpus.name,
            "documents": [name for name, _ in documents],
            "fingerprint": corpus.fingerprint(max(self.windows)),
            "tokens": int(found.size),
        }
        return found, about

    def _score(
        self,
        evaluation: Evaluation,
        candidate: Candidate,
        found: np.ndarray,
        about: Mapping[str, Any],
    ) -> dict[str, Any]:
        # The headline is chosen among the figures; batches change them by rounding alone.
        left_out = ("headline", "batch_tokens")
        key = {
            "suite": self.name,
            "settings": {k: v for k, v in asdict(self).items() if k not in left_out},
            "weights": candidate.fingerprint,
            "text": about["fingerprint"],
            "device": evaluation.device,
            "dtype": evaluation.dtype,
        }
        known = evaluation.cache.get(key)
        if known is None:
            with candidate.loaded(device=evaluation.device, dtype=evaluation.dtype) as network:
                known = perplexity.evaluate_model(network, found, self, name=candidate.name)
            evaluation.cache.put(key, known)
        return known | {"name": candidate.name}

    def _content(
        self, evaluation: Evaluation, about: dict[str, Any], results: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        by_name = {result["name"]: result["perplexity"] for result in results}
        roles = {c.role: by_name[c.name] for c in evaluation.candidates if c.name in by_name}
        scored: dict[str, Any] = {}
        if "native" in roles and "scaled" in roles:
            students = [c.name for c in evaluation.of_role("trained", "comparison")]
            scored = {
                name: perplexity.scores(roles["native"], roles["scaled"], by_name[name])
                for name in students
                if name in by_name
            }
        trained = [c.name for c in evaluation.of_role("trained") if c.name in scored]
        return {
            "schema": SCHEMA,
            "suite": self.name,
            "dataset": about,
            "windows": list(self.windows),
            "headline": self.headline,
            "models": list(results),
            "scores": scored[trained[-1]] if trained else None,
            "scores_by_model": scored,
        }

    @staticmethod
    def tables(content: Mapping[str, Any]) -> Sequence[ResultTable]:
        """A model a row, a window a column, and last the gap closed at the headline."""
        windows = [str(w) for w in content["windows"]]
        headline = str(content["headline"])
        rows = []
        for model in content["models"]:
            scored = content["scores_by_model"].get(model["name"])
            closed = scored[headline]["gap_closed"] if scored else None
            rows.append((model["name"], *(model["perplexity"][w] for w in windows), closed))
        data = content["dataset"]
        notes = []
        if scored := content["scores"]:
            recovery = scored[headline]["recovery"]
            notes.append(f"recovery at window {headline}: {recovery:.1f}% of the native model")
        return [
            ResultTable(
                name="perplexity",
                title=f"Perplexity of held-out {data['name']} text "
                f"({len(data['documents'])} documents, lower is better)",
                columns=("model", *(f"ppl {w}" for w in windows), f"gap closed @{headline}"),
                rows=tuple(rows),
                formats=("", *(".2f" for _ in windows), ".1%"),
                notes=tuple(notes),
            )
        ]

    @staticmethod
    def summary(content: Mapping[str, Any]) -> dict[str, float]:
        """Perplexity by model and window, and the last trained model's scores."""
        figures = {
            f"eval/{model['name']}/perplexity/{window}": value
            for model in content["models"]
            for window, value in model["perplexity"].items()
        }
        for window, scored in (content["scores"] or {}).items():
            figures |= {
                f"eval/{key}/{window}": value for key, value in scored.items() if value is not None
            }
        return figures


SUITE = PerplexitySuite
