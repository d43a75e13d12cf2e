"""Long context: RULER by length, needles by length and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from src.report import formatting
from src.report.charts import (
    GRAY,
    Axis,
    Chart,
    Heatmap,
    Point,
    Series,
    binary_tokens,
    method_slots,
    short_length,
)
from src.report.figures.answer import blocks, line_name, scaling_dashes, scaling_order
from src.report.figures.base import EVALUATE, Choice, Figure, by_look, group_label, line
from src.report.groups import Group, ReportData, grouped, lengths, ruler


def _ruler(data: ReportData) -> Iterator[Choice]:
    """RULER against length: each line at its largest budget, and all lines at one budget."""
    slots = method_slots([group.method for group in data.groups])
    measured = [group for group in data.groups if lengths([group])]
    for block, members in blocks(measured):
        kin = sorted(members, key=lambda g: (slots[g.method], scaling_order(g), g.tokens))
        lines = grouped(kin, lambda group: (group.method, group.scaling)).values()
        largest = [group for one in lines for group in one if group.tokens == one[-1].tokens]
        yield (block, "each method at its most tokens"), _ruler_chart(largest, slots)
        for tokens in sorted({group.tokens for group in kin}):
            same = [group for group in kin if group.tokens == tokens]
            if len({group.method for group in same}) > 1:
                name = f"all at {binary_tokens(tokens)} tokens"
                yield (block, name), _ruler_chart(same, slots)


def _ruler_chart(groups: Sequence[Group], slots: Mapping[str, int]) -> Chart:
    dashes = scaling_dashes(groups)
    series = [
        Series(
            formatting.text(f"{line_name(members[0], dashes)}, {binary_tokens(members[0].tokens)}"),
            tuple(
                point
                for length in lengths(members)
                for point in line("", members, ruler(length), lambda _, x=length: x, 0).points
            ),
            slots[members[0].method],
            dashes[members[0].scaling],
            alternatives=True,
        )
        for members in grouped(groups, lambda group: (group.method, group.scaling)).values()
    ]
    if points := _baseline("native", groups):
        series.append(Series("native model", points, GRAY, "dot"))
    for scaling, members in grouped(groups, lambda group: group.scaling).items():
        if points := _baseline("scaled", members):
            series.append(Series(f"{scaling}, untrained", points, GRAY, dashes[scaling]))
    ticks = tuple((float(length), short_length(length)) for length in lengths(groups))
    x = Axis("length (tokens)", log=True, ticks=ticks)
    return Chart(x, Axis("RULER (%)"), tuple(series))


def _baseline(name: str, groups: Sequence[Group]) -> tuple[Point, ...]:
    """The points of an untrained model, from the first group that it was evaluated with."""
    figures = next((group.baselines[name] for group in groups if group.baselines.get(name)), {})
    return tuple(
        Point(length, estimate.value, estimate.low, estimate.high, name)
        for length in lengths(groups)
        if (estimate := figures.get(ruler(length).key))
    )


def _needles(data: ReportData) -> Iterator[Choice]:
    """Share of needles found by length and depth, one map for each group."""
    order = {
        group.look: place for place, (_, kin) in enumerate(by_look(data.groups)) for group in kin
    }
    slots = method_slots([group.method for group in data.groups])
    for group in sorted(
        data.groups, key=lambda g: (not g.is_main, order[g.look], slots[g.method], -g.tokens)
    ):
        if group.needles:
            yield (group_label(group),), _needle_map(group)


def _needle_map(group: Group) -> Heatmap:
    columns = sorted({length for length, _ in group.needles})
    rows = sorted({depth for _, depth in group.needles})
    percent = {place: 100 * share for place, share in group.needles.items()}
    return Heatmap(
        "length (tokens)",
        "depth (%)",
        tuple(map(short_length, columns)),
        tuple(f"{depth:g}" for depth in rows),
        tuple(tuple(percent.get((length, depth)) for length in columns) for depth in rows),
        "found (%)",
        group.members,
        (0.0, 100.0),
        text=True,
    )


FIGURES = (
    Figure(
        "ruler",
        "RULER by length",
        "long",
        ("compared", "budget"),
        _ruler,
        "Bars are 95% intervals. Grey: untrained models.",
        "No finished run was evaluated on RULER yet:",
        f"{EVALUATE}long",
    ),
    Figure(
        "needles",
        "Needles by length and depth",
        "long",
        ("runs",),
        _needles,
        "Mean over seeds. Depth 0 is the start of the text.",
        "No finished run was evaluated on needles by depth yet:",
        f"{EVALUATE}long",
        of_one_run=True,
    ),
)
