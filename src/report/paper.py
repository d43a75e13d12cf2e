"""Figures and the headline table as files for a paper: pictures, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from src.report.charts import Chart, FileFormat, Heatmap
from src.report.figures import FIGURES
from src.report.figures.base import Choice, Figure, slug
from src.report.groups import ReportData
from src.report.headline import CAPTION, headline
from src.report.runs import ReportError
from src.report.tables import latex, markdown, to_csv

Format = FileFormat | Literal["csv"]


def export(data: ReportData, folder: Path, *, formats: Sequence[Format]) -> list[Path]:
    """Write every figure in every format, and the table; returns the files.

    Figures by metric are written for every metric, on the model that most methods are compared on.
    Figures by run are written for the newest run without faults. Raises ReportError if the runs
    hold nothing, or the folder cannot be written.
    """
    # Imported here: nothing else needs it, and it loads slowly.
    from src.report.to_matplotlib import pictures

    drawn: list[FileFormat] = [kind for kind in formats if kind != "csv"]
    stamp = "synthetic" if any(run.is_synthetic for run in data.runs) else ""
    contents: dict[str, bytes] = {}
    if data.groups:
        table = headline(data.groups)
        # Usual rows in Markdown and LaTeX, all rows in CSV.
        contents = {
            "headline.md": f"{markdown(table)}\n{CAPTION}\n".encode(),
            "headline.tex": f"{latex(table)}\n% {CAPTION.replace('**', '')}\n".encode(),
            "headline.csv": to_csv(table).encode(),
        }
    # Benchmarks belong to no run; benchmarks.figures draws them.
    drawn_figures = [one.drawn(data) for one in FIGURES if one.panel != "performance"]
    for figure, choices in chain.from_iterable(drawn_figures):
        for label, chart in _chosen(figure, choices):
            name = figure.name if figure.of_one_run else f"{figure.name}-{slug(label)}"
            title = f"{figure.title}: {label}"
            files = pictures(chart, title, drawn, stamp=stamp) if drawn else {}
            contents |= {f"{name}.{kind}": content for kind, content in files.items()}
            if "csv" in formats:
                contents[f"{name}.csv"] = chart.csv().encode()
    if not contents:
        raise ReportError(
            f"export=paper: the {len(data.runs)} chosen runs hold nothing to write, neither scores "
            "nor losses by layer; choose others with only.*, or evaluate them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ReportError(f"export_path={folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in contents]


def _chosen(figure: Figure, choices: Iterable[Choice]) -> Iterator[tuple[str, Chart | Heatmap]]:
    """The figure's charts for a paper, each with its last label."""
    first = None
    for labels, chart in choices:
        first = labels[0] if first is None else first
        if len(figure.chosen_by) > 1 and labels[0] != first:
            return
        yield labels[-1], chart
        if figure.of_one_run:
            return
