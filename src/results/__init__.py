"""Records of evaluation results: suites write them; dashboard, tracker and benchmarks read them.

`evals/SUITE.json` is one record as JSON. A record names its suite and lists its models; a model has
a name, a role and the hash of its weights, followed by its figures. Scores are defined in
docs/method.md: recovery is in percent of the native model, the gap closed is a share.

A suite that the page does not show may define its record in its own file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

SCHEMA = 2
# native and scaled: before training; stage: after an earlier stage of the run; final: after its
# last; comparison: another run's final model; retrieval: the native model with retrieval.
Role = Literal["native", "scaled", "stage", "final", "comparison", "retrieval"]
TRAINED: tuple[Role, ...] = ("stage", "final")
Half = Literal["validation", "test"]  # of a suite's items (src/evals/halves.py)

Interval = tuple[float | None, float | None]
"""95% interval, low and high; an end that is not defined is null."""
Curve = tuple[float | None, ...]


class ResultsError(ValueError):
    """A file of results that cannot be read; the message is one line and says what to do."""


class Record(BaseModel):
    """Part of a file of results. Unknown keys are ignored; what is not defined is null."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelRecord(Record):
    """A model and what a suite found for it."""

    name: str  # `native`, `scaled`, `after STAGE`, or another run's method
    role: Role
    weights: str | None = None
    """SHA-256 of the weights and of the config that they are loaded under."""


_Model = TypeVar("_Model", bound=ModelRecord)


class SuiteResults(Record, Generic[_Model]):
    """A file of results. Models come in the order native, scaled, trained, others."""

    suite: ClassVar[str]  # the suite's name
    limit: NonNegativeInt | None = None  # items of each task that were scored, at most; None: all
    split: Half | None = None
    """The half of the items that was scored; None: both."""
    fused_kernels: bool | None = None
    """Whether models wrote their answers with fused kernels; None: they write none."""
    failures: dict[str, str] = Field(default_factory=dict)
    """What could not be evaluated, by task or model, and why."""
    models: tuple[_Model, ...] = Field(min_length=1)

    def of_role(self, *roles: Role) -> tuple[_Model, ...]:
        """The models of these roles."""
        return tuple(model for model in self.models if model.role in roles)

    @property
    def native(self) -> _Model | None:
        """The native model."""
        return next(iter(self.of_role("native")), None)

    @property
    def scaled(self) -> _Model | None:
        """The scaled model without training."""
        return next(iter(self.of_role("scaled")), None)

    @property
    def students(self) -> tuple[_Model, ...]:
        """All models but the native and the scaled one."""
        return tuple(model for model in self.models if model.role not in ("native", "scaled"))

    @property
    def final(self) -> _Model | None:
        """What the run's last stage made; None if it could not be evaluated."""
        return next(iter(self.of_role("final")), None)

    def marked(self, text: str, mark: str) -> str:
        """Text about figures, marked with the half and the limit if they are of some items only.

        Args:
            text: is marked.
            mark: stands before the limit. It begins with what also stands before the half.
        """
        if self.split is not None:
            text += f"{', half=' if mark.startswith(',') else mark[0]}{self.split}"
        return text if self.limit is None else f"{text}{mark}{self.limit}"

    def figures(self, of: Callable[[_Model], Mapping[str, float | None]]) -> dict[str, float]:
        """Figures of every model by `eval/MODEL/KEY`, for the tracker. None is left out."""
        return {
            f"eval/{model.name}/{key}": value
            for model in self.models
            for key, value in of(model).items()
            if value is not None
        }

    def plain(self) -> dict[str, Any]:
        """The record as JSON values, without what was never set."""
        content = self.model_dump(mode="json", exclude_unset=True)
        return {"schema": SCHEMA, "suite": self.suite, **content}


class Dataset(Record):
    """The held-out text of an evaluation."""

    name: str
    documents: tuple[str, ...] = ()
    fingerprint: str | None = None
    tokens: NonNegativeInt | None = None


class PerplexityScore(Record):
    """How far a model is restored at one window; definitions: `src/evals/perplexity.py`."""

    # Files that others wrote may hold NaN.
    model_config = ConfigDict(allow_inf_nan=True)

    gap_closed: float | None = None
    gap_closed_nll: float | None = None
    recovery: float | None = None


