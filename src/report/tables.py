"""One table for all outputs: a terminal, the page, CSV, Markdown and LaTeX.

The page's writer is `templates/table.html`. A table says what its cells hold; only the writers know
how that looks.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from src.report.noise import Mark

_FORMULA_SIGNS = frozenset("=+-@\N{MINUS SIGN}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_BEFORE = {Mark.NEAR: "≈ ", Mark.UNKNOWN: "? "}
_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "–": "--", "≈": r"$\approx$", "ᵀ": r"$^\top$"}
    | {char: f"\\{char}" for char in "&%$#_{}"}
)


@dataclass(frozen=True)
class Column:
    """A column; its detail is a second text of a cell, such as an interval."""

    title: str
    kind: Literal["text", "number", "code", "badge"] = "number"
    """Numbers are aligned at the right; the page shows the others in their own way."""
    detail: str = ""  # what CSV calls the detail, which has a column of its own there
    shows_detail: bool = False
    """The page writes the detail below the text; Markdown and LaTeX behind a number."""
    marked: bool = False  # cells may have a mark, which also has a column in CSV
    only_page: bool = False  # the terminal leaves it out
    css: str = ""  # class of its cells on the page

    @property
    def is_number(self) -> bool:
        """Whether it is aligned at the right."""
        return self.kind == "number"


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    detail: str = ""
    mark: Mark = Mark.ABSENT
    fault: str = ""  # what is wrong, in a warning colour
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the page's element
    css: str = ""  # class on the page
    opens: bool = False  # on the page a click opens the runs of the row
    links: tuple[tuple[str, str], ...] = ()  # name and address, on the page


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns."""

    cells: tuple[Cell, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)  # of the page's element
    is_extra: bool = False  # Markdown and LaTeX leave it out


@dataclass(frozen=True)
class Section:
    """Rows that belong together; `labels` are named facts about all of them."""

    rows: tuple[Row, ...]
    labels: tuple[tuple[str, str], ...] = ()
    css: str = ""  # class on the page

    @property
    def title(self) -> str:
        """The first fact, then the others with their names."""
        first, *others = self.labels or (("", ""),)
        return ", ".join([first[1], *(f"{name}={value}" for name, value in others if value)])


@dataclass(frozen=True)
class Table:
    """Sections of rows under one header."""

    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    title: str = ""

    @property
    def rows(self) -> list[Row]:
        """The rows of all sections."""
        return [line for section in self.sections for line in section.rows]


def row(*cells: str | Cell) -> Row:
    """A row, of texts where a cell needs no more."""
    return Row(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells))


def terminal(table: Table) -> RichTable:
    """The table for a console. Texts are never read as markup."""
    title = Text(table.title) if table.title else None
    drawn = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        if not column.only_page:
            align = "right" if column.is_number else "left"
            drawn.add_column(Text(column.title), justify=align, overflow="fold")
    for section in table.sections:
        for line in section.rows:
            cells = zip(table.columns, line.cells, strict=True)
            drawn.add_row(*(_rich(cell) for column, cell in cells if not column.only_page))
        drawn.add_section()
    return drawn


def _rich(cell: Cell) -> Text:
    text = Text(cell.text, "bold" if cell.mark is Mark.BEST else "")
    return text.append(f" {cell.fault}", "red") if cell.fault else text


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated values; None is an empty cell.

    A text that a spreadsheet would read as a formula gets an apostrophe before it, also where its
    first sign is a full-width one or follows blanks. A number stays a number.
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([map(_no_formula, row) for row in rows])
    return buffer.getvalue()


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    # Compatibility forms of a sign are read as the sign; blanks and invisible characters are not.
    shown = unicodedata.normalize("NFKC", cell)
    seen = (char for char in shown if unicodedata.category(char)[0] not in "ZC")
    starts = next(seen, "") in _FORMULA_SIGNS or shown[:1] in ("\t", "\r")
    return f"'{cell}" if starts else cell


def to_csv(table: Table) -> str:
    """The table as CSV: labels of the sections first; details and marks have their own columns."""
    header = [name for name, _ in table.sections[0].labels] if table.sections else []
    for column in table.columns:
        header += [column.title]
        header += [column.detail] if column.detail else []
        header += [f"{column.title}, to the best"] if column.marked else []
    lines = [
        [*(value for _, value in section.labels), *_csv_cells(table.columns, line)]
        for section in table.sections
        for line in section.rows
    ]
    return csv_text([header, *lines])


def _csv_cells(columns: Sequence[Column], line: Row) -> Iterator[str]:
    for column, cell in zip(columns, line.cells, strict=True):
        yield cell.text
        if column.detail:
            yield cell.detail
        if column.marked:
            yield "" if cell.mark in (Mark.ABSENT, Mark.ALONE) else cell.mark.value


def markdown(table: Table) -> str:
    """One table for each section, under its title if it has one."""
    rule = "".join("|---:" if column.is_number else "|---" for column in table.columns) + "|"
    parts = []
    for section in table.sections:
        title = [f"**{_markdown(section.title)}**", ""] if section.title else []
        header, *rows = _printed(table, section, _markdown, "**{}**")
        lines = [f"| {' | '.join(line)} |" for line in (header, *rows)]
        parts.append("\n".join([*title, lines[0], rule, *lines[1:]]) + "\n")
    return "\n".join(parts)


def latex(table: Table) -> str:
    """One tabular for each section, its title as a comment; needs the package booktabs."""
    align = "".join("r" if column.is_number else "l" for column in table.columns)
    parts = []
    for section in table.sections:
        title = [f"% {section.title}".replace("\n", " ")] if section.title else []
        lines = [
            " & ".join(line)
            for line in _printed(
                table, section, lambda text: text.translate(_LATEX), r"\textbf{{{}}}"
            )
        ]
        begin = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0] + r" \\", r"\midrule"]
        body = [line + r" \\" for line in lines[1:]]
        parts.append("\n".join([*title, *begin, *body, r"\bottomrule", r"\end{tabular}"]) + "\n")
    return "\n".join(parts)


def _printed(
    table: Table, section: Section, escape: Callable[[str], str], bold: str
) -> Iterator[list[str]]:
    """The header and the usual rows, as texts for a paper."""
    yield [escape(column.title) for column in table.columns]
    for line in section.rows:
        if not line.is_extra:
            texts = []
            for column, cell in zip(table.columns, line.cells, strict=True):
                text = escape(_BEFORE.get(cell.mark, "") + cell.text)
                detail = cell.detail if column.is_number and column.shows_detail else ""
                marked = bold.format(text) if cell.mark is Mark.BEST else text
                texts.append(marked + (escape(f" ({detail})") if detail else ""))
            yield texts


def _markdown(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
