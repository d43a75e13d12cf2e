"""Figures and the headline table as files for a paper: pictures, CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from src.report.charts import Chart, FileFormat, Heatmap
from src.report.figures import FIGURES
from src.report.figures.base import Figure
from src.report.groups import ReportData
from src.report.headline import CAPTION, headline
from src.report.runs import ReportError
from src.report.tables import latex, markdown, to_csv

Format = FileFormat | Literal["csv"]


def export(data: ReportData, folder: Path, *, formats: Sequence[Format]) -> list[Path]:
    """Write every figure in every format, and the table; returns the files.

    Figures by metric are written for every metric, on the model that most methods are compared on.
    Figures by run are written for the newest run without faults.

    Raises:
        ReportError: the folder cannot be written.
    """
    # Imported here: nothing else needs it, and it loads slowly.
    from src.report.to_matplotlib import pictures

    drawn: list[FileFormat] = [kind for kind in formats if kind != "csv"]
    contents = _tables(data)
    for name, title, chart in _charts(data):
        files = pictures(chart, title, drawn) if drawn else {}
        contents |= {f"{name}.{kind}": content for kind, content in files.items()}
        if "csv" in formats:
            contents[f"{name}.csv"] = chart.csv().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ReportError(f"export_path={folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in contents]


def _tables(data: ReportData) -> dict[str, bytes]:
    """Usual rows in Markdown and LaTeX, all rows in CSV."""
    table = headline(data.groups)
    caption = CAPTION.replace("**", "")
    texts = {
        "headline.md": f"{markdown(table)}\n{CAPTION}\n",
        "headline.tex": f"{latex(table)}\n% {caption}\n",
        "headline.csv": to_csv(table),
    }
    return {name: text.encode() for name, text in texts.items()}


def _charts(data: ReportData) -> Iterator[tuple[str, str, Chart | Heatmap]]:
    """Name, title and chart of each picture."""
    for figure in FIGURES:
        for labels, chart in _chosen(figure, data):
            title = f"{figure.title}: {labels[-1]}"
            yield figure.name if figure.of_one_run else _file_name(figure, labels[-1]), title, chart


def _chosen(figure: Figure, data: ReportData) -> Iterator[tuple[tuple[str, ...], Chart | Heatmap]]:
    first = None
    for labels, chart in figure.choices(data):
        first = labels[0] if first is None else first
        if len(figure.chosen_by) > 1 and labels[0] != first:
            return
        yield labels, chart
        if figure.of_one_run:
            return


def _file_name(figure: Figure, label: str) -> str:
    return f"{figure.name}-{re.sub('[^a-z0-9.]+', '-', label.lower()).strip('-')}"
