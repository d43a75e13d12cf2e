"""Positions over 10,000 draws: what is kept, order, window, and how they are distributed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.training.positions import Positions, check, positions

DRAWS = 10_000
# LongReD's own: blocks of the native 8192 tokens in a window of 32,768; and a small one for speed.
N, WINDOW = 96, 384
FACTOR = WINDOW // N
SKIPPING: tuple[Positions, ...] = ("cream", "cream_reference", "uniform", "pose")


def draws(kind: Positions, length: int = N, window: int = WINDOW) -> np.ndarray:
    """[draws, length]."""
    return np.stack([positions(kind, length, window, f"7/mix/s2l/{i}") for i in range(DRAWS)])


@pytest.fixture(scope="module")
def drawn() -> dict[Positions, np.ndarray]:
    return {kind: draws(kind) for kind in SKIPPING}


def heads(rows: np.ndarray) -> np.ndarray:
    """Tokens before the first skip of each row, where the tail is the window's end."""
    gaps = np.diff(rows, axis=1) != 1
    return np.where(gaps.any(1), gaps.argmax(1) + 1, rows.shape[1])


@pytest.mark.parametrize("kind", SKIPPING)
def test_every_draw_increases_strictly_within_the_window(
    drawn: dict[Positions, np.ndarray], kind: Positions
) -> None:
    rows = drawn[kind]
    assert rows.dtype == np.int64
    assert rows.shape == (DRAWS, N)
    assert (np.diff(rows, axis=1) > 0).all()
    assert (rows[:, 0] == 0).all()
    assert (rows[:, -1] < WINDOW).all()


