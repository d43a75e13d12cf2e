"""Runs that differ only in their seed, as one row of a comparison.

Only finished runs with a readable record and config count. A seed that was run twice counts once,
by its newest run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from src.report import formatting, labels, noise
from src.report.files import Result
from src.report.names import method_name, scaling_name
from src.report.noise import Estimate
from src.report.runs import Run
from src.results import PerplexityModel, PerplexityResults, ShortResults, TaskModel, long_average

Figures = dict[str, Estimate]  # by the key of a metric
_Item = TypeVar("_Item")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Metric:
    """A figure that runs are compared by."""

    key: str
    label: str
    unit: str = "%"
    lower_is_better: bool = False
    of_scaling: bool = False
    """Relative to the scaled model, so that figures of two scalings are not compared."""

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


RECOVERY = Metric("recovery", "Recovery, short suite")
GAP_CLOSED = Metric("gap_closed", "Gap closed, short suite", of_scaling=True)
SHORT = Metric("short", "Short average")
RECOVERY_VS_BEST = Metric("recovery_vs_best", "Recovery against the best baseline")
PERPLEXITY_GAP = Metric("perplexity_gap", "Gap closed, perplexity", of_scaling=True)
LONG = Metric("long", "Long average")
_SCORES = (RECOVERY, SHORT, LONG, GAP_CLOSED, PERPLEXITY_GAP, RECOVERY_VS_BEST)


def ruler(length: int) -> Metric:
    """RULER's mean at a length in tokens."""
    return Metric(f"ruler@{length}", f"RULER at {length:,}")


def perplexity(window: int, text: str) -> Metric:
    """Perplexity of a held-out text in windows of so many tokens."""
    label = f"Perplexity of {text}, windows of {window:,}"
    return Metric(f"perplexity@{window}@{text}", label, unit="", lower_is_better=True)


class Asked(NamedTuple):
    """The items of a suite that models were asked."""

    limit: int | None
    split: str | None
    seed: int | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Finished runs that differ only in their seed."""

    members: tuple[int, ...]  # places in the list of runs, newest first
    identity: str  # the settings that decide what is trained, as canonical JSON
    settings: Mapping[str, Any]  # the same, flat: `a.b.c` -> value
    sweep: str
    model: str  # its identity
    model_name: str
    method: str
    rope: str
    target: int | None
    factor: float | None
    random: bool  # whether the model's weights are random
    tokens: int
    hours: float | None  # device-hours of a run, mean over seeds
    device: str
    limit: int | None  # items of each task that were scored, at most; None: all
    split: str | None  # the half of the items that was scored; None: both
    asked: Mapping[str, Asked]  # by suite
    estimates: Mapping[str, Estimate]
    each: tuple[Mapping[str, Estimate], ...]  # the same of each member
    baselines: Mapping[str, Mapping[str, Estimate]]
    """Figures of the native and the merely scaled model, by name."""
    needles: Mapping[tuple[int, float], float]
    """Share of needles found, by length in tokens and depth in percent."""
    variant: str = ""  # settings that most groups of this model and method have otherwise
    rank: tuple[int, int] = (0, 0)
    """Unusual settings, then seeds with a minus. The group with the lowest rank represents its
    `place`, so results play no part in the choice."""
    is_main: bool = True  # whether it represents its place

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.members)

    @property
    def method_name(self) -> str:
        """The method as papers call it."""
        return method_name(self.method)

    @property
    def name(self) -> str:
        """The method, and its unusual settings."""
        return f"{self.method_name} ({self.variant})" if self.variant else self.method_name

    @property
    def scaling(self) -> str:
        """The scaling and its factor, `YaRN x4`."""
        return scaling_name(self.rope, self.factor)

    @property
    def place(self) -> tuple[str, str, float | None, str, int]:
        """Model, scaling, method and tokens."""
        return (self.model, self.rope, self.factor, self.method, self.tokens)

    @property
    def look(self) -> tuple[str, str]:
        """Model and scaling, as labels."""
        return (self.model_name, self.scaling)

    def asked_of(self, metric: Metric) -> tuple[Asked, ...]:
        """What was asked for the metric; figures of different questions are not compared."""
        return _asked_of(metric.key, self.asked)

    @property
    def weights(self) -> str | None:
        """The relations that are aligned, `Q+K+2V`; None without a relation objective."""
        return labels.weights_label(self.settings)

    def without(self, *prefixes: str) -> str:
        """The identity without settings of these prefixes; members of one ablation share it."""
        kept = {k: v for k, v in self.settings.items() if not k.startswith(prefixes)}
        return labels.canonical(kept)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """The data of figures and tables."""

    runs: tuple[Run, ...]  # newest first
    window: int | None = None  # the headline window that was asked for, as in `headline_window`
    results: tuple[Result, ...] = ()  # result files of benchmarks

    @cached_property
    def groups(self) -> list[Group]:
        """Finished runs, by everything but their seed."""
        return group_runs(self.runs, self.window)

    @cached_property
    def labels(self) -> list[str]:
        """What tells each run from the others."""
        return labels.run_labels(self.runs)


def headline_window(report: PerplexityResults, window: int | None = None) -> int | None:
    """`window`, or by default the evaluation's headline or else its largest window.

    None if that window was not evaluated.
    """
    wanted = window or report.headline
    if wanted is not None:
        return wanted if wanted in report.windows else None
    return max(report.windows)


def metrics_of(groups: Sequence[Group]) -> list[Metric]:
    """The metrics that any group has: scores, RULER by length, perplexities by window."""
    measured = {key for group in groups for key in group.estimates}
    texts = [key.split("@", 2)[1:] for key in measured if key.startswith("perplexity@")]
    candidates = (
        *_SCORES,
        *map(ruler, lengths(groups)),
        *(perplexity(window, text) for window, text in sorted((int(w), t) for w, t in texts)),
    )
    return [metric for metric in candidates if metric.key in measured]


def lengths(groups: Sequence[Group]) -> list[int]:
    """The lengths that RULER was run at, in tokens."""
    keys = {key for group in groups for key in group.estimates if key.startswith("ruler@")}
    return sorted(int(key.removeprefix("ruler@")) for key in keys)


def gap_closed(run: Run, window: int | None = None) -> float | None:
    """The share of the gap that the run's last model closed at its headline window."""
    report = run.perplexity
    chosen = headline_window(report, window) if report else None
    return report.final.score(chosen).gap_closed if report and report.final and chosen else None


