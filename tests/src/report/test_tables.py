from __future__ import annotations

from rich.console import Console

from src.progress import widen
from src.report.noise import Mark
from src.report.tables import (
    Cell,
    Column,
    Row,
    Section,
    Table,
    csv_text,
    latex,
    markdown,
    row,
    terminal,
    to_csv,
)

TABLE = Table(
    (
        Column("method", "text", "variant", shows_detail=True),
        Column("score", detail="95%", shows_detail=True, marked=True),
        Column("note", "text", only_page=True),
    ),
    (
        Section(
            (
                row(Cell("a_b", "lr=1"), Cell("9.5", "9 to 10", Mark.BEST), "p|q"),
                row("c", Cell("9.4", "", Mark.NEAR), "<i>"),
                Row((Cell("d"), Cell("1", "", Mark.UNKNOWN), Cell("")), is_extra=True),
            ),
            (("model", "tiny"), ("limit", "200")),
        ),
        Section((row("e", "–", ""),), (("model", "large"), ("limit", ""))),
    ),
)


def test_csv_has_all_rows_and_columns_for_labels_details_and_marks() -> None:
    assert to_csv(TABLE).splitlines() == [
        'model,limit,method,variant,score,95%,"score, to the best",note',
        "tiny,200,a_b,lr=1,9.5,9 to 10,best,p|q",
        "tiny,200,c,,9.4,,near,<i>",
        "tiny,200,d,,1,,unknown,",
        "large,,e,,–,,,",
    ]


def test_csv_quotes_and_guards_against_formulas() -> None:
    assert csv_text([("a", "b"), ("=x", 1.5), ("p,q", None)]) == 'a,b\n\'=x,1.5\n"p,q",\n'


def test_markdown_has_a_table_for_each_section() -> None:
    assert markdown(TABLE).splitlines() == [
        "**tiny, limit=200**",
        "",
        "| method | score | note |",
        "|---|---:|---|",
        "| a_b | **9.5** (9 to 10) | p\\|q |",
        "| c | ≈ 9.4 | &lt;i> |",
        "",
        "**large**",
        "",
        "| method | score | note |",
        "|---|---:|---|",
        "| e | – |  |",
    ]


def test_latex_has_a_tabular_for_each_section() -> None:
    lines = latex(TABLE).splitlines()
    assert lines[:2] == ["% tiny, limit=200", r"\begin{tabular}{lrl}"]
    assert r"a\_b & \textbf{9.5} (9 to 10) & p|q \\" in lines
    assert r"c & $\approx$ 9.4 & \textless{}i\textgreater{} \\" in lines
    assert lines.count(r"\bottomrule") == 2


def test_a_terminal_shows_texts_as_they_are_and_leaves_out_the_pages_columns() -> None:
    table = Table(
        (Column("[b]x", "text"), Column("p", only_page=True)), (Section((row("[i]y", "z"),)),)
    )
    console = widen(Console(record=True, file=open("/dev/null", "w")))  # noqa: SIM115
    assert console.width >= 160
    console.print(terminal(table))
    text = console.export_text()
    assert "[b]x" in text
    assert "[i]y" in text
    assert "z" not in text


def test_a_fault_stands_beside_its_text() -> None:
    table = Table((Column("x"),), (Section((row(Cell("8.00", fault="does not fit")),)),))
    console = Console(record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(table))
    assert "8.00 does not fit" in console.export_text()
