"""Charts as SVG files for a paper: one drawing, on white, that needs nothing else.

The same plain data as on the page (`charts`); everything is shown, since a paper has no filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from src.report.charts import COLORS, GRAY_COLOR, Axis, Chart, Heatmap, Point, Series

WIDTH, HEIGHT = 640, 400
_FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"
_INK, _MUTED, _GRID = "#22252b", "#5d646f", "#e6e8ec"
_DASHES = {"solid": "", "dash": "6 4", "dot": "2 3"}
_SIZE = 12
_LINE_HEIGHT = 18
# Ends and middle of the two colour scales, as on the page.
_SEQUENTIAL = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
_DIVERGING = ("#c8511b", "#d9d3c4", "#2f7fd1")


@dataclass(frozen=True)
class _Scale:
    """Values to pixels along one axis; logarithmic values are given as they are."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(value)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def draw(chart: Chart | Heatmap, title: str) -> str:
    """The chart as an SVG document."""
    body = _heatmap(chart) if isinstance(chart, Heatmap) else _chart(chart)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family={quoteattr(_FONT)} font-size="{_SIZE}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        + _text(14, 22, title, weight="bold", fill=_INK, size=13)
        + "".join(body)
        + "</svg>\n"
    )


def _chart(chart: Chart) -> Iterable[str]:
    rows = _legend_rows(chart.series) if len(chart.series) > 1 else []
    bottom = HEIGHT - 46 - _LINE_HEIGHT * len(rows)
    names = chart.x.categories
    left = 24 + 6.6 * max(map(len, names), default=6) if chart.horizontal else 66
    box = (min(left, WIDTH / 2), 50 if chart.marks else 40, WIDTH - 20, bottom)
    points = [point for one in chart.series for point in one.drawn]
    along = _span(chart.x, [p.x for p in points] + [at for at, _ in chart.marks])
    values = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    values += [chart.level] if chart.level is not None else []
    bars = any(one.mode == "bars" for one in chart.series)
    across = _span(chart.y, [*values, 0.0] if bars else values)
    if chart.horizontal:
        x = _Scale(*across, box[0], box[2], chart.y.log)
        y = _Scale(*along, box[1], box[3], chart.x.log)
        yield from _axes(box, (chart.y, x), (chart.x, y))
    else:
        x = _Scale(*along, box[0], box[2], chart.x.log)
        y = _Scale(*across, box[3], box[1], chart.y.log)
        yield from _axes(box, (chart.x, x), (chart.y, y))
    yield from _marks(chart, box, x, y)
    for place, one in enumerate(chart.series):
        yield from _series(one, chart, x, y, _shift(place, len(chart.series), one))
    for number, row in enumerate(rows):
        yield from _legend(row, bottom + 56 + _LINE_HEIGHT * number)


def _shift(place: int, count: int, one: Series) -> float:
    """Dots of several series at one category stand side by side."""
    return (place - (count - 1) / 2) * min(0.16, 0.7 / count) if one.mode == "dots" else 0.0


def _series(one: Series, chart: Chart, x: _Scale, y: _Scale, shift: float) -> Iterable[str]:
    color = GRAY_COLOR if one.slot < 0 else COLORS[one.slot % len(COLORS)]
    if one.mode == "bars":
        yield from (_bar(point, chart, x, y, color) for point in one.drawn)
        return
    places = [(x(point.x + shift), y(point.y), point) for point in one.drawn]
    if one.mode == "line" and len(places) > 1:
        path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py, _ in places)
        dash = _DASHES[one.dash]
        yield (
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"'
            + (f' stroke-dasharray="{dash}"' if dash else "")
            + "/>\n"
        )
    for px, py, point in places:
        if point.low is not None and point.high is not None:
            low, high = y(point.low), y(point.high)
            yield _line(px, low, px, high, color, 1.2)
            yield _line(px - 3, low, px + 3, low, color, 1.2)
            yield _line(px - 3, high, px + 3, high, color, 1.2)
        radius = 4.5 if one.mode == "dots" else 3
        yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius}" fill="{color}"/>\n'


