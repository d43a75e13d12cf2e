"""Shell patterns over the names of documents."""

from __future__ import annotations

import pytest

from src.data.documents import DataError, matches_any, refuse_idle_patterns

NAMES = ["sotu/1945-Roosevelt-1", "sotu/1946-Truman-1", "moby_dick"]


def test_patterns_match_whole_names_and_case_counts() -> None:
    assert matches_any("sotu/1945-Roosevelt-1", ["nothing", "sotu/1945-*"])
    assert not matches_any("sotu/1945-Roosevelt-1", ["1945", "SOTU/1945-*"])
    assert not matches_any("moby_dick", [])


def test_an_idle_pattern_is_refused_with_near_names() -> None:
    refuse_idle_patterns("held_out", ["moby*", "sotu/*"], NAMES)
    with pytest.raises(DataError, match=r"held_out: pattern 'moby-dick' .* 3 .*near it: moby_dick"):
        refuse_idle_patterns("held_out", ["sotu/*", "moby-dick"], NAMES)