class PerplexityModel(ModelRecord):
    """Perplexity, nats a token and scored tokens by window length in tokens."""

    model_config = ConfigDict(allow_inf_nan=True)

    perplexity: dict[PositiveInt, float | None]
    nll: dict[PositiveInt, float | None] = Field(default_factory=dict)
    tokens: dict[PositiveInt, int] = Field(default_factory=dict)
    scores: dict[PositiveInt, PerplexityScore] = Field(default_factory=dict)

    def score(self, window: int) -> PerplexityScore:
        """The score at a window; without values where the evaluation wrote none."""
        return self.scores.get(window, PerplexityScore())


class PerplexityResults(SuiteResults[PerplexityModel]):
    """`evals/perplexity.json`."""

    suite: ClassVar[str] = "perplexity"
    dataset: Dataset
    windows: tuple[PositiveInt, ...] = Field(min_length=1)
    headline: PositiveInt | None = None  # the window whose scores are quoted


class Mean(Record):
    """A mean over tasks, each of equal weight, with its standard error."""

    value: float
    stderr: float | None = None
    tasks: tuple[str, ...] = ()
    higher_is_better: bool = True


class TaskResult(Record):
    """A model's figure for one task."""

    value: float
    stderr: float | None = None
    n: NonNegativeInt | None = None
    metric: str | None = None
    higher_is_better: bool = True
    chance: float | None = None  # what guessing scores; None where that means nothing
    length: PositiveInt | None = None  # of RULER's prompts, in tokens
    truncated: NonNegativeInt | None = None
    """Papers that lost their end, since they were longer than the window."""
    tokens: float | None = None  # of a paper's prompt, on average


class Intervals(Record):
    """95% intervals of the scores."""

    recovery: Interval | None = None
    gap_closed: Interval | None = None
    recovery_vs_best: Interval | None = None


class Difference(Record):
    """A student's value minus another model's."""

    value: float
    interval: Interval | None = None


class Differences(Record):
    """Differences from the scaled and from the native model."""

    to_scaled: Difference
    to_native: Difference


class Score(Record):
    """How far a student is restored on a task, a category or an average."""

    recovery: float | None = None
    gap_closed: float | None = None
    recovery_vs_best: float | None = None
    interval: Intervals = Intervals()
    difference: Differences | None = None
    discriminating: bool | None = None  # whether the native model is above chance
    significant: bool | None = None
    """Whether the difference from the scaled model is more than noise."""


class StudentScores(Record):
    """A student's scores; `average` is over the tasks that discriminate."""

    tasks: dict[str, Score] = Field(default_factory=dict)
    categories: dict[str, Score] = Field(default_factory=dict)
    average: Score | None = None
    full_average: Score | None = None


class TaskModel(ModelRecord):
    """A model's figures by task, and the means of them."""

    results: dict[str, TaskResult] = Field(default_factory=dict)
    categories: dict[str, Mean] = Field(default_factory=dict)
    average: Mean | None = None  # over the tasks that discriminate
    full_average: Mean | None = None
    by_length: dict[PositiveInt, Mean] = Field(default_factory=dict)
    """RULER's mean over tasks by length in tokens."""
    window: PositiveInt | None = None  # tokens that the model reads and writes at once
    scores: StudentScores = StudentScores()
    seconds: dict[str, float] = Field(default_factory=dict)
    """Of the tasks that were evaluated now and not taken from the cache."""
    lm_eval: dict[str, Any] = Field(default_factory=dict)  # lm-eval's own figures by its task names


class TaskResults(SuiteResults[TaskModel]):
    """A suite of tasks that are scored item by item."""

    seed: NonNegativeInt | None = None
    resamples: NonNegativeInt | None = None
    dtype: str | None = None
    device: str | None = None


class ShortResults(TaskResults):
    """`evals/short.json`."""

    suite: ClassVar[str] = "short"
    title: ClassVar[str] = "Short suite"
    source: str | None = None


class FewShotResults(ShortResults):
    """`evals/few_shot.json`: the short suite's tasks after `shots` worked examples."""

    suite: ClassVar[str] = "few_shot"
    title: ClassVar[str] = "Few-shot tasks"
    shots: PositiveInt | None = None


class LongTasksResults(ShortResults):
    """`evals/long_tasks.json`: lm-eval's own tasks on long text."""

    suite: ClassVar[str] = "long_tasks"
    title: ClassVar[str] = "LongBench v2 and BABILong"


class RulerResults(TaskResults):
    """`evals/ruler.json`."""

    suite: ClassVar[str] = "ruler"
    lengths: tuple[PositiveInt, ...] = ()


