"""Figures and the headline table as files for a paper: SVG, PNG, CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import resvg_py

from src.report import figures, performance, svg
from src.report.charts import Chart, Figure, Heatmap, table_csv
from src.report.groups import Group, group_runs
from src.report.headline import Block, Cell, Column, Headline, Row, headline
from src.report.noise import Mark
from src.report.performance import Result
from src.report.runs import ReportError, Run

Format = Literal["svg", "png", "csv"]
_PIXELS = 2  # of a PNG, a unit of the SVG
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "≈": r"$\approx$",
    "ᵀ": r"$^\top$",
}


def export(
    runs: Sequence[Run],
    results: Sequence[Result],
    folder: Path,
    *,
    formats: Sequence[Format],
    window: int | None = None,
) -> list[Path]:
    """Write every figure in every format, and the table; returns the files.

    Of figures by metric all metrics are written for the model that most methods are compared on,
    of figures by run the newest whole run.

    Raises:
        ReportError: the folder cannot be written, or a PNG is wanted where no fonts are installed.
    """
    if "png" in formats and not _has_fonts():
        raise ReportError(
            "export_formats has png, but no fonts are installed here, so that pictures would lack "
            "their text: install some (fonts-dejavu-core), or give export_formats=[svg,csv]"
        )
    groups = group_runs(runs, window)
    table = headline(groups)
    contents: dict[str, bytes] = {
        "headline.md": markdown(table).encode(),
        "headline.tex": latex(table).encode(),
        "headline.csv": table_csv(*_rows(table)).encode(),
    }
    for name, title, chart in _charts(runs, groups, results):
        drawing = svg.draw(chart, title)
        if "svg" in formats:
            contents[f"{name}.svg"] = drawing.encode()
        if "png" in formats:
            contents[f"{name}.png"] = png(drawing)
        if "csv" in formats:
            contents[f"{name}.csv"] = chart.csv().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ReportError(f"export_path={folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in contents]


def png(drawing: str) -> bytes:
    """An SVG as a picture on white, two pixels a unit."""
    return resvg_py.svg_to_bytes(svg_string=drawing, zoom=_PIXELS, background="#ffffff")


def _has_fonts() -> bool:
    empty = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">{}</svg>'
    text = '<text x="2" y="15" font-family="DejaVu Sans, sans-serif">Ab</text>'
    return png(empty.format(text)) != png(empty.format(""))


def _charts(
    runs: Sequence[Run], groups: Sequence[Group], results: Sequence[Result]
) -> Iterator[tuple[str, str, Chart | Heatmap]]:
    """Name, title and chart of each picture."""
    by_metric = (
        figures.budget_figure(groups),
        figures.weights_figure(groups),
        figures.scaling_figure(groups),
        figures.ruler_figure(groups),
        *performance.performance_figures(results),
    )
    for figure in by_metric:
        for labels, chart in _of_first_model(figure):
            yield _file_name(figure.name, labels[-1]), f"{figure.title}: {labels[-1]}", chart
    for figure in (
        figures.needle_figure(groups),
        figures.layers_figure(runs),
        figures.drift_figure(runs),
    ):
        for labels, chart in figure.choices[:1]:
            yield figure.name, f"{figure.title}: {labels[0]}", chart


def _of_first_model(figure: Figure) -> list[tuple[tuple[str, ...], Chart | Heatmap]]:
    if len(figure.chosen_by) < 2 or not figure.choices:
        return list(figure.choices)
    first = figure.choices[0][0][0]
    return [(labels, chart) for labels, chart in figure.choices if labels[0] == first]


def _file_name(figure: str, label: str) -> str:
    return f"{figure}-{re.sub('[^a-z0-9.]+', '-', label.lower()).strip('-')}"


def _header(table: Headline) -> list[str]:
    return ["method", "tokens", "seeds", *(c.title for c in table.columns), "GPU-hours"]


def _rows(table: Headline) -> tuple[list[str], list[list[str]]]:
    """All rows of all blocks, variants among them, with intervals in columns of their own."""
    header = ["model and scaling", "limit", "method", "variant", "tokens", "seeds"]
    for column in table.columns:
        header += [column.title, f"{column.title}, 95% interval", f"{column.title}, to the best"]
    rows = []
    for block in table.blocks:
        for row in (*block.baselines, *block.rows):
            limit = "" if block.limit is None else str(block.limit)
            seeds = "" if row.seeds is None else str(row.seeds)
            line = [block.title, limit, row.name, row.variant, row.tokens, seeds]
            for cell in row.cells:
                mark = "" if cell.mark is Mark.ABSENT else cell.mark.value
                line += [cell.text, cell.interval, mark]
            rows.append([*line, row.hours])
    return [*header, "GPU-hours"], rows


def markdown(table: Headline) -> str:
    """The main rows, a table a block."""
    parts = []
    for block in table.blocks:
        header = _header(table)
        lines = [f"**{_markdown(_title(block))}**", "", "| " + " | ".join(header) + " |"]
        lines.append("|---" + "|---:" * (len(header) - 1) + "|")
        for row in _main_rows(block):
            cells = [
                _markdown(_marked(cell, "**{}**") + _interval(cell, column))
                for cell, column in zip(row.cells, table.columns, strict=True)
            ]
            line = [_markdown(row.name), row.tokens, _seeds(row), *cells, row.hours]
            lines.append("| " + " | ".join(line) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, _CAPTION + "\n"])


def latex(table: Headline) -> str:
    """The main rows, a tabular a block; needs the package booktabs."""
    parts = []
    for block in table.blocks:
        header = _header(table)
        lines = [f"% {_title(block)}".replace("\n", " ")]
        lines += [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule"]
        lines += [" & ".join(_latex(name) for name in header) + r" \\", r"\midrule"]
        for row in _main_rows(block):
            cells = [
                _latex_cell(cell) + _latex(_interval(cell, column))
                for cell, column in zip(row.cells, table.columns, strict=True)
            ]
            line = [_latex(row.name), _latex(row.tokens), _seeds(row), *cells, _latex(row.hours)]
            lines.append(" & ".join(line) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines) + "\n")
    caption = "".join(f"% {line}\n" for line in _CAPTION.replace("**", "").splitlines())
    return "\n".join([*parts, caption])


_CAPTION = (
    "Percent, means over seeds, in brackets 95% intervals. **Bold**: the best of its table; "
    "≈: not told apart from the best (intervals over seeds and items; one seed: over items alone); "
    "?: no interval is known."
)


def _title(block: Block) -> str:
    return block.title if block.limit is None else f"{block.title}, limit={block.limit}"


def _main_rows(block: Block) -> list[Row]:
    return [*block.baselines, *(row for row in block.rows if row.is_main)]


def _seeds(row: Row) -> str:
    return "" if row.seeds is None else str(row.seeds)


def _marked(cell: Cell, bold: str) -> str:
    marks = {Mark.BEST: bold, Mark.NEAR: "≈ {}", Mark.UNKNOWN: "? {}"}
    return marks.get(cell.mark, "{}").format(cell.text)


def _interval(cell: Cell, column: Column) -> str:
    return f" ({cell.interval})" if column.with_interval and cell.interval else ""


def _latex_cell(cell: Cell) -> str:
    if cell.mark is Mark.BEST:
        return rf"\textbf{{{_latex(cell.text)}}}"
    return _latex(_marked(cell, "{}"))


def _markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)