@pytest.mark.parametrize("kind", ["cream", "cream_reference", "uniform"])
def test_first_and_last_blocks_are_kept(
    drawn: dict[Positions, np.ndarray], kind: Positions
) -> None:
    """Head and tail are a third of the block or 4 x factor tokens, each in half of the draws."""
    rows = drawn[kind]
    shorter = 4 * FACTOR
    assert shorter < N // 3
    assert (rows[:, :shorter] == np.arange(shorter)).all()
    assert (rows[:, -shorter:] == np.arange(WINDOW - shorter, WINDOW)).all()
    third = (rows[:, : N // 3] == np.arange(N // 3)).all(1) & (
        rows[:, -(N // 3) :] == np.arange(WINDOW - N // 3, WINDOW)
    ).all(1)
    # The middle may touch head or tail by chance, so a little more than half.
    assert third.mean() == pytest.approx(0.5, abs=0.03)
    runs = 1 + (np.diff(rows, axis=1) != 1).sum(1)
    assert (runs <= 3).all()
    assert (runs == 3).mean() > 0.5


def middle_ends(rows: np.ndarray, head: int) -> np.ndarray:
    """Where the middle ends in the draws whose head and tail have `head` tokens for certain."""
    exact = (rows[:, head] != head) & (rows[:, -head - 1] != WINDOW - head - 1)
    kept = (rows[:, :head] == np.arange(head)).all(1)
    return rows[exact & kept][:, -head - 1]


def frequencies(values: Sequence[int], bins: int, low: int, high: int) -> np.ndarray:
    edges = np.linspace(low, high + 1, bins + 1)
    return np.histogram(values, edges)[0] / len(values)


def within_noise(found: np.ndarray, expected: np.ndarray, count: int) -> None:
    """Each frequency within five standard deviations of a count's own."""
    deviation = np.sqrt(np.maximum(expected * (1 - expected), 1e-4) / count)
    assert (np.abs(found - expected) < 5 * deviation).all(), (found, expected)


def middle_law(kind: Positions, head: int) -> np.ndarray:
    """Probability of each end of the middle, by the definition: k, then uniformly in its range."""
    middle = N - 2 * head
    law = np.zeros(WINDOW)
    if kind == "uniform":
        law[N - head : WINDOW - head] = 1 / (WINDOW - N)
        return law
    gauss = NormalDist(1 + FACTOR, 5)
    for k in range(2, 2 * FACTOR + 1):
        if kind == "cream":
            low, high = max(2.0, k - 0.5), min(2.0 * FACTOR, k + 0.5)
            share = (gauss.cdf(high) - gauss.cdf(low)) / (gauss.cdf(2 * FACTOR) - gauss.cdf(2))
        else:
            low = 0.0 if k == 2 else gauss.cdf(k)
            share = (1.0 if k == 2 * FACTOR else gauss.cdf(k + 1)) - low
        first = head + math.floor((middle - 1) * k / 2)
        last = math.floor(N * k / 2) - head - 1
        law[first : last + 1] += share / (last - first + 1)
    assert law.sum() == pytest.approx(1)
    return law


@pytest.mark.parametrize("kind", ["cream", "cream_reference", "uniform"])
@pytest.mark.parametrize("head", [4 * FACTOR, N // 3], ids=["short-head", "third"])
def test_the_middle_lies_where_its_law_says(
    drawn: dict[Positions, np.ndarray], kind: Positions, head: int
) -> None:
    ends = middle_ends(drawn[kind], head)
    law = middle_law(kind, head)
    # Ends at which the middle touches head or tail are not told apart from other heads.
    touching = [head + (N - 2 * head) - 1, WINDOW - head - 1]
    law[touching] = 0
    other = N // 3 if head == 4 * FACTOR else None
    assert len(ends) > 1000
    ends = ends[~np.isin(ends, touching)]
    if other is not None:
        # Draws with the longer head look like the shorter one's, middle included: leave them out.
        rows = drawn[kind]
        longer = (rows[:, :other] == np.arange(other)).all(1)
        ends = middle_ends(rows[~longer], head)
        ends = ends[~np.isin(ends, touching)]
    law /= law.sum()
    edges = np.linspace(0, WINDOW, 9).astype(int)
    expected = np.array([law[a:b].sum() for a, b in pairwise(edges)])
    found = np.histogram(ends, edges)[0] / len(ends)
    within_noise(found, expected, len(ends))


def test_creams_middle_is_a_truncated_gaussians() -> None:
    """At LongReD's own sizes: mean and spread of the drawn factor, by the middle's place."""
    n, window, head = 8192, 32_768, 8192 // 3
    rows = [positions("cream", n, window, str(i)) for i in range(DRAWS)]
    ends = np.array([r[-head - 1] for r in rows if r[head - 1] == head - 1 and r[head] != head])
    gauss = NormalDist(5, 5)
    mass = gauss.cdf(8) - gauss.cdf(2)
    weights = {
        k: (gauss.cdf(min(8.0, k + 0.5)) - gauss.cdf(max(2.0, k - 0.5))) / mass for k in range(2, 9)
    }
    middle = n - 2 * head
    centre = {
        k: (head + (middle - 1) * k / 2 + n * k / 2 - head - 1) / 2
        for k in weights
        if k > 2  # with k = 2 the middle continues the head
    }
    total = sum(weights[k] for k in centre)
    expected = sum(weights[k] * centre[k] for k in centre) / total
    assert ends.mean() == pytest.approx(expected, rel=0.02)
    assert ends.max() < window - head


def test_pose_splits_and_skips_uniformly(drawn: dict[Positions, np.ndarray]) -> None:
    rows = drawn["pose"]
    skips = rows[:, -1] - (N - 1)
    assert skips.min() == 0
    assert skips.max() == WINDOW - N
    found = frequencies(skips.tolist(), 8, 0, WINDOW - N)
    edges = np.linspace(0, WINDOW - N + 1, 9)
    counts = np.histogram(np.arange(WINDOW - N + 1), edges)[0] / (WINDOW - N + 1)
    within_noise(found, counts, DRAWS)
    skipped = rows[skips > 0]
    splits = heads(skipped)
    assert (splits.min(), splits.max()) == (1, N - 1)
    edges = np.linspace(1, N, 9)
    counts = np.histogram(np.arange(1, N), edges)[0] / (N - 1)
    within_noise(frequencies(splits.tolist(), 8, 1, N - 1), counts, len(skipped))


@pytest.mark.parametrize("kind", SKIPPING)
def test_a_key_gives_the_same_positions_and_another_key_others(kind: Positions) -> None:
    one, again, other = (positions(kind, N, WINDOW, key) for key in ("a/3", "a/3", "a/4"))
    assert (one == again).all()
    many = Counter(tuple(positions(kind, N, WINDOW, f"a/{i}")) for i in range(200))
    assert len(many) > 60
    assert other.shape == one.shape


@given(
    kind=st.sampled_from(SKIPPING),
    length=st.integers(3, 400),
    extra=st.integers(0, 3000),
    key=st.text(max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_any_length_and_window(kind: Positions, length: int, extra: int, key: str) -> None:
    found = positions(kind, length, length + extra, key)
    assert len(found) == length
    assert found[0] == 0
    assert (np.diff(found) >= 1).all()
    assert found[-1] <= length + extra - 1
    if kind != "pose":
        assert found[-1] == length + extra - 1


def test_contiguous_and_blocks_that_fill_the_window() -> None:
    assert positions("contiguous", 5, 9, "x").tolist() == [0, 1, 2, 3, 4]
    assert positions("contiguous", 1, 9, "x").tolist() == [0]
    for kind in SKIPPING:
        assert positions(kind, 9, 9, "x").tolist() == list(range(9))


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_has_no_positions_is_refused() -> None:
    check("contiguous", 2, 9)
    check("cream", 9, 9)
    check("cream", 3, 9)
    refused(lambda: check("contiguous", 10, 9), "10 tokens do not fit into a window of 9")
    refused(lambda: check("cream", 2, 9), "positions=cream needs blocks of 3 tokens or more")
