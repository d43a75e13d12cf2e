from __future__ import annotations

from datetime import UTC, datetime

import pytest

from src.report import formatting

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (1.2345, "1.23"),
        (33.46, "33.5"),
        (2735.2, "2,735"),
        (3.2e9, "3.2e+09"),
        (NAN, "NaN"),
        (INF, "inf"),
    ],
)
def test_perplexity(value: float | None, shown: str) -> None:
    assert formatting.perplexity(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (NAN, "–"),
        (2.34, "2.3 s"),
        (59.9, "1 min 00 s"),
        (253.1, "4 min 13 s"),
        (7260.0, "2 h 01 min"),
        (200_000.0, "2 d 7 h"),
    ],
)
def test_duration(seconds: float | None, shown: str) -> None:
    assert formatting.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ("", "–"),
        (0, "0"),
        ("two\n lines", "two lines"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("right\u202eleft", "right\ufffdleft"),
        ("half \ud800", "half \ufffd"),
    ],
)
def test_text_is_one_printable_line(value: str | int | None, shown: str) -> None:
    assert formatting.text(value) == shown


def test_shares_and_percents() -> None:
    assert formatting.share(0.942) == "94.2%"
    assert formatting.share(-0.5) == "-50.0%"
    assert formatting.share(None) == formatting.share(NAN) == "–"
    assert formatting.percent(97.9) == "97.9%"


def test_integers_moments_and_commits() -> None:
    assert formatting.integer(2359296) == "2,359,296"
    assert formatting.moment(datetime(2025, 11, 2, 3, 4, tzinfo=UTC)) == "2025-11-02 03:04"
    assert formatting.commit("3f9c2ab81d77aa01", dirty=False) == "3f9c2ab81d"
    assert formatting.commit("3f9c2ab81d77aa01", dirty=True) == "3f9c2ab81d+"
    assert formatting.commit(None, dirty=True) == "–"
