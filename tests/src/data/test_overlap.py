"""Windows in common, against a count by plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.overlap import WINDOW, find_overlaps, window_hashes


def noise(seed: int, size: int, vocabulary: int = 50_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, size).astype(np.uint16)


def windows(tokens: np.ndarray) -> list[bytes]:
    return [tokens[i : i + WINDOW].tobytes() for i in range(len(tokens) - WINDOW + 1)]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_one_hash_a_window(size: int) -> None:
    assert len(window_hashes(noise(0, size))) == max(0, size - WINDOW + 1)


def test_hashes_are_equal_exactly_where_windows_are() -> None:
    tokens = np.concatenate([noise(0, 100), noise(1, 90), noise(0, 100)])
    hashes = window_hashes(tokens).tolist()
    assert len(set(hashes)) == len(set(windows(tokens)))
    assert hashes[:37] == hashes[190:227]


def test_order_and_place_count() -> None:
    tokens = noise(0, WINDOW)
    swapped = tokens.copy()
    swapped[[3, 40]] = swapped[[40, 3]]
    hashes = {int(window_hashes(t)[0]) for t in (tokens, tokens[::-1], swapped)}
    assert len(hashes) == 3


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
)
def test_fractions_equal_a_plain_count(a: list[int], b: list[int], c: list[int]) -> None:
    # Texts of shared and repeated pieces, some shorter than a window.
    pieces = [noise(seed, 30 + 25 * seed) for seed in range(4)]
    held, *training = (np.concatenate([pieces[i] for i in choice]) for choice in (a, b, c))
    known = [set(windows(tokens)) for tokens in training]
    shared = [[w in k for w in windows(held)] for k in known]
    expected = np.mean([any(s) for s in zip(*shared, strict=True)]) if windows(held) else 0.0
    found = find_overlaps({"held": held}, [("b", training[0]), ("c", training[1])])
    if expected == 0:
        assert found == {}
    else:
        assert found["held"].fraction == pytest.approx(expected)
        assert found["held"].document == ("c" if sum(shared[1]) > sum(shared[0]) else "b")


def test_each_held_out_document_has_its_own_share() -> None:
    training = noise(0, 5000)
    held_out = {
        "none": noise(1, 1000),
        "half": np.concatenate([training[100:600], noise(2, 500)]),
        "all": training[2000:3000],
        "short": training[:10],
    }
    found = find_overlaps(held_out, [("other", noise(3, 1000)), ("source", training)])
    assert found.keys() == {"half", "all"}
    assert found["all"].fraction == 1
    assert found["half"].fraction == pytest.approx(437 / 937)
    assert found["half"].document == "source"


def test_nothing_held_out_gives_nothing() -> None:
    assert find_overlaps({}, [("x", noise(0, 100))]) == {}
