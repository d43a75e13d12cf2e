"""A figure of the report: its panel, its texts, and the function that makes its charts.

To add one, write a function that yields labelled charts and put a `Figure` into `FIGURES` of its
module. Page and paper then show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from src.report import formatting
from src.report.charts import Chart, Dash, Heatmap, Point, Series, binary_tokens
from src.report.groups import (
    GAP_CLOSED,
    LONG,
    PERPLEXITY_GAP,
    RECOVERY,
    SHORT,
    Group,
    Metric,
    ReportData,
    grouped,
    ruler,
)

TRAIN = "python -m src.train"
SWEEP = f"{TRAIN} -m +experiment=linearard_32k +sweeps="
EVALUATE = "python -m src.evaluate run=RUN_DIR eval="
_SCORES = (RECOVERY, GAP_CLOSED, SHORT, PERPLEXITY_GAP, LONG)

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


def metrics_of(groups: Sequence[Group]) -> list[Metric]:
    """The metrics that any group has: scores first, then RULER by length."""
    measured = {key for group in groups for key in group.estimates}
    candidates = (*_SCORES, *map(ruler, lengths(groups)))
    return [metric for metric in candidates if metric.key in measured]


def lengths(groups: Sequence[Group]) -> list[int]:
    """The lengths that RULER was run at, in tokens."""
    keys = {key for group in groups for key in group.estimates if key.startswith("ruler@")}
    return sorted(int(key.removeprefix("ruler@")) for key in keys)


def by_look(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Groups by model and scaling, with a label; the look with most methods comes first."""
    kin = grouped(groups, lambda group: group.look)

    def order(look: tuple[str, str, float | None]) -> tuple[int, int, str]:
        return (-len({group.method for group in kin[look]}), -len(kin[look]), str(look))

    return [(look_label(look), kin[look]) for look in sorted(kin, key=order)]


def by_method(groups: Sequence[Group], slots: Mapping[str, int]) -> list[tuple[str, list[Group]]]:
    """Groups by method, in the order of the methods' colours."""
    members = grouped(groups, lambda group: group.method)
    return sorted(members.items(), key=lambda item: slots[item[0]])


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


def look_label(look: tuple[str, str, float | None]) -> str:
    """`llama2_7b, linear x8`."""
    model, rope, factor = look
    scaling = f"{rope} x{factor:g}" if factor else rope
    return formatting.text(", ".join(part for part in (model, scaling) if part))
