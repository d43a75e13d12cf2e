"""Pictures of the study from its rows: the number by tokens, rate and scaling; drift by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.study.grid import Grid
from benchmarks.study.scores import Row, best, choice, pictured, rate, trained, untrained
from benchmarks.study.tables import measured_models
from src.report.charts import DASHES, Axis, Chart, Heatmap, Point, Series, token_ticks
from src.report.to_matplotlib import pictures

SIZE = (7.6, 4.6)  # inches
Picture = tuple[Chart | Heatmap, str]  # and its title


def made(grid: Grid, rows: Sequence[Row]) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every model."""
    for model in grid.models:
        for kind in pictured(rows, model):
            yield f"study_{model}_{kind}", _KINDS[kind](grid, model, rows)


def by_tokens(grid: Grid, model: str, rows: Sequence[Row]) -> Picture:
    """Each method's best number at each budget, on the scaling that most methods were tried on."""
    runs = trained(rows, model)
    ticks = token_ticks([row["tokens"] for row in runs])
    axis = Axis("tokens of training", log=True, ticks=ticks)
    return _lines(grid, model, rows, runs, axis, lambda row: row["tokens"])


def by_rate(grid: Grid, model: str, rows: Sequence[Row]) -> Picture:
    """Each method's best number in the search by learning rate, that of its last stage."""
    searched = [row for row in trained(rows, model) if row["phase"] == "search"]
    axis = Axis("learning rate of the last stage", log=True)
    return _lines(grid, model, rows, searched, axis, rate)


def _lines(
    grid: Grid,
    model: str,
    rows: Sequence[Row],
    runs: Sequence[Row],
    axis: Axis,
    x: Callable[[Row], float],
) -> Picture:
    """Each method's best number at each x, on the scaling that most methods were tried on."""
    scaling = _scalings(runs)[0]
    series: list[Series] = []
    for method, about in grid.methods.items():
        mine = [r for r in runs if (r["method"], r["scaling"]) == (method, scaling)]
        points = tuple(
            Point(at, number)
            for at in sorted({x(row) for row in mine})
            if (number := _top(grid, rows, (r for r in mine if x(r) == at))) is not None
        )
        if points:
            place = len(series)
            dash = DASHES[place // 8 % len(DASHES)]
            series.append(Series(about.label, points, place, dash))
    floor = next(row for row in untrained(rows, model) if row["scaling"] == scaling)
    level = choice(rows, floor, grid.floor)
    chart = Chart(axis, Axis("number (native: 1)"), tuple(series), level=level)
    return chart, f"{grid.heading(model)}, on {scaling}; the dotted line is untrained"


def _top(grid: Grid, rows: Sequence[Row], among: Iterable[Row]) -> float | None:
    """The largest number; None where there is no run, or all diverged."""
    row = best(rows, among, grid.floor)
    return None if row is None else choice(rows, row, grid.floor)


def by_scaling(grid: Grid, model: str, rows: Sequence[Row]) -> Picture:
    """The best number of every scaling and method that was tried, over all budgets."""
    known, runs = untrained(rows, model), trained(rows, model)
    columns = sorted((row["scaling"] for row in known), key=lambda s: s not in _scalings(runs))
    by_label: dict[str, list[Row]] = {"untrained": list(known)}
    for row in runs:
        by_label.setdefault(grid.methods[row["method"]].label, []).append(row)

    values = {
        label: tuple(_top(grid, rows, (r for r in kin if r["scaling"] == s)) for s in columns)
        for label, kin in by_label.items()
    }
    ranked = sorted(values, key=lambda label: -max((v for v in values[label] if v), default=0.0))
    numbers = [v for line in values.values() for v in line if v is not None and math.isfinite(v)]
    heat = Heatmap(
        "scaling",
        "method",
        tuple(columns),
        tuple(ranked),
        tuple(values[label] for label in ranked),
        "number (native: 1)",
        limits=(min(0.0, *numbers), max(1.0, *numbers)),
        text=True,
    )
    return heat, f"{grid.heading(model)}, each method's best run on validation"


def by_layer(grid: Grid, model: str, rows: Sequence[Row]) -> Picture:
    """KL of every measured model's attention rows from the native model's, by layer, in nats."""
    measured = [m for m in measured_models(grid, model, rows) if m[2] in m[3]["drift"]]
    series = tuple(
        Series(
            f"{label}, {scaling}",
            tuple(Point(at, kl) for at, kl in enumerate(of["drift"][role]["attention_kl"])),
            place,
        )
        for place, (label, scaling, role, of) in enumerate(measured)
    )
    axes = Axis("layer"), Axis("KL of attention rows (nats)", from_zero=True)
    title = f"{grid.heading(model)}: drift from the native model on short text"
    return Chart(*axes, series), title


def _scalings(runs: Sequence[Row]) -> list[str]:
    """Scalings of trained runs, those with the most methods first."""
    methods: dict[str, set[str]] = {}
    for row in runs:
        methods.setdefault(row["scaling"], set()).add(row["method"])
    return sorted(methods, key=lambda scaling: -len(methods[scaling]))


_KINDS = {"tokens": by_tokens, "rates": by_rate, "scalings": by_scaling, "drift": by_layer}


def draw(grid: Grid, rows: Sequence[Row], folder: Path) -> None:
    """Write all pictures as PNG."""
    for name, (picture, title) in made(grid, rows):
        (folder / f"{name}.png").write_bytes(pictures(picture, title, ["png"], SIZE)["png"])
