"""What of a study was not run yet is said from its rows."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.study.__main__ import DOCUMENTS, RESULTS
from benchmarks.study.grid import Grid
from benchmarks.study.missing import missing
from benchmarks.study.running import Results
from tests.benchmarks.study.test_phases import grid, method, played, score
from tests.conftest import ROOT

METHODS = {
    "a": method(1e-4, 3e-4, label="A"),
    "b": method(1e-4, 3e-4, label="B, again", scalings=["linear"]),
}
GRID = grid(methods=METHODS, measured=["a"], larger="16M")


def of_phases(rows: list[dict[str, Any]], *phases: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["phase"] in phases]


def test_a_study_that_is_complete_lacks_nothing() -> None:
    assert list(missing(GRID, "m", played(GRID, score))) == ["Nothing."]


def test_what_was_not_searched_or_in_part() -> None:
    rows = played(GRID, score)
    one = next(row for row in rows if (row["method"], row["scaling"]) == ("a", "yarn"))
    assert list(missing(GRID, "m", [*of_phases(rows, "untrained"), one])) == [
        "- Not searched: B, again; B, again on linear.",
        "- Searched in part: A (1 of 3 settings).",
        "- Not run with 16M tokens: A.",
    ]


def test_what_was_searched_and_tested_with_few_seeds_or_none() -> None:
    rows = played(GRID, score)
    finals = [r for r in of_phases(rows, "final") if (r["scaling"], r["seed"]) == ("yarn", 0)]
    before = of_phases(rows, "untrained", "search", "whole")
    assert list(missing(GRID, "m", before + finals)) == [
        "- Searched and not tested: B, again on linear.",
        "- Tested with fewer than 2 seeds: A (1); B, again (1).",
    ]


def test_a_scaling_without_a_score_is_named() -> None:
    scalings = {name: [f"rope={name}"] for name in ("linear", "yarn", "sharp")}
    more = grid(methods=METHODS, scalings=scalings, untrained_only=["sharp"])
    assert list(missing(more, "m", played(GRID, score))) == [
        "- Scalings that were not scored: sharp."
    ]


def test_what_documents_call_untested_is_not_tested() -> None:
    """The method named last before such words, of a model that README.md shows beside the first."""
    of = Grid.load(ROOT / "benchmarks" / "study" / "grid.yaml")
    rows = Results(RESULTS, None).rows
    lines = [line for model in of.further for line in missing(of, model, rows)]
    untested = "".join(line for line in lines if line.startswith("- Searched and not tested: "))
    labels = "|".join(re.escape(about.label) for about in of.methods.values())
    for document in DOCUMENTS:
        for before in document.read_text(encoding="utf-8").split("not tested yet")[:-1]:
            *_, named = re.findall(labels, before)
            assert re.search(rf"[:;] {re.escape(named)}[;.]", untested), f"{document}: {named}"