def _bar(point: Point, chart: Chart, x: _Scale, y: _Scale, color: str) -> str:
    if chart.horizontal:
        top, bottom = y(point.x - 0.32), y(point.x + 0.32)
        left, right = sorted((x(0.0), x(point.y)))
    else:
        left, right = x(point.x - 0.32), x(point.x + 0.32)
        top, bottom = sorted((y(point.y), y(0.0)))
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" fill="{color}"/>\n'
    )


def _marks(
    chart: Chart, box: tuple[float, float, float, float], x: _Scale, y: _Scale
) -> Iterable[str]:
    for at, text in chart.marks:
        yield _line(x(at), box[1], x(at), box[3], _MUTED, 1, "2 3")
        yield _text(x(at), box[1] - 5, text, anchor="middle", size=11)
    if chart.level is not None and chart.horizontal:
        yield _line(x(chart.level), box[1], x(chart.level), box[3], _MUTED, 1, "2 3")
    elif chart.level is not None:
        yield _line(box[0], y(chart.level), box[2], y(chart.level), _MUTED, 1, "2 3")


def _axes(
    box: tuple[float, float, float, float],
    across: tuple[Axis, _Scale],
    up: tuple[Axis, _Scale],
) -> Iterable[str]:
    left, top, right, bottom = box
    for value, label in _ticks(*across):
        at = across[1](value)
        yield _line(at, top, at, bottom, _GRID, 1)
        yield _text(at, bottom + 16, label, anchor="middle")
    for value, label in _ticks(*up):
        at = up[1](value)
        yield _line(left, at, right, at, _GRID, 1)
        yield _text(left - 7, at + 4, label, anchor="end")
    yield _text((left + right) / 2, bottom + 34, across[0].title, anchor="middle")
    middle = (top + bottom) / 2
    turned = f' transform="rotate(-90 16 {middle:.1f})"'
    yield _text(16, middle, up[0].title, anchor="middle", more=turned)


def _span(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    if axis.categories:
        return -0.6, len(axis.categories) - 0.4
    if axis.log:
        positive = [value for value in values if value > 0] or [1.0]
        room = (max(positive) / min(positive)) ** 0.05 if max(positive) > min(positive) else 2.0
        return min(positive) / room, max(positive) * room
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - room), high + room


def _ticks(axis: Axis, scale: _Scale) -> list[tuple[float, str]]:
    if axis.categories:
        return list(enumerate(axis.categories))
    if axis.ticks:
        return [(at, text) for at, text in axis.ticks if scale.low <= at <= scale.high]
    if axis.log:
        first, last = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
        steps = (1, 2, 5) if last - first < 4 else (1,)
        found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    else:
        found = _round_steps(scale.low, scale.high)
    return [(at, f"{at:g}") for at in found if scale.low <= at <= scale.high]


def _round_steps(low: float, high: float) -> list[float]:
    """About six round numbers from `low` to `high`."""
    raw = (high - low) / 6
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [round(step * (first + i), 12) for i in range(int((high - first * step) / step) + 1)]


def _legend_rows(series: Sequence[Series]) -> list[list[tuple[Series, float]]]:
    """Entries with their places, in as many rows as they need."""
    rows: list[list[tuple[Series, float]]] = [[]]
    at = 24.0
    for one in series:
        width = 42 + 6.8 * len(one.name)
        if rows[-1] and at + width > WIDTH - 10:
            rows.append([])
            at = 24.0
        rows[-1].append((one, at))
        at += width
    return rows


def _legend(row: Sequence[tuple[Series, float]], y: float) -> Iterable[str]:
    for one, x in row:
        color = GRAY_COLOR if one.slot < 0 else COLORS[one.slot % len(COLORS)]
        yield _line(x, y - 4, x + 22, y - 4, color, 1.8, _DASHES[one.dash])
        yield f'<circle cx="{x + 11:.1f}" cy="{y - 4:.1f}" r="3" fill="{color}"/>\n'
        yield _text(x + 28, y, one.name)


