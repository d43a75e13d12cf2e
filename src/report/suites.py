"""Results of the suites as typed records: `evals/short.json`, `long.json` and `drift.json`.

Scores are defined in docs/method.md: recovery is in percent of the native model, the gap closed a
share.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

from src.report.files import Record, final_of

BASELINES = ("native", "scaled")
Interval = tuple[float | None, float | None]
Curve = tuple[float | None, ...]


class _Strict(Record):
    """These files hold no NaN: what is not defined is null."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Average(_Strict):
    """A mean over tasks with its standard error."""

    value: float | None = None
    stderr: float | None = None


class TaskResult(_Strict):
    """One task of one model."""

    value: float | None = None
    stderr: float | None = None
    n: NonNegativeInt | None = None


class SuiteModel(_Strict):
    """Results of one model."""

    name: str
    results: dict[str, TaskResult] = Field(default_factory=dict)
    categories: dict[str, Average] = Field(default_factory=dict)
    average: Average | None = None
    ruler_by_length: dict[PositiveInt, Average] = Field(default_factory=dict)
    """RULER's mean by length in tokens."""


class Intervals(_Strict):
    """95% intervals, low and high; an end that is not defined is null."""

    recovery: Interval | None = None
    gap_closed: Interval | None = None
    recovery_vs_best: Interval | None = None


class SuiteScore(_Strict):
    """How far a trained model is restored on a task, a category or on the average."""

    recovery: float | None = None
    gap_closed: float | None = None
    recovery_vs_best: float | None = None
    interval: Intervals = Intervals()


class ModelScores(_Strict):
    """Scores of one trained model; `average` is over the discriminating tasks."""

    tasks: dict[str, SuiteScore] = Field(default_factory=dict)
    categories: dict[str, SuiteScore] = Field(default_factory=dict)
    average: SuiteScore | None = None
    full_average: SuiteScore | None = None


class NeedleCell(_Strict):
    """Share of needles found at a length in tokens and a depth from 0 (start) to 100 (end)."""

    length: PositiveInt
    depth: Annotated[float, Field(ge=0, le=100)]
    value: float | None = None
    n: NonNegativeInt | None = None


class SuiteReport(_Strict):
    """`evals/short.json` or `evals/long.json`: models in the order native, scaled, after stages."""

    schema_version: Literal[1] = Field(alias="schema")
    suite: Literal["short", "long"]
    limit: NonNegativeInt | None = None
    """Items a task that were scored; None: all."""
    models: tuple[SuiteModel, ...] = Field(min_length=1)
    scores_by_model: dict[str, ModelScores] = Field(default_factory=dict)
    needle_depth: dict[str, tuple[NeedleCell, ...]] = Field(default_factory=dict)

    def model(self, name: str) -> SuiteModel | None:
        """The model called `name`, if it was evaluated."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def final(self) -> SuiteModel | None:
        """The model after the last stage."""
        return final_of([model for model in self.models if model.name not in BASELINES])

    @property
    def final_scores(self) -> ModelScores:
        """Scores of the last model; empty where the evaluation wrote none."""
        final = self.final
        return self.scores_by_model.get(final.name, ModelScores()) if final else ModelScores()


class DriftModel(_Strict):
    """How far a model's inner states are from the native model's, layer by layer."""

    name: str
    relation_kl: dict[str, Curve] = Field(default_factory=dict)
    """By relation (`qq`, `kk`, `vv`), in nats."""
    attention_kl: Curve = ()
    hidden_cosine: Curve = ()
    logit_kl: float | None = None


class DriftReport(_Strict):
    """`evals/drift.json`."""

    schema_version: Literal[1] = Field(alias="schema")
    suite: Literal["drift"]
    models: tuple[DriftModel, ...] = Field(min_length=1)
