"""The headline table: methods at their budgets, in blocks that can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from src.report import formatting, groups
from src.report.charts import binary_tokens, method_slots
from src.report.figures import by_look, lengths, look_label, short_length
from src.report.groups import Group, Metric
from src.report.noise import Estimate, Mark, marks


@dataclass(frozen=True)
class Column:
    """A figure of the table."""

    metric: Metric
    title: str
    with_interval: bool = False


@dataclass(frozen=True)
class Cell:
    """One figure as text, and what is needed to mark it."""

    text: str
    interval: str
    value: float | None
    half: float | None
    mark: Mark


@dataclass(frozen=True)
class Row:
    """A group of runs, or a baseline, which takes no part in the choice of the best."""

    name: str
    variant: str
    tokens: str
    seeds: int | None
    hours: str
    cells: tuple[Cell, ...]
    runs: tuple[int, ...]
    place: str = ""
    rank: tuple[int, int] = (0, 0)
    is_main: bool = True


@dataclass(frozen=True)
class Block:
    """Rows of one model, scaling and size of the suites: those that can be compared."""

    title: str
    limit: int | None
    baselines: tuple[Row, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Headline:
    """The whole table."""

    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    missing: tuple[str, ...]
    """Suites that no run has results of."""


def headline(found: Sequence[Group]) -> Headline:
    """The table of all groups; marks are among the main rows of a block."""
    columns = _columns(found)
    blocks = [
        _block(look_label(look), limit, members, columns)
        for look, kin in by_look(found)
        for limit, members in _by_limit(kin)
    ]
    known = {column.metric.key for column in columns}
    suites = {
        "short": groups.SHORT.key in known,
        "long": groups.LONG.key in known or any(key.startswith("ruler@") for key in known),
        "perplexity": groups.PERPLEXITY_GAP.key in known,
    }
    missing = tuple(suite for suite, is_there in suites.items() if not is_there)
    return Headline(tuple(columns), tuple(blocks), missing)


def _columns(found: Sequence[Group]) -> list[Column]:
    candidates = [
        Column(groups.SHORT, "short average", with_interval=True),
        Column(groups.RECOVERY, "recovery", with_interval=True),
        Column(groups.RECOVERY_VS_BEST, "vs best baseline"),
        Column(groups.GAP_CLOSED, "gap closed"),
        Column(groups.PERPLEXITY_GAP, "perplexity gap closed"),
        *(Column(groups.ruler(n), f"RULER {short_length(n)}") for n in lengths(found)),
    ]
    known = {key for group in found for key in group.estimates}
    return [column for column in candidates if column.metric.key in known]


def _by_limit(kin: Sequence[Group]) -> list[tuple[int | None, list[Group]]]:
    limits = sorted({group.limit for group in kin}, key=lambda limit: limit or 0)
    return [(limit, [group for group in kin if group.limit == limit]) for limit in limits]


def _block(
    title: str, limit: int | None, members: Sequence[Group], columns: Sequence[Column]
) -> Block:
    slots = method_slots([group.method for group in members])
    ordered = sorted(members, key=lambda g: (slots[g.method], g.tokens, g.rank))
    mains = [group for group in ordered if group.is_main]
    standing = {
        column.metric.key: dict(
            zip(
                map(id, mains),
                marks([group.estimates.get(column.metric.key) for group in mains]),
                strict=True,
            )
        )
        for column in columns
    }
    rows = [
        Row(
            name=formatting.text(group.method),
            variant=formatting.text(group.variant) if group.variant else "",
            tokens=binary_tokens(group.tokens),
            seeds=group.seeds,
            hours=_hours(group),
            cells=tuple(
                _cell(
                    group.estimates.get(column.metric.key),
                    standing[column.metric.key].get(id(group), Mark.ABSENT),
                )
                for column in columns
            ),
            runs=group.members,
            place=str(group.place),
            rank=group.rank,
            is_main=group.is_main,
        )
        for group in ordered
    ]
    baselines = [row for name in ("native", "scaled") if (row := _baseline(name, members, columns))]
    return Block(title, limit, tuple(baselines), tuple(rows))


def _baseline(name: str, members: Sequence[Group], columns: Sequence[Column]) -> Row | None:
    group = next((group for group in members if group.baselines.get(name)), None)
    if group is None:
        return None
    figures = group.baselines[name]
    cells = tuple(_cell(figures.get(column.metric.key), Mark.ABSENT) for column in columns)
    return Row(name, "", formatting.DASH, None, formatting.DASH, cells, group.members)


def _cell(estimate: Estimate | None, mark: Mark) -> Cell:
    if estimate is None:
        return Cell(formatting.DASH, "", None, None, mark)
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f"{estimate.low:.1f} to {estimate.high:.1f}"
    return Cell(f"{estimate.value:.1f}", interval, estimate.value, estimate.half, mark)


def _hours(group: Group) -> str:
    if group.hours is None:
        return formatting.DASH
    hours = f"{group.hours:,.0f}" if group.hours >= 100 else f"{group.hours:.2g}"
    return f"{hours} CPU" if "cpu" in group.device.lower() else hours