def group_runs(runs: Sequence[Run], window: int | None = None) -> list[Group]:
    """All groups, by model, scaling, method and tokens; `window` as in `headline_window`."""

    def key(place: int) -> tuple[str, str, str]:
        run = runs[place]
        identity = labels.canonical(labels.training_settings(run))
        return (run.record and run.record.experiment) or "", run.sweep, identity

    finished = [i for i, run in enumerate(runs) if run.state == "finished" and run.config.values]
    members = grouped(finished, key)
    groups = [_group(key, places, runs, window) for key, places in members.items()]

    def order(group: Group) -> tuple[Any, ...]:
        rope = (group.rope, group.target or 0)
        return (group.model, rope, group.method, group.tokens, group.variant, group.identity)

    return sorted(_with_variants(groups), key=order)


def grouped(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """The items by key; keys and items keep their order."""
    members: dict[_Key, list[_Item]] = {}
    for item in items:
        members.setdefault(key(item), []).append(item)
    return members


def _group(
    key: tuple[str, str, str], indices: list[int], runs: Sequence[Run], window: int | None
) -> Group:
    _, sweep, identity = key
    seeds: dict[int | None, int] = {}
    for index in sorted(indices, key=lambda i: runs[i].started_at):
        record = runs[index].record
        seeds[record.seed if record else None] = index
    chosen = sorted(seeds.values(), key=lambda i: runs[i].started_at, reverse=True)
    newest = runs[chosen[0]]
    assert newest.record is not None
    record, settings = newest.record, newest.settings
    each, asked = [_measure(runs[i], window) for i in chosen], [_asked(runs[i]) for i in chosen]
    hours = [h for i in chosen if (h := device_hours(runs[i])) is not None]
    suites = [suite for suite in newest.task_suites if suite]
    return Group(
        members=tuple(chosen),
        identity=identity,
        settings=labels.flat(json.loads(identity)),
        sweep=sweep,
        model=newest.model,
        model_name=newest.model_name,
        method=newest.method,
        rope=settings.rope.type or "",
        target=settings.rope.target_length,
        factor=settings.factor,
        random=settings.model.random_weights,
        tokens=newest.tokens or 0,
        hours=statistics.fmean(hours) if hours else None,
        device=record.device or "",
        limit=next((suite.limit for suite in suites if suite.limit is not None), None),
        split=next((suite.split for suite in suites if suite.split is not None), None),
        # By suite, of the newest run that has it.
        asked={suite: one for found in reversed(asked) for suite, one in found.items()},
        estimates=_merged(list(zip(each, asked, strict=True))),
        each=tuple(each),
        baselines={name: _baseline(newest, name, window) for name in ("native", "scaled")},
        needles=_needles([runs[i] for i in chosen]),
    )


def device_hours(run: Run) -> float | None:
    """Hours of training times devices."""
    if run.seconds is None or run.record is None:
        return None
    return run.seconds * run.record.world_size / 3600


def _asked(run: Run) -> dict[str, Asked]:
    """What each suite of tasks asked the run's last model."""
    return {
        suite.suite: Asked(
            suite.limit,
            suite.split,
            suite.seed,
            tuple(sorted(suite.final.results)) if suite.final else (),
        )
        for suite in run.task_suites
        if suite
    }


def _asked_of(key: str, asked: Mapping[str, Asked]) -> tuple[Asked, ...]:
    suites = {"perplexity": (), PERPLEXITY_GAP.key: (), "ruler": ("ruler",)}
    suites[LONG.key] = ("ruler", "papers")
    wanted = suites.get(key.partition("@")[0], ("short",))
    return tuple(asked[suite] for suite in wanted if suite in asked)


def _merged(measured: Sequence[tuple[Figures, Mapping[str, Asked]]]) -> Figures:
    """Means over seeds, newest first. A seed that was asked something else is left out."""
    merged: Figures = {}
    for key in dict.fromkeys(key for figures, _ in measured for key in figures):
        having = [
            (figures[key], _asked_of(key, asked)) for figures, asked in measured if key in figures
        ]
        same = [estimate for estimate, asked in having if asked == having[0][1]]
        if estimate := noise.over_seeds(same):
            merged[key] = estimate
    return merged


def _baseline(run: Run, role: Literal["native", "scaled"], window: int | None) -> Figures:
    """Figures of the untrained model that the run was evaluated beside."""
    models = (getattr(suite, role) if suite else None for suite in run.task_suites)
    return suite_figures(*models) | _perplexities(run.perplexity, role, window)


def _measure(run: Run, window: int | None) -> Figures:
    """Figures of the run's last model."""
    estimates = suite_figures(*(suite and suite.final for suite in run.task_suites))
    if run.short:
        estimates |= _scores(run.short)
    gap = gap_closed(run, window)
    if gap is not None and math.isfinite(gap):
        estimates[PERPLEXITY_GAP.key] = Estimate(100 * gap)
    return estimates | _perplexities(run.perplexity, "final", window)


def _perplexities(
    report: PerplexityResults | None,
    role: Literal["native", "scaled", "final"],
    window: int | None,
) -> Figures:
    """A model's perplexity at the headline window and at the largest one."""
    model: PerplexityModel | None = getattr(report, role) if report else None
    if report is None or model is None:
        return {}
    chosen = {headline_window(report, window), max(report.windows)} - {None}
    text = formatting.text(report.dataset.name)
    return {
        perplexity(at, text).key: Estimate(value)
        for at in sorted(chosen, key=lambda at: at or 0)
        if at and (value := model.perplexity.get(at)) is not None and math.isfinite(value)
    }


def _scores(report: ShortResults) -> Figures:
    score = report.final.scores.average if report.final else None
    if score is None:
        return {}
    figures = (
        (RECOVERY, score.recovery, score.interval.recovery, 1),
        (GAP_CLOSED, score.gap_closed, score.interval.gap_closed, 100),
        (RECOVERY_VS_BEST, score.recovery_vs_best, score.interval.recovery_vs_best, 1),
    )
    estimates = {}
    for metric, value, ends, scale in figures:
        if value is not None:
            low, high = ends or (None, None)
            estimate = Estimate(scale * value)
            if low is not None and high is not None:
                estimate = replace(estimate, low=scale * low, high=scale * high)
            estimates[metric.key] = estimate
    return estimates


def suite_figures(
    short_suite: TaskModel | None, ruler_suite: TaskModel | None, papers_suite: TaskModel | None
) -> dict[str, Estimate]:
    """A model's averages and its RULER means by length, in percent.

    The average of a short suite that only has bits per byte is no percentage, and left out.
    """
    named = [(SHORT.key, short_suite and short_suite.average)]
    named.append((LONG.key, long_average(ruler_suite, papers_suite)))
    if ruler_suite:
        named += [(ruler(length).key, mean) for length, mean in ruler_suite.by_length.items()]
    return {
        key: noise.around(100 * mean.value, None if mean.stderr is None else 100 * mean.stderr)
        for key, mean in named
        if mean and mean.higher_is_better
    }


def _needles(runs: Iterable[Run]) -> dict[tuple[int, float], float]:
    models = [run.needle_depth.final for run in runs if run.needle_depth]
    cells = grouped(
        [cell for model in models if model for cell in model.cells],
        lambda cell: (cell.length, cell.depth),
    )
    return {place: statistics.fmean(cell.value for cell in kin) for place, kin in cells.items()}


def _with_variants(groups: list[Group]) -> list[Group]:
    """Name the unusual settings of each group, and mark the main groups."""
    named: list[Group] = []
    for family in grouped(groups, lambda group: (group.model, group.method)).values():
        usual = labels.usual_settings([(group.settings, bool(group.sweep)) for group in family])
        for group in family:
            unusual = labels.unusual_settings(group.settings, usual)
            rank = (len(unusual), -group.seeds)
            variant = labels.variant(group.settings, unusual)
            named.append(replace(group, variant=variant, rank=rank))
    kin_by_place = grouped(named, lambda group: group.place).values()
    mains = {id(min(kin, key=lambda group: group.rank)) for kin in kin_by_place}
    return [replace(group, is_main=id(group) in mains) for group in named]
