from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from src.report import paper
from src.report.files import read_results
from src.report.groups import ReportData
from src.report.runs import ReportError, read_runs
from tests.conftest import ROOT
from tests.src.report import synthetic
from tests.src.report.synthetic import INJECTION

EMPTY = ReportData(runs=())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("runs")
    synthetic.write(outputs, 200)
    results = tuple(read_results(ROOT / "benchmarks" / "results"))
    target = outputs / "paper"
    data = ReportData(runs=tuple(read_runs(outputs)), results=results)
    files = paper.export(data, target, formats=("csv",))
    assert set(files) == set(target.iterdir())
    return target


def test_every_figure_is_there(exported: Path) -> None:
    assert {path.stem for path in exported.glob("*.csv")} >= {
        *("budget-recovery-short-suite", "weights-recovery-short-suite", "needles", "layers"),
        *("scaling-recovery-short-suite", "ruler-all-at-4.25m-tokens", "drift"),
        *("setting-ard.lr-recovery-short-suite", "setting-seed-recovery-short-suite"),
    }


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
    assert "LongReD-C & 256M & 3 &" in latex
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


def test_a_figure_is_written_in_every_format(outputs: Path) -> None:
    synthetic.write_run(outputs / "run", synthetic.Job(model="tiny"), 0)
    target = outputs / "paper"
    data = ReportData(runs=tuple(read_runs(outputs)))
    paper.export(data, target, formats=("pdf", "svg", "png", "csv"))
    names = {path.name for path in target.iterdir()}
    assert names >= {f"layers.{kind}" for kind in ("pdf", "svg", "png", "csv")}
    assert {Path(name).stem for name in names if name.endswith(".pdf")} == {
        Path(name).stem for name in names - {"headline.csv"} if name.endswith(".csv")
    }


def test_only_what_the_runs_hold_is_written(outputs: Path) -> None:
    """Neither a table without rows nor figures of benchmarks, which belong to no run."""
    synthetic.write_run(outputs / "run", synthetic.Job(state="failed"), 0)
    results = tuple(read_results(ROOT / "benchmarks" / "results"))
    data = ReportData(runs=tuple(read_runs(outputs)), results=results)
    target = outputs / "paper"
    paper.export(data, target, formats=("csv",))
    assert [path.name for path in target.iterdir()] == ["layers.csv"]


def test_runs_that_hold_nothing_are_refused(outputs: Path) -> None:
    with pytest.raises(ReportError, match="the 0 chosen runs hold nothing to write"):
        paper.export(EMPTY, outputs / "paper", formats=("svg",))
    assert not (outputs / "paper").exists()


def test_a_folder_that_cannot_be_written_is_refused(outputs: Path) -> None:
    (outputs / "file").write_text("")
    synthetic.write_run(outputs / "run", synthetic.Job(), 0)
    data = ReportData(runs=tuple(read_runs(outputs)))
    with pytest.raises(ReportError, match=r"export_path=.*cannot be written"):
        paper.export(data, outputs / "file" / "x", formats=("csv",))
