"""What one setting changes: a figure for every setting that runs differ in, and one for the seed.

Two groups that differ in nothing but one setting, or in settings that follow it (a rank and its
alpha), are a comparison of that setting. A difference that is made of two smaller ones, as in a
grid of two settings, is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from src.report import formatting
from src.report.charts import (
    COLORS,
    Axis,
    Chart,
    Point,
    Series,
    binary_tokens,
    log_ticks,
    method_slots,
)
from src.report.figures.answer import blocks
from src.report.figures.base import TRAIN, Choice, Figure, group_label, line
from src.report.groups import Group, Metric, ReportData, grouped, metrics_of
from src.report.labels import setting_text, short_key

# Settings with a figure of their own, and those that follow them.
_ELSEWHERE = (".weights.", "rope.", "budget", ".tokens", "model.", "recipe.name")
_LOG_SPAN = 8  # values that span this factor get a logarithmic axis
_MAX_SEEDED = 12  # groups whose seeds are drawn

Difference = frozenset[str]


def _settings(data: ReportData) -> Iterator[Choice]:
    """One chart for each setting, block and metric."""
    slots = method_slots([group.method for group in data.groups])
    charts: dict[str, list[tuple[str, str, Chart]]] = {}
    for block, members in blocks(data.groups):
        for metric in metrics_of(members):
            measured = [group for group in members if metric.key in group.estimates]
            for asked in grouped(measured, lambda group, of=metric: group.asked_of(of)).values():
                for keys, sets in _comparisons(asked).items():
                    name = _named(keys)
                    chart = _chart(name, sets, metric, slots)
                    charts.setdefault(short_key(name), []).append((block, metric.label, chart))
                if chart := _seeds(data, asked, metric):
                    charts.setdefault("seed", []).append((block, metric.label, chart))
    for name, choices in sorted(charts.items(), key=lambda item: (item[0] == "seed", item[0])):
        for block, label, chart in choices:
            yield (name, block, label), chart


def _comparisons(groups: Sequence[Group]) -> dict[Difference, list[list[Group]]]:
    """By what they differ in: sets of groups that differ in nothing else."""
    pairs: dict[Difference, list[tuple[Group, Group]]] = {}
    for family in grouped(groups, lambda group: (group.method, group.look)).values():
        known = {key for group in family for key in group.settings}
        varied = [k for k in known if len({str(group.settings.get(k)) for group in family}) > 1]
        for a, b in combinations(family, 2):
            keys = frozenset(key for key in varied if a.settings.get(key) != b.settings.get(key))
            if keys and not any(part in key for key in keys for part in _ELSEWHERE):
                pairs.setdefault(keys, []).append((a, b))
    return {
        keys: _joined(linked)
        for keys, linked in pairs.items()
        if not any(
            one | two == keys for one, two in combinations([k for k in pairs if k < keys], 2)
        )
    }


def _joined(pairs: Sequence[tuple[Group, Group]]) -> list[list[Group]]:
    """Pairs that share a group, as one set of groups."""
    sets: list[list[Group]] = []
    for pair in pairs:
        touching = [one for one in sets if any(group in one for group in pair)]
        merged = list({id(group): group for one in touching for group in one}.values())
        merged += [group for group in pair if group not in merged]
        sets = [one for one in sets if one not in touching] + [merged]
    return sets


def _named(keys: Difference) -> str:
    """The setting that the others follow: a name or a type, else the shortest."""
    return min(keys, key=lambda key: (not key.endswith((".name", ".type")), len(key), key))


def _chart(
    key: str, sets: Sequence[Sequence[Group]], metric: Metric, slots: Mapping[str, int]
) -> Chart:
    values = [group.settings.get(key) for one in sets for group in one]
    axis, place = _axis(key, values)
    alone = len({one[0].method for one in sets}) == len(sets)
    series = []
    for number, one in enumerate(sets):
        name = one[0].method_name if alone else _common_label(one[0], key)
        slot = slots[one[0].method] if alone else number % len(COLORS)
        mode = "dots" if axis.categories else "line"
        series.append(
            line(name, one, metric, lambda g: place[_text(g.settings.get(key))], slot, mode=mode)
        )
    return Chart(axis, Axis(metric.title), tuple(series))


def _common_label(group: Group, key: str) -> str:
    """What a set of groups has in common."""
    others = [part for part in group.variant.split(", ") if not part.startswith(short_key(key))]
    return ", ".join([group_label(group).replace(f" ({group.variant})", ""), *filter(None, others)])


def _axis(key: str, values: Sequence[Any]) -> tuple[Axis, dict[str, float]]:
    """The axis of a setting, and where each value is on it."""
    texts = {_text(value): value for value in values}
    numbers = [v for v in texts.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(texts):
        names = tuple(sorted(texts))
        return Axis(key, categories=names), {name: float(at) for at, name in enumerate(names)}
    is_log = min(numbers) > 0 and max(numbers) >= _LOG_SPAN * min(numbers)
    ticks = tuple((float(number), setting_text(number)) for number in sorted(numbers))
    ticks = ticks if len(ticks) <= 8 else log_ticks(numbers) if is_log else ()
    return Axis(key, log=is_log, ticks=ticks), {text: float(v) for text, v in texts.items()}


def _text(value: Any) -> str:
    return formatting.text(setting_text(value))


def _seeds(data: ReportData, groups: Sequence[Group], metric: Metric) -> Chart | None:
    """Each seed's own value, for the groups that stand for their place."""
    several = [g for g in groups if g.is_main and sum(metric.key in one for one in g.each) > 1]
    several = sorted(several, key=lambda group: -group.seeds)[:_MAX_SEEDED]
    runs = {run for group in several for run in group.members}
    seeds = sorted({_seed(data, run) for run in runs}, key=lambda seed: (len(seed), seed))
    place = {seed: float(at) for at, seed in enumerate(seeds)}
    series = []
    for slot, group in enumerate(several):
        name = ", ".join((group.name, group.scaling, binary_tokens(group.tokens)))
        points = [
            Point(place[_seed(data, run)], e.value, e.low, e.high, name, (run,))
            for run, figures in zip(group.members, group.each, strict=True)
            if (e := figures.get(metric.key))
        ]
        ordered = tuple(sorted(points, key=lambda point: point.x))
        series.append(Series(formatting.text(name), ordered, slot, mode="dots"))
    if not series:
        return None
    return Chart(Axis("seed", categories=tuple(seeds)), Axis(metric.title), tuple(series))


def _seed(data: ReportData, run: int) -> str:
    record = data.runs[run].record
    return str(record.seed if record else None)


FIGURES = (
    Figure(
        "setting",
        "What changes with",
        "settings",
        ("setting", "compared", "metric"),
        _settings,
        "Points of one colour differ in nothing but this setting, what follows it, and the seed.",
        "No two evaluated runs differ in one setting alone, or in the seed. Any key can be swept:",
        f"{TRAIN} -m +experiment=quickstart recipe.stages.ard.lr=1e-4,1e-3 seed=1,2,3",
        each=True,
    ),
)
