from __future__ import annotations

import json

import plotly.graph_objects as go
import pytest

from src.report.charts import GRAYS, Axis, Chart, Heatmap, Point, Series
from src.report.to_plotly import TEMPLATE, to_plotly

TAG = "<b>x</b>"
ESCAPED = "&lt;b&gt;x&lt;/b&gt;"
RUNS = Series(
    "s",
    (Point(1, 2.5, 2.0, 3.5, "note", (4, 2)), Point(1, 9.0, runs=(5,)), Point(2, 3.0, runs=(6,))),
    slot=1,
    dash="dot",
    alternatives=True,
)


def test_a_point_brings_its_interval_runs_text_and_line() -> None:
    (trace,) = to_plotly(Chart(Axis("a"), Axis("b"), (RUNS,)))["data"]
    assert (trace["x"], trace["y"]) == ([1, 1, 2], [2.5, 9, 3])
    assert trace["error_y"]["array"] == [1, 0, 0]
    assert trace["error_y"]["arrayminus"] == [0.5, 0, 0]
    assert trace["customdata"] == [(4, 2), (5,), (6,)]
    assert trace["text"][0] == " (2 to 3.5)<br>note"
    assert trace["meta"]["alternatives"]
    assert trace["meta"]["lines"][0] == "s,1,2.5,2.0,3.5,note"
    assert (trace["line"]["color"], trace["line"]["dash"]) == (RUNS.color, "dot")


@pytest.mark.parametrize(("count", "shown"), [(1, False), (2, True)])
def test_several_series_have_a_legend(count: int, shown: bool) -> None:
    drawn = to_plotly(Chart(Axis("a"), Axis("b"), (RUNS,) * count))
    assert drawn["layout"]["showlegend"] is shown


def test_points_without_notes_need_no_text_of_their_own() -> None:
    series = Series("a,b", (Point(1, 2), Point(2, float("nan"))), slot=-1)
    drawn = to_plotly(Chart(Axis("layer"), Axis("y"), (series,), of_runs=(3,)))
    (trace,) = drawn["data"]
    assert not {"text", "customdata"} & trace.keys()
    assert trace["y"] == [2, None]
    assert "layer" in trace["hovertemplate"]
    assert trace["meta"]["name"] == '"a,b"'
    assert trace["marker"]["color"] == GRAYS[0]
    assert drawn["csv"] == "series,layer,y,low,high,note"


def test_texts_are_escaped() -> None:
    series = Series(TAG, (Point(0, 1, note=TAG),), mode="dots")
    chart = Chart(Axis(TAG, categories=(TAG,)), Axis(TAG), (series,) * 2, ((0, TAG),))
    heat = Heatmap(TAG, TAG, (TAG,), (TAG,), ((1.0,),), TAG)
    for drawn in (to_plotly(chart), to_plotly(heat)):
        csv_lines = drawn.pop("csv")
        assert TAG in csv_lines
        for trace in drawn["data"]:
            del trace["meta"]
        text = json.dumps(drawn, allow_nan=False)
        assert TAG not in text
        assert ESCAPED in text


@pytest.mark.parametrize("horizontal", [False, True])
def test_bars_stand_or_lie_side_by_side(horizontal: bool) -> None:
    series = tuple(Series(name, (Point(0, 5), Point(1, 7)), mode="bars") for name in "ab")
    axis = Axis("", categories=("p", "q"))
    drawn = to_plotly(Chart(axis, Axis("y"), series, level=1.0, horizontal=horizontal))
    along, across = ("y", "x") if horizontal else ("x", "y")
    first, second = drawn["data"]
    assert first[across] == [5, 7]
    assert [round(b - a, 6) for a, b in zip(first[along], second[along], strict=True)] == [0.42] * 2
    assert drawn["layout"][f"{along}axis"]["ticktext"] == ["p", "q"]
    (level,) = drawn["layout"]["shapes"]
    assert level[f"{across}0"] == level[f"{across}1"] == 1.0


def test_marks_stand_at_their_value_on_a_logarithmic_axis() -> None:
    chart = Chart(Axis("x", log=True), Axis("y"), (RUNS,), ((1000.0, "1k"),))
    layout = to_plotly(chart)["layout"]
    assert (layout["shapes"][0]["x0"], layout["annotations"][0]["x"]) == (1000.0, 3.0)


def test_colours_of_a_map_follow_the_logarithm_and_its_texts_the_values() -> None:
    values = ((0.1, None), (10.0, 0.0))
    drawn = to_plotly(Heatmap("x", "y", ("a", "b"), ("r", "q"), values, "v", log=True))
    (trace,) = drawn["data"]
    assert trace["z"] == [[-1, None], [1, None]]
    assert trace["text"] == [[0.1, None], [10, 0]]
    assert trace["colorbar"]["ticktext"] == ["0.1", "0.32", "1", "3.2", "10"]
    assert drawn["layout"]["yaxis"]["autorange"] == "reversed"


def test_a_map_without_values_has_no_data() -> None:
    empty = Heatmap("x", "y", ("a",), ("b",), ((None,),), "v", log=True)
    assert to_plotly(empty)["data"] == []


def test_plotly_knows_every_property() -> None:
    heat = Heatmap("x", "y", ("a",), ("b",), ((1.0,),), "v", limits=(0.0, 2.0), text=True)
    bars = Series("b", (Point(0, 1),), mode="bars")
    for chart in (
        heat,
        Chart(Axis("x"), Axis("y"), (RUNS,), ((1, "m"),), unified=True),
        Chart(Axis("", categories=("c",)), Axis("y"), (bars,), horizontal=True),
    ):
        drawn = to_plotly(chart)
        go.Figure(drawn["data"], drawn["layout"]).update_layout(template=TEMPLATE)
