from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from src.report import paper, svg
from src.report.charts import Axis, Chart, Heatmap, Point, Series
from src.report.performance import read_results
from src.report.runs import ReportError, read_runs
from tests.conftest import ROOT
from tests.src.report import synthetic
from tests.src.report.synthetic import INJECTION


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("runs")
    synthetic.write(outputs, 200)
    results = read_results(ROOT / "benchmarks" / "results")
    target = outputs / "paper"
    files = paper.export(read_runs(outputs), results, target, formats=("svg", "png", "csv"))
    assert set(files) == set(target.iterdir())
    return target


def test_every_figure_is_there_in_every_format(exported: Path) -> None:
    stems = {path.stem for path in exported.glob("*.svg")}
    assert stems == {path.stem for path in exported.glob("*.png")}
    assert stems == {path.stem for path in exported.glob("*.csv")} - {"headline"}
    assert stems >= {
        *("budget-recovery-short-suite", "weights-recovery-short-suite", "needles", "layers"),
        *("scaling-recovery-short-suite", "ruler-all-at-4.25m-tokens", "drift"),
        "kernel-fwd-bwd-time-over-sdpa",
    }


def test_drawings_are_xml_without_scripts(exported: Path) -> None:
    for path in exported.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text("utf-8"))
        assert root.tag.endswith("svg")
        assert not [element for element in root.iter() if element.tag.endswith("script")]


def test_pictures_have_two_pixels_a_unit(exported: Path) -> None:
    for path in exported.glob("*.png"):
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") == 2 * svg.WIDTH


def test_the_table_in_markdown_and_latex(exported: Path) -> None:
    markdown = (exported / "headline.md").read_text("utf-8")
    first = markdown.split("\n\n")[1].splitlines()
    assert first[0].startswith("| method | tokens | seeds | short average | recovery |")
    assert len({line.count(" | ") for line in first if "---" not in line}) == 1
    assert re.search(r"\*\*9\d\.\d\*\* \(9\d\.\d to \d+\.\d\)", markdown)
    assert "≈ 9" in markdown
    assert "<" not in markdown
    latex = (exported / "headline.tex").read_text("utf-8")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}")
    assert r"longred\_c & 256M & 3 &" in latex
    assert r"\textbf{" in latex
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#~^<>]", body.replace("$^\\top$", ""))


def test_the_table_as_csv_has_all_rows(exported: Path) -> None:
    with (exported / "headline.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["limit"] for row in rows} == {"", "200"}
    assert {row["recovery, to the best"] for row in rows} >= {"best", "near", "worse"}
    assert any(row["variant"] == "Q+K" for row in rows)
    assert any(row["method"] == INJECTION for row in rows)


def test_formats_are_chosen(outputs: Path) -> None:
    target = outputs / "paper"
    paper.export([], [], target, formats=("svg",))
    assert sorted(path.name for path in target.iterdir()) == [
        *("headline.csv", "headline.md", "headline.tex")
    ]


def test_a_picture_without_fonts_is_refused(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "png", lambda drawing: b"blank")
    with pytest.raises(ReportError, match=r"no fonts are installed.*export_formats=\[svg,csv\]"):
        paper.export([], [], outputs / "paper", formats=("png",))
    assert not (outputs / "paper").exists()


def test_a_folder_that_cannot_be_written_is_refused(outputs: Path) -> None:
    (outputs / "file").write_text("")
    with pytest.raises(ReportError, match=r"export_path=.*cannot be written"):
        paper.export([], [], outputs / "file" / "x", formats=("svg",))


def test_texts_are_escaped_in_a_drawing() -> None:
    chart = Chart(
        "t", Axis(INJECTION), Axis("y"), (Series(INJECTION, (Point(1, 1), Point(2, 2))),) * 2
    )
    drawing = svg.draw(chart, INJECTION)
    root = ElementTree.fromstring(drawing)
    assert not [element for element in root.iter() if element.tag.endswith(("script", "img"))]
    assert INJECTION in "".join(root.itertext())


def test_a_point_is_where_its_values_say() -> None:
    points = tuple(Point(x, 10 * x) for x in (0, 5, 10))
    drawing = svg.draw(Chart("t", Axis("x"), Axis("y"), (Series("s", points),)), "t")
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in places]
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y2 < y0  # higher values stand higher


def test_a_map_without_values_is_still_drawn() -> None:
    empty = Heatmap("t", "x", "y", ("a",), ("b",), ((None,),), "v", log=True)
    ElementTree.fromstring(svg.draw(empty, "t"))