class PapersResults(TaskResults):
    """`evals/papers.json`: questions on whole papers."""

    suite: ClassVar[str] = "papers"


class NeedleCell(Record):
    """Share of needles found at a length in tokens and a depth from 0 (start) to 100 (end)."""

    length: PositiveInt
    depth: Annotated[float, Field(ge=0, le=100)]
    value: float
    stderr: float | None = None
    n: NonNegativeInt | None = None


class NeedleModel(ModelRecord):
    """A model's needle-depth grid."""

    cells: tuple[NeedleCell, ...] = ()


class NeedleDepthResults(SuiteResults[NeedleModel]):
    """`evals/needle_depth.json`."""

    suite: ClassVar[str] = "needle_depth"
    seed: NonNegativeInt | None = None


class DriftModel(ModelRecord):
    """How far a model's inner states are from the native model's, layer by layer, in nats."""

    relation_kl: dict[str, Curve] = Field(default_factory=dict)  # by relation: `qq`, `kk`, `vv`
    relation_kl_by_position: dict[str, Curve] = Field(default_factory=dict)
    """By relation, and `edges`, where bins of positions begin."""
    relation_kl_by_layer_and_position: dict[str, tuple[Curve, ...]] = Field(default_factory=dict)
    attention_kl: Curve = ()
    attention_kl_by_position: Curve = ()
    hidden_cosine: Curve = ()
    logit_kl: float | None = None
    logit_kl_by_position: Curve = ()


class DriftResults(SuiteResults[DriftModel]):
    """`evals/drift.json`."""

    suite: ClassVar[str] = "drift"
    dataset: Dataset | None = None
    length: PositiveInt | None = None
    edges: tuple[NonNegativeInt, ...] = ()


_Results = TypeVar("_Results", bound=SuiteResults[Any])


def read(
    evals: Path,
    kind: type[_Results],
    open_file: Callable[[Path], bytes] = Path.read_bytes,
    *,
    split: Half | None = None,
) -> _Results | None:
    """A suite's results in a run's `evals/`; None where the suite was not evaluated.

    `open_file` gives a file's content, or raises OSError. `split` is the half whose results are
    read; None for the results of all items. Raises ResultsError if the file cannot be read, is
    damaged or of an unknown schema.
    """
    file = evals / f"{kind.suite}{'' if split is None else f'.{split}'}.json"
    try:
        content = open_file(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResultsError(f"{file.name} cannot be read ({error.strerror})") from error
    if not content.strip():
        raise ResultsError(f"{file.name} is empty: {_again(kind, split)}")
    try:
        return parse(content, kind, split=split)
    except ResultsError as error:
        raise ResultsError(f"{file.name}: {error}") from error


def parse(
    content: bytes | str,
    kind: type[_Results],
    *,
    split: Half | None = None,
) -> _Results:
    """A record from a file's text. Raises as `read`; `split` is of the remedy."""
    remedy = _again(kind, split)
    try:
        plain = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"not JSON ({error}): {remedy}") from error
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SCHEMA:
        raise ResultsError(f"schema={schema!r} is unknown; allowed: {SCHEMA}; {remedy}")
    if plain.get("suite") != kind.suite:
        raise ResultsError(f"suite={plain.get('suite')!r}; allowed: {kind.suite}; {remedy}")
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise ResultsError(f"{first_reason(error)}; {remedy}") from error


def first_reason(error: ValidationError) -> str:
    """The first complaint of a validation, on one line: `place: what is wrong`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def long_average(*parts: TaskModel | None) -> Mean | None:
    """The mean over all tasks that a model's averages of several suites are over."""
    means = [part.average for part in parts if part and part.average]
    if len(means) < 2:
        return next(iter(means), None)
    n = sum(len(mean.tasks) for mean in means)
    errors = [None if m.stderr is None else len(m.tasks) * m.stderr for m in means]
    stated = [error for error in errors if error is not None]
    return Mean(
        value=sum(len(mean.tasks) * mean.value for mean in means) / n,
        stderr=math.hypot(*stated) / n if len(stated) == len(errors) else None,
        tasks=tuple(task for mean in means for task in mean.tasks),
    )


def _again(kind: type[SuiteResults[Any]], split: str | None) -> str:
    half = "" if split is None else f" split={split}"
    return f"evaluate again with python -m src.evaluate run=RUN_DIR eval={kind.suite}{half}"
