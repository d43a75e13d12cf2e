"""A model beyond the first has its tables under headings, and nothing before it has rows."""

from __future__ import annotations

from typing import Any

from benchmarks.study import further
from tests.benchmarks.study.test_phases import grid

MODELS: dict[str, Any] = {
    "m": {"settings": [], "native_window": 1024},
    "n": {"settings": [], "native_window": 1024, "label": "N, 1K to 2K"},
    "o": {"settings": [], "native_window": 1024},
}


def test_without_rows_there_is_nothing() -> None:
    made = further.regions(grid(models=MODELS), {"m first": ["| a |"]})
    assert made == {"further first": [], "further models": []}


def test_tables_stand_under_headings_in_one_order() -> None:
    tables = {"n untrained": ["| u |"], "n first": ["| f |"], "o untrained": ["| o |"]}
    made = further.regions(grid(models=MODELS), tables)
    assert made["further first"] == [
        *("", "N, 1K to 2K. Validation half, each method's best run:", "", "| f |")
    ]
    text = "\n".join(made["further models"])
    assert text.startswith("## N, 1K to 2K\n\nValidation half, each method's best run:\n\n| f |\n")
    assert text.index("| f |") < text.index("| u |") < text.index("study_n_tokens.png")
    assert "## o\n\nValidation half, every scaling without training:\n\n| o |\n" in text
    assert "study_o" not in text, "pictures are of trained runs"


def test_what_was_tested_comes_before_what_was_validated() -> None:
    tables = {"n first": ["| f |"], "n comparison": ["| c |"], "n differences": ["| d |"]}
    made = further.regions(grid(models=MODELS), tables)
    assert "| c |" in made["further first"]
    assert "| f |" not in made["further first"]
    assert "Minus a method, in points" in "\n".join(made["further models"])
