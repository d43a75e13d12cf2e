"""A model beyond the first has its tables under headings, and nothing before it has rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.study import further, tables
from tests.benchmarks.study.test_phases import grid

MODELS: dict[str, Any] = {
    "m": {"settings": [], "native_window": 1024},
    "n": {"settings": [], "native_window": 1024, "label": "N, 1K to 2K"},
    "o": {"settings": [], "native_window": 1024},
}
NONE: dict[str, list[str]] = {model: [] for model in MODELS}


def test_the_front_page_shows_the_models_that_are_named() -> None:
    tables = {"n first": ["| n |"], "o first": ["| o |"]}
    made = further.regions(grid(models=MODELS, further=["o"]), tables, NONE)
    assert [line for line in made["further first"] if "|" in line] == ["| o |"]
    assert [line for line in made["further models"] if "|" in line] == ["| n |", "| o |"]
    with pytest.raises(ValueError, match=r"further: \['x'\] are named and not listed"):
        grid(further=["x"])
    assert grid(models=MODELS, further=["o"]).only(["n"], None).further == ()


def test_without_rows_there_is_nothing() -> None:
    made = further.regions(grid(models=MODELS, further=["n"]), {"m first": ["| a |"]}, NONE)
    assert made == {"further first": [], "further models": []}


def test_tables_stand_under_headings_in_one_order() -> None:
    tables = {"n untrained": ["| u |"], "n first": ["| f |"], "o untrained": ["| o |"]}
    drawn = NONE | {"n": ["rates", "drift"]}
    made = further.regions(grid(models=MODELS, further=["n"]), tables, drawn)
    assert made["further first"] == [
        *("", "N, 1K to 2K. Validation half, each method's best run:", "", "| f |")
    ]
    text = "\n".join(made["further models"])
    assert text.startswith("## N, 1K to 2K\n\nValidation half, each method's best run:\n\n| f |\n")
    pictures = [text.index(f"study_n_{kind}.png") for kind in ("rates", "drift")]
    assert text.index("| f |") < text.index("| u |") < pictures[0] < pictures[1]
    assert "## o\n\nValidation half, every scaling without training:\n\n| o |\n" in text
    assert "study_o" not in text


def test_what_is_not_defined_is_a_dash(tmp_path: Path) -> None:
    """A native model that scores nothing, as one of random weights."""
    nothing = {"short": {"lambada": 0.0}, "ruler": {"1024": 0.0}, "tasks": {}}
    about = {"model": "m", "scaling": "linear", "validation": nothing}
    trained = {"method": "a", "budget": "1M", "params": {}, "stages": [], "seconds": 1.0}
    rows = [
        about | {"phase": "untrained", "method": "untrained", "native": nothing},
        about | {"phase": "search", **trained},
    ]
    [line] = list(tables.search_table(grid(), "m", rows))[2:]
    assert line.endswith("| - | - | 0.000 | 1 | 0.0 |")
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "m-native.json").write_text('{"ruler_vt_1024": [0, 0]}')
    assert not list(tables.Comparison(grid(), "m", [], tmp_path).goals(1024))


def test_what_was_tested_comes_before_what_was_validated() -> None:
    tables = {"n first": ["| f |"], "n headline": ["| c |"], "n differences": ["| d |"]}
    made = further.regions(grid(models=MODELS, further=["n"]), tables, NONE)
    assert "| c |" in made["further first"]
    assert "| f |" not in made["further first"]
    assert "Minus a method, in points" in "\n".join(made["further models"])
