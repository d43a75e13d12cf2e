"""A figure of the report: its panel, its texts, and the function that makes its charts.

To add one, write a function that yields labelled charts and put a `Figure` into `FIGURES` of its
module. Page and paper then show it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from src.report import formatting
from src.report.charts import Chart, Dash, Heatmap, Point, Series, binary_tokens
from src.report.groups import Group, Metric, ReportData, grouped

TRAIN = "python -m src.train"
SWEEP = f"{TRAIN} -m +experiment=linearard_32k +sweeps="
EVALUATE = "python -m src.evaluate run=RUN_DIR eval="

_Key = TypeVar("_Key")
Choice = tuple[tuple[str, ...], Chart | Heatmap]
"""A chart with one label for each thing that is chosen."""


@dataclass(frozen=True)
class Figure:
    """Charts of one kind, of which the page shows one at a time."""

    name: str
    title: str
    panel: str
    chosen_by: tuple[str, ...]  # what there is to choose, such as `metric`
    choices: Callable[[ReportData], Iterable[Choice]]  # all charts; the first is shown at first
    note: str
    hint: str  # why there is nothing to show, where there is none
    command: str  # what to type then
    of_one_run: bool = False  # each chart shows other runs: a paper gets the first one
    tall: bool = False
    each: bool = False  # the first choice is not made: there is a figure for each of its labels

    def drawn(self, data: ReportData) -> list[tuple[Figure, list[Choice]]]:
        """The figures of the data with their charts; one without charts where there is nothing."""
        choices = list(self.choices(data))
        if not self.each or not choices:
            return [(self, choices)]
        by_first = grouped(choices, lambda choice: choice[0][0])
        return [
            (
                replace(
                    self,
                    name=f"{self.name}-{slug(first)}",
                    title=f"{self.title} {first}",
                    chosen_by=self.chosen_by[1:],
                ),
                [(labels[1:], chart) for labels, chart in kin],
            )
            for first, kin in by_first.items()
        ]


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub("[^a-z0-9.]+", "-", text.lower()).strip("-")


def by_look(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Groups by model and scaling, with a label; the look with most methods comes first."""
    kin = most_methods_first(grouped(groups, lambda group: group.look))
    return [(look_label(look), members) for look, members in kin]


def most_methods_first(kin: dict[_Key, list[Group]]) -> list[tuple[_Key, list[Group]]]:
    """Sets of groups: those with most methods first, then the largest, then by key."""

    def order(item: tuple[Any, list[Group]]) -> tuple[int, int, Any]:
        return (-len({group.method for group in item[1]}), -len(item[1]), item[0])

    return sorted(kin.items(), key=order)


def group_label(group: Group) -> str:
    """A group in one line of a list."""
    parts = [group.name, look_label(group.look), binary_tokens(group.tokens)]
    return formatting.text(", ".join(part for part in parts if part))


def _point(group: Group, metric: Metric, x: float) -> Point:
    """The group's value of the metric, with its interval and its runs."""
    estimate = group.estimates[metric.key]
    seeds = f"{estimate.seeds} seeds" if estimate.seeds > 1 else "1 seed"
    limit = f", limit={group.limit}" if group.limit is not None else ""
    note = f"{group_label(group)}, {seeds}{limit}"
    return Point(x, estimate.value, estimate.low, estimate.high, note, group.members)


def line(
    name: str,
    groups: Iterable[Group],
    metric: Metric,
    x: Callable[[Group], float],
    slot: int,
    dash: Dash = "solid",
    mode: Literal["line", "dots"] = "line",
) -> Series:
    """The groups that have the metric, by x; at one x the one with the lowest rank is drawn."""
    measured = [group for group in groups if metric.key in group.estimates]
    ordered = sorted(measured, key=lambda group: (x(group), group.rank))
    points = tuple(_point(group, metric, x(group)) for group in ordered)
    return Series(formatting.text(name), points, slot, dash, mode, alternatives=True)


def numbered(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels: a repeated label gets a number from its second time on."""
    seen: dict[str, int] = {}
    distinct = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        distinct.append(f"{label} #{seen[label]}".strip() if seen[label] > 1 else label)
    return tuple(distinct)


def look_label(look: tuple[str, str]) -> str:
    """`llama2_7b, linear x8`."""
    return formatting.text(", ".join(part for part in look if part))
