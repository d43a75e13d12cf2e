"""Which method at which budget: one matrix for each metric, and the same figures against tokens.

Rows are methods with their scalings, columns are budgets. A block holds what can be compared: one
model and one target length. Scalings of a block are compared, but for metrics
relative to the scaled model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from src.report import formatting
from src.report.charts import (
    DASHES,
    GRAY,
    Axis,
    Chart,
    Dash,
    Point,
    Series,
    method_slots,
    short_length,
    token_ticks,
)
from src.report.figures.base import line, most_methods_first
from src.report.groups import Asked, Group, Metric, grouped, metrics_of
from src.report.noise import Estimate, Mark, marks, standings

PAPERS_BUDGETS = ((4_456_448.0, "4.25M"), (268_435_456.0, "256M"))
_NATIVE, _UNTRAINED = "native model", ", untrained"


@dataclass(frozen=True)
class Entry:
    """A group's figure in a cell."""

    group: Group
    estimate: Estimate
    peers: str  # entries with the same text are compared with each other
    place: int  # among its peers
    standings: str
    """How it stands to each of its peers: the first letter of a `Mark`, by their places."""
    mark: Mark = Mark.ABSENT  # among those that are shown when all runs are


@dataclass(frozen=True)
class MatrixRow:
    """A method with a scaling; at each budget its groups, the usual settings first."""

    method: str
    scaling: str
    cells: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True)
class Matrix:
    """Figures of one metric in one block."""

    block: str
    metric: Metric
    budgets: tuple[int, ...]  # tokens, one for each column
    rows: tuple[MatrixRow, ...]
    baselines: tuple[tuple[str, Estimate], ...]  # the native model and the scaled ones, untrained
    scaling: str  # of all rows; empty where they differ
    random: bool  # whether the model's weights are random


def matrices(groups: Sequence[Group]) -> Iterator[tuple[Matrix, Chart]]:
    """A matrix and its chart for each block and metric, the most informative first."""
    slots = method_slots([group.method for group in groups])
    for name, members in blocks(groups):
        for metric, kin in _measured(members):
            ordered = sorted(
                kin, key=lambda g: (slots[g.method], scaling_order(g), g.tokens, g.rank)
            )
            yield _matrix(name, metric, ordered), _chart(metric, ordered, slots)


def blocks(groups: Iterable[Group]) -> list[tuple[str, list[Group]]]:
    """Groups of one model and target length, with a name: most methods come first."""
    return most_methods_first(grouped((g for g in groups if g.tokens), _block_name))


def _block_name(group: Group) -> str:
    """`llama2_7b to 32K`."""
    target = f" to {short_length(group.target)}" if group.target else ""
    return formatting.text(group.model_name + target)


def _measured(members: Sequence[Group]) -> list[tuple[Metric, list[Group]]]:
    """The groups that have a metric, by metric and items; what most of them have comes first.

    Of random weights perplexity comes first: scaling hardly changes them, so there is nothing to
    recover.
    """
    metrics = []
    for metric in metrics_of(members):
        having = [group for group in members if metric.key in group.estimates]
        asked = grouped(having, lambda group, of=metric: group.asked_of(of))
        for one, kin in asked.items():
            label = ", ".join([metric.label, *_asked_parts(one, list(asked))])
            metrics.append((replace(metric, label=label), kin))
    is_random = any(group.random for group in members)
    return sorted(metrics, key=lambda pair: (is_random and bool(pair[0].unit), -len(pair[1])))


def _asked_parts(one: tuple[Asked, ...], others: Sequence[tuple[Asked, ...]]) -> list[str]:
    """Which items a metric is of: what restricts them, and what tells them from others."""
    parts: dict[str, None] = {}
    for place, asked in enumerate(one):
        rivals = [other[place] for other in others if place < len(other)]
        if asked.split is not None:
            parts[f"{asked.split} half"] = None
        if asked.limit is not None:
            parts[f"limit={asked.limit}"] = None
        if len({rival.tasks for rival in rivals}) > 1:
            parts[f"{len(asked.tasks)} tasks"] = None
        if len({rival.seed for rival in rivals}) > 1:
            parts[f"samples {asked.seed}"] = None
    return list(parts)