def _heatmap(chart: Heatmap) -> Iterable[str]:
    left, top, right, bottom = 60, 40, WIDTH - 96, HEIGHT - 48
    width, height = (right - left) / len(chart.columns), (bottom - top) / len(chart.rows)
    known = [v for row in chart.values for v in row if v is not None and (v > 0 or not chart.log)]
    low, high = chart.limits or (min(known, default=0.0), max(known, default=1.0))
    stops = _DIVERGING if chart.limits else _SEQUENTIAL
    scale = _Scale(low, high, 0.0, 1.0, chart.log)
    for r, row in enumerate(chart.values):
        for c, value in enumerate(row):
            if value is None or (chart.log and value <= 0):
                continue
            color = _blend(stops, scale(value))
            x, y = left + c * width, top + r * height
            gap = 1 if chart.text else 0
            yield (
                f'<rect x="{x:.2f}" y="{y:.2f}" width="{width - gap + 0.1:.2f}" '
                f'height="{height - gap + 0.1:.2f}" fill="{color}"/>\n'
            )
            if chart.text:
                ink = "#ffffff" if _is_dark(color) else _INK
                middle = (x + width / 2, y + height / 2 + 4)
                yield _text(*middle, f"{value:.3g}", anchor="middle", fill=ink)
    every = max(1, math.ceil(len(chart.columns) / 8))
    for c, name in enumerate(chart.columns):
        if c % every == 0:
            yield _text(left + (c + 0.5) * width, bottom + 16, name, anchor="middle")
    every = max(1, math.ceil(len(chart.rows) / 12))
    for r, name in enumerate(chart.rows):
        if r % every == 0:
            yield _text(left - 6, top + (r + 0.5) * height + 4, name, anchor="end")
    yield _text((left + right) / 2, bottom + 34, chart.x_title, anchor="middle")
    middle = (top + bottom) / 2
    turned = f' transform="rotate(-90 16 {middle:.1f})"'
    yield _text(16, middle, chart.y_title, anchor="middle", more=turned)
    yield from _colorbar(chart, stops, (low, high), (right + 18, top, bottom))


def _colorbar(
    chart: Heatmap,
    stops: Sequence[str],
    limits: tuple[float, float],
    place: tuple[float, float, float],
) -> Iterable[str]:
    x, top, bottom = place
    low, high = limits
    steps = 40
    for i in range(steps):
        y = top + i * (bottom - top) / steps
        color = _blend(stops, 1 - (i + 0.5) / steps)
        yield (
            f'<rect x="{x:.1f}" y="{y:.2f}" width="12" height="{(bottom - top) / steps + 0.6:.2f}" '
            f'fill="{color}"/>\n'
        )
    for share in (0.0, 0.5, 1.0):
        logarithmic = chart.log and low > 0
        value = low * (high / low) ** share if logarithmic else low + share * (high - low)
        yield _text(x + 17, bottom - share * (bottom - top) + 4, f"{value:.3g}")
    yield _text(x + 6, top - 8, chart.value_title, anchor="middle", size=11)


def _blend(stops: Sequence[str], share: float) -> str:
    at = min(1.0, max(0.0, share)) * (len(stops) - 1)
    first = min(int(at), len(stops) - 2)
    one, other = _rgb(stops[first]), _rgb(stops[first + 1])
    mixed = (round(a + (at - first) * (b - a)) for a, b in zip(one, other, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _is_dark(color: str) -> bool:
    red, green, blue = _rgb(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _line(
    x1: float, y1: float, x2: float, y2: float, color: str, width: float, dash: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"{dashed}/>\n'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    fill: str = _MUTED,
    size: int = _SIZE,
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'font-size="{size}" fill="{fill}"{more}>{escape(text)}</text>\n'
    )
