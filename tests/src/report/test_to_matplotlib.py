"""Pictures for a paper."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from src.report.charts import Axis, Chart, Heatmap, Point, Series
from src.report.to_matplotlib import PIXELS, SIZE, pictures
from tests.src.report.synthetic import INJECTION

POINTS = tuple(Point(x, 10 * x, 9 * x, 12 * x, label=f"at {x}") for x in (1, 5, 9))
LINE = Chart(Axis("x"), Axis("y"), (Series("s", POINTS),))
MAP = Heatmap("x", "y", ("a", "b"), ("r",), ((90.0, None),), "v", limits=(0, 100), text=True)


def svg(chart: Chart | Heatmap, title: str = "t") -> str:
    return pictures(chart, title, ["svg"])["svg"].decode()


@pytest.mark.parametrize("chart", [LINE, MAP], ids=["chart", "map"])
def test_a_chart_has_one_file_for_each_format(chart: Chart | Heatmap) -> None:
    files = pictures(chart, "t", ["pdf", "svg", "png"])
    assert files["pdf"].startswith(b"%PDF")
    assert files["png"].startswith(b"\x89PNG")
    # Margins are cut, so the size is about what was asked for.
    assert int.from_bytes(files["png"][16:20], "big") == pytest.approx(SIZE[0] * PIXELS, rel=0.02)
    root = ElementTree.fromstring(files["svg"])
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert files == pictures(chart, "t", ["pdf", "svg", "png"])  # no date, no random ids


def test_texts_stay_texts() -> None:
    series = (Series(f"$x$ {INJECTION}", POINTS),) * 2
    drawing = svg(Chart(Axis(INJECTION), Axis("y"), series), INJECTION)
    root = ElementTree.fromstring(drawing)
    assert not [element for element in root.iter() if element.tag.endswith(("script", "img"))]
    assert f"$x$ {INJECTION}" in "".join(root.itertext())


def test_a_point_is_where_its_values_say() -> None:
    places = re.findall(
        r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: #2f7fd1', svg(LINE)
    )
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in places][-3:]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2
    assert y2 < y0  # higher values stand higher


@pytest.mark.parametrize("horizontal", [False, True])
def test_bars_marks_and_levels_are_drawn(horizontal: bool) -> None:
    series = tuple(Series(name, (Point(0, 5), Point(1, 7)), mode="bars") for name in ("one", "two"))
    x = Axis("", categories=("first", "second"))
    text = svg(Chart(x, Axis("y"), series, ((0.5, "mark"),), 1.0, horizontal=horizontal))
    assert {"one", "two", "first", "second", "mark"} <= set(re.findall(r">([^<>]+)</text>", text))


def test_only_ticks_within_the_values_are_labelled() -> None:
    ticks = tuple((10.0**power, f"e{power}") for power in range(7))
    series = Series("s", (Point(50, 0.2), Point(5000, 30)))
    text = svg(Chart(Axis("x", log=True, ticks=ticks), Axis("y", log=True), (series,)))
    labels = set(re.findall(r">([^<>]+)</text>", text))
    assert {"e2", "e3", "10"} <= labels
    assert not {"e0", "e6", "100"} & labels


def test_every_row_and_column_of_a_map_with_values_is_named() -> None:
    columns, rows = tuple(f"column {n}" for n in range(11)), tuple(f"row {n}" for n in range(22))
    full = Heatmap("x", "y", columns, rows, ((1.0,) * 11,) * 22, "v", text=True)
    assert {*columns, *rows} <= set(re.findall(r">([^<>]+)</text>", svg(full)))


def test_a_map_without_values_is_still_drawn() -> None:
    empty = Heatmap("x", "y", ("a",), ("b",), ((None,),), "v", log=True)
    ElementTree.fromstring(svg(empty))
