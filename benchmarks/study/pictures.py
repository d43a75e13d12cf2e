"""Pictures of the study from its rows: recovery against tokens, and scaling by method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.study.grid import Grid
from benchmarks.study.scores import Row, best, choice, untrained
from src.report.charts import DASHES, Axis, Chart, Heatmap, Point, Series, token_ticks
from src.report.to_matplotlib import pictures

SIZE = (7.6, 4.6)  # inches
Picture = tuple[Chart | Heatmap, str]  # and its title


def made(grid: Grid, rows: Sequence[Row]) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every model that has trained runs."""
    for model in grid.models:
        trained = [r for r in rows if r["model"] == model and r["phase"] in ("search", "whole")]
        if trained:
            yield f"study_{model}_tokens", by_tokens(grid, model, rows, trained)
            yield f"study_{model}_scalings", by_scaling(grid, model, rows, trained)


def by_tokens(grid: Grid, model: str, rows: Sequence[Row], trained: Sequence[Row]) -> Picture:
    """Each method's best number at each budget, on the scaling that most methods were tried on."""
    scaling = _scalings(trained)[0]
    series: list[Series] = []
    for method, about in grid.methods.items():
        mine = [r for r in trained if (r["method"], r["scaling"]) == (method, scaling)]
        tops = _tops(grid, rows, mine)
        if tops:
            points = tuple(Point(tokens, number) for tokens, number in sorted(tops.items()))
            place = len(series)
            dash = DASHES[place // 8 % len(DASHES)]
            series.append(Series(about.label, points, place, dash))
    floor = next(row for row in untrained(rows, model) if row["scaling"] == scaling)
    chart = Chart(
        "Number by tokens",
        Axis("tokens of training", log=True, ticks=token_ticks([r["tokens"] for r in trained])),
        Axis("number (native: 1)"),
        tuple(series),
        level=choice(rows, floor, grid.floor),
    )
    return chart, f"Recovery against tokens, {model} on {scaling}; the line is untrained"


def _tops(grid: Grid, rows: Sequence[Row], mine: Sequence[Row]) -> dict[int, float]:
    """The largest number by tokens; a run that diverged has none."""
    found: dict[int, float] = {}
    for tokens in {row["tokens"] for row in mine}:
        top = best(rows, [row for row in mine if row["tokens"] == tokens], grid.floor)
        number = None if top is None else choice(rows, top, grid.floor)
        if number is not None:
            found[tokens] = number
    return found


def by_scaling(grid: Grid, model: str, rows: Sequence[Row], trained: Sequence[Row]) -> Picture:
    """The best number of every scaling and method that was tried, over all budgets."""
    known = untrained(rows, model)
    columns = sorted((row["scaling"] for row in known), key=lambda s: s not in _scalings(trained))
    by_label: dict[str, list[Row]] = {"untrained": list(known)}
    for row in trained:
        by_label.setdefault(grid.methods[row["method"]].label, []).append(row)

    def value(kin: Sequence[Row], scaling: str) -> float | None:
        top = best(rows, [row for row in kin if row["scaling"] == scaling], grid.floor)
        return None if top is None else choice(rows, top, grid.floor)

    values = {label: tuple(value(kin, s) for s in columns) for label, kin in by_label.items()}
    ranked = sorted(values, key=lambda label: -max((v for v in values[label] if v), default=0.0))
    numbers = [v for line in values.values() for v in line if v is not None and math.isfinite(v)]
    heat = Heatmap(
        "Number by scaling and method",
        "scaling",
        "method",
        tuple(columns),
        tuple(ranked),
        tuple(values[label] for label in ranked),
        "number (native: 1)",
        limits=(min(0.0, *numbers), max(1.0, *numbers)),
        text=True,
    )
    return heat, f"Scaling by method, {model}, each one's best run on validation"


def _scalings(trained: Sequence[Row]) -> list[str]:
    """Scalings of trained runs, those with the most methods first."""
    methods: dict[str, set[str]] = {}
    for row in trained:
        methods.setdefault(row["scaling"], set()).add(row["method"])
    return sorted(methods, key=lambda scaling: -len(methods[scaling]))


def draw(grid: Grid, rows: Sequence[Row], folder: Path) -> None:
    """Write all pictures as PNG."""
    for name, (picture, title) in made(grid, rows):
        (folder / f"{name}.png").write_bytes(pictures(picture, title, ["png"], SIZE)["png"])
