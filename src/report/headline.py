"""The headline table: methods at their budgets, in sections that can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from src.report import formatting, groups
from src.report.charts import binary_tokens, method_slots, short_length
from src.report.figures.base import by_look
from src.report.groups import Group, Metric
from src.report.noise import Estimate, marks, standings
from src.report.tables import Cell, Column, Row, Section, Table

CAPTION = (
    "Percent, means over seeds, in brackets 95% intervals. **Bold**: the best of its table; "
    "≈: within the noise of the best (intervals over seeds and items; one seed: over items only); "
    "?: no interval is known."
)
_WITH_INTERVAL = (groups.SHORT.key, groups.RECOVERY.key)  # the others would make it too wide
_ONE_SEED = "one seed: the effect of the seed is unknown"


def headline(compared: Sequence[Group]) -> Table:
    """One section for each model, scaling and size of the suites; marks are among usual rows."""
    scores = _scores(compared)
    columns = (
        Column("method", "text", "variant", shows_detail=True),
        Column("tokens"),
        Column("seeds"),
        *scores.values(),
        Column("GPU-hours"),
    )
    sections = [
        _section(look, *items, [g for g in kin if (g.limit, g.split) == items], scores)
        for look, kin in by_look(compared)
        for items in sorted(
            {(g.limit, g.split) for g in kin}, key=lambda i: (i[0] or 0, i[1] or "")
        )
    ]
    return Table(columns, tuple(sections))


def missing_suites(compared: Sequence[Group]) -> list[str]:
    """Suites that no group has results of."""
    measured = {key.partition("@")[0] for group in compared for key in group.estimates}
    shows = {
        "short": {groups.SHORT.key},
        "long": {groups.LONG.key, "ruler"},
        "perplexity": {groups.PERPLEXITY_GAP.key, "perplexity"},
    }
    return [suite for suite, keys in shows.items() if not measured & keys]


def _scores(compared: Sequence[Group]) -> dict[Metric, Column]:
    """The columns of the metrics that any group has."""
    titles = {
        groups.SHORT.key: "short average",
        groups.RECOVERY.key: "recovery",
        groups.RECOVERY_VS_BEST.key: "vs best baseline",
        groups.GAP_CLOSED.key: "gap closed",
        groups.PERPLEXITY_GAP.key: "perplexity gap closed",
        **{groups.ruler(n).key: f"RULER {short_length(n)}" for n in groups.lengths(compared)},
    }
    metrics = {metric.key: metric for metric in groups.metrics_of(compared)}
    for key in metrics:
        if key.startswith("perplexity@"):
            _, window, text = key.split("@", 2)
            titles[key] = f"perplexity of {text}, {short_length(int(window))}"
    return {
        metrics[key]: Column(
            title, "number", f"{title}, 95% interval", key in _WITH_INTERVAL, marked=True
        )
        for key, title in titles.items()
        if key in metrics
    }


def _section(
    look: str,
    limit: int | None,
    half: str | None,
    members: Sequence[Group],
    scores: Iterable[Metric],
) -> Section:
    slots = method_slots([group.method for group in members])
    ordered = sorted(members, key=lambda g: (slots[g.method], g.tokens, g.rank))
    columns = [_cells(ordered, metric) for metric in scores]
    rows = [_baseline(name, members, scores) for name in ("native", "scaled")]
    rows += [_row(group, cells) for group, *cells in zip(ordered, *columns, strict=True)]
    restricted = (("limit", "" if limit is None else str(limit)), ("half", half or ""))
    labels = (("model and scaling", look), *restricted)
    return Section(tuple(row for row in rows if row), labels)


def _row(group: Group, cells: Sequence[Cell]) -> Row:
    one_seed = {"title": _ONE_SEED} if group.seeds == 1 else {}
    variant = formatting.text(group.variant) if group.variant else ""
    about = (
        Cell(formatting.text(group.method_name), variant, opens=True),
        Cell(binary_tokens(group.tokens), attributes={"data-sort": str(group.tokens)}),
        Cell(str(group.seeds), attributes=one_seed, css="warn" if one_seed else ""),
    )
    runs, place = " ".join(map(str, group.members)), str(group.place)
    attributes = {"class": "method", "data-runs": runs, "data-place": place}
    hours = Cell(_hours(group), attributes={"data-sort": str(group.hours or 0.0)})
    return Row((*about, *cells, hours), attributes, is_extra=not group.is_main)


def _baseline(name: str, members: Sequence[Group], scores: Iterable[Metric]) -> Row | None:
    """The row of the native or the scaled model, which is never the best."""
    group = next((group for group in members if group.baselines.get(name)), None)
    if group is None:
        return None
    cells = [_cell(group.baselines[name].get(metric.key)) for metric in scores]
    about = (Cell(name), Cell(formatting.DASH), Cell(""))
    attributes = {"class": "baseline", "data-runs": " ".join(map(str, group.members))}
    return Row((*about, *cells, Cell(formatting.DASH)), attributes)


def _cells(ordered: Sequence[Group], metric: Metric) -> list[Cell]:
    """One column of a section. Each cell holds its standing against every other row.

    The page's filters leave out rows, and then look up the best of the remaining ones.
    """
    estimates = [group.estimates.get(metric.key) for group in ordered]
    usual = [group.estimates.get(metric.key) if group.is_main else None for group in ordered]
    cells = []
    best = marks(usual, higher_is_better=not metric.lower_is_better)
    for at, (estimate, mark) in enumerate(zip(estimates, best, strict=True)):
        if estimate is None:
            cells.append(_cell(None))
            continue
        attributes = {
            "data-value": str(estimate.value),
            "data-at": str(at),
            "data-standings": standings(estimate, estimates),
            **({"data-lower": ""} if metric.lower_is_better else {}),
        }
        cells.append(replace(_cell(estimate), mark=mark, opens=True, attributes=attributes))
    return cells


def _cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(formatting.DASH)
    has_interval = estimate.low is not None and estimate.high is not None
    interval = f"{estimate.low:.1f} to {estimate.high:.1f}" if has_interval else ""
    return Cell(f"{estimate.value:.1f}", interval)


def _hours(group: Group) -> str:
    if group.hours is None:
        return formatting.DASH
    hours = f"{group.hours:,.0f}" if group.hours >= 100 else f"{group.hours:.2g}"
    return f"{hours} CPU" if "cpu" in group.device.lower() else hours
