"""Repeated passages: how much is repeated, from where, and that nothing else changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.training.repeats import Repeats, repeated


def copies(tokens_t: np.ndarray, made_t: np.ndarray) -> list[tuple[int, int, int]]:
    """(place, source, tokens) of each run of a block whose tokens are all different."""
    where = {int(token): place for place, token in enumerate(tokens_t)}
    sources = np.array([where[int(token)] for token in made_t])
    moved = np.flatnonzero(sources != np.arange(len(sources)))
    runs = np.split(moved, np.flatnonzero(np.diff(moved) != 1) + 1) if len(moved) else []
    return [(int(run[0]), int(sources[run[0]]), len(run)) for run in runs]


@given(
    share=st.floats(0.05, 0.9),
    shortest=st.integers(2, 20),
    more=st.integers(0, 40),
    forks=st.sampled_from([0.0, 0.2, 0.9]),
    length=st.integers(1, 400),
    key=st.text(max_size=5),
)
def test_every_changed_token_is_an_earlier_one(
    share: float, shortest: int, more: int, forks: float, length: int, key: str
) -> None:
    tokens_t = np.arange(length)
    repeats = Repeats(share, shortest, shortest + more, forks)
    made_t = repeated(tokens_t, repeats, key)
    assert np.array_equal(tokens_t, np.arange(length))
    assert np.array_equal(made_t, repeated(tokens_t, repeats, key))
    assert (made_t <= tokens_t).all()
    assert np.array_equal(made_t[: repeats.longest], tokens_t[: repeats.longest])


@pytest.mark.parametrize("forks", [0.0, 0.25])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_is_that_of_the_setting(share: float, forks: float) -> None:
    repeats, tokens_t = Repeats(share, 8, 32, forks), np.arange(4096)
    changed = [(repeated(tokens_t, repeats, f"{i}") != tokens_t)[32:].mean() for i in range(100)]
    assert np.mean(changed) == pytest.approx(share, rel=0.05)


def test_passages_have_the_lengths_and_distances_of_the_setting() -> None:
    repeats, tokens_t = Repeats(0.1, 8, 32), np.arange(4096)
    blocks = [copies(tokens_t, repeated(tokens_t, repeats, f"{i}")) for i in range(50)]
    # Neighbouring repeats are seen as one, and the repeat of a repeat as several.
    lengths = [tokens for block in blocks for *_, tokens in block]
    assert np.quantile(lengths, 0.9) <= 32
    assert 12 < np.mean(lengths) < 20
    distances = np.array([(p - s) / p for block in blocks for p, s, _ in block])
    assert distances.min() > 0
    assert distances.mean() == pytest.approx(0.55, abs=0.06)
    assert all(a[0] < b[0] for block in blocks for a, b in pairwise(block))


def both_copied(made_t: np.ndarray, tokens: int) -> int:
    """How many beginnings of so many tokens are followed by two others, each more than once."""
    after: dict[bytes, Counter[int]] = defaultdict(Counter)
    for place in range(len(made_t) - tokens):
        after[made_t[place : place + tokens].tobytes()][int(made_t[place + tokens])] += 1
    return sum(sum(times > 1 for times in then.values()) > 1 for then in after.values())


def test_forks_begin_alike_and_both_ways_on_are_copied() -> None:
    tokens_t, forks = np.arange(8192), 0.25
    plain, forked = (
        np.mean([both_copied(repeated(tokens_t, repeats, f"{i}"), 8) for i in range(5)])
        for repeats in (Repeats(0.5, 8, 64), Repeats(0.5, 8, 64, forks))
    )
    # Half of the tokens are repeats of 22 tokens on average, and a quarter of these are forks.
    made = 8192 * 0.5 / (forks * 8 + (1 - forks) * 56 / np.log(8)) * forks
    assert plain < 0.6 * made < forked < 1.6 * made


def test_keys_differ() -> None:
    repeats, tokens_t = Repeats(0.25), np.arange(4096)
    assert not np.array_equal(repeated(tokens_t, repeats, "a"), repeated(tokens_t, repeats, "b"))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shortest=9 is above longest=8"):
        Repeats(0.5, 9, 8)
    with pytest.raises(ValueError, match=r"longest=256: .* block of 511 tokens; give at most 255"):
        Repeats(0.5).check(511)
    Repeats(0.5).check(512)