def scaling_order(group: Group) -> tuple[bool, str, float]:
    """Sorts groups: linear interpolation first, then by name and factor."""
    return (group.rope != "linear", group.rope, group.factor or 0.0)


def scaling_dashes(groups: Iterable[Group]) -> dict[str, Dash]:
    """A dash for each scaling."""
    scalings = dict.fromkeys(group.scaling for group in sorted(groups, key=scaling_order))
    return {scaling: DASHES[place % len(DASHES)] for place, scaling in enumerate(scalings)}


def line_name(group: Group, dashes: Mapping[str, Dash]) -> str:
    """The method, with its scaling where there are several."""
    return group.method_name + (f", {group.scaling}" if len(dashes) > 1 else "")


def _matrix(block: str, metric: Metric, kin: Sequence[Group]) -> Matrix:
    budgets = tuple(sorted({group.tokens for group in kin}))
    entries = _entries(metric, kin)
    rows = []
    for members in grouped(kin, lambda g: (g.method, g.scaling)).values():
        at = grouped(members, lambda group: group.tokens)
        cells = tuple(tuple(entries[id(g)] for g in at.get(tokens, ())) for tokens in budgets)
        rows.append(MatrixRow(members[0].method_name, members[0].scaling, cells))
    scalings, is_random = {group.scaling for group in kin}, any(group.random for group in kin)
    scaling = scalings.pop() if len(scalings) == 1 else ""
    baselines = tuple(_baselines(metric, kin).items())
    return Matrix(block, metric, budgets, tuple(rows), baselines, scaling, is_random)


def _entries(metric: Metric, kin: Sequence[Group]) -> dict[int, Entry]:
    """By the group's identity in memory; marks are among the first at each method and scaling."""
    made: dict[int, Entry] = {}
    compared = grouped(
        kin, lambda g: f"{g.tokens} {g.scaling}" if metric.of_scaling else f"{g.tokens}"
    )
    for peers, members in compared.items():
        values = [group.estimates[metric.key] for group in members]
        firsts = {id(one[0]) for one in grouped(members, lambda g: (g.method, g.scaling)).values()}
        shown = [g.estimates[metric.key] if id(g) in firsts else None for g in members]
        best = marks(shown, higher_is_better=not metric.lower_is_better)
        for place, (group, value) in enumerate(zip(members, values, strict=True)):
            made[id(group)] = Entry(
                group, value, peers, place, standings(value, values), best[place]
            )
    return made


def _baselines(metric: Metric, kin: Sequence[Group]) -> dict[str, Estimate]:
    """Each untrained model, from the first group that it was evaluated with."""
    estimates: dict[str, Estimate] = {}
    for role in ("native", "scaled"):
        for group in kin:
            name = _NATIVE if role == "native" else group.scaling + _UNTRAINED
            if estimate := group.baselines.get(role, {}).get(metric.key):
                estimates.setdefault(name, estimate)
    return estimates


def _chart(metric: Metric, kin: Sequence[Group], slots: Mapping[str, int]) -> Chart:
    dashes = scaling_dashes(kin)
    series = [
        line(
            line_name(members[0], dashes),
            members,
            metric,
            lambda group: group.tokens,
            slots[members[0].method],
            dashes[members[0].scaling],
        )
        for members in grouped(kin, lambda group: (group.method, group.scaling)).values()
    ]
    budgets = sorted({group.tokens for group in kin})
    ends = dict.fromkeys((float(budgets[0]), float(budgets[-1])))
    for name, estimate in _baselines(metric, kin).items():
        points = tuple(Point(at, estimate.value, note=name) for at in ends)
        dash = dashes.get(name.removesuffix(_UNTRAINED), "dot")
        series.append(Series(name, points, GRAY, dash))
    marked = tuple(mark for mark in PAPERS_BUDGETS if budgets[0] <= mark[0] <= budgets[-1])
    x = Axis("training tokens", log=True, ticks=token_ticks(budgets))
    return Chart(x, Axis(metric.title), tuple(series), marked)
