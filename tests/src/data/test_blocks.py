"""Blocks: whole, within documents, each once an epoch, in an order that never changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.blocks import Blocks
from src.data.documents import DataError

lengths = st.integers(1, 9)
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda s: max(s) >= 9)
seeds = st.integers(0, 2**40)


def documents_of_sizes(sizes: list[int]) -> list[tuple[str, np.ndarray]]:
    """Documents whose tokens tell where they stand: no token occurs twice."""
    ends = np.cumsum(sizes)
    return [
        (f"d{i}", np.arange(end - size, end, dtype=np.uint16))
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def make(sizes: list[int], length: int, seed: int = 0, stream: str = "main") -> Blocks:
    return Blocks(documents_of_sizes(sizes), length, seed=seed, stream=stream)


@settings(deadline=None)
@given(sizes, lengths, seeds, st.integers(0, 200))
def test_a_block_is_a_whole_piece_of_one_document(
    sizes: list[int], length: int, seed: int, index: int
) -> None:
    blocks = make(sizes, length, seed)
    block = blocks[index]
    assert block.dtype == np.int64
    assert block.shape == (length,)
    tokens = next(t for _, t in documents_of_sizes(sizes) if block[0] in t)
    start = int(block[0] - tokens[0])
    assert start % length == 0
    assert block.tolist() == tokens[start : start + length].tolist()


@settings(deadline=None)
@given(sizes, lengths, seeds, st.integers(0, 3))
def test_an_epoch_holds_every_block_once(
    sizes: list[int], length: int, seed: int, epoch: int
) -> None:
    blocks = make(sizes, length, seed)
    assert len(blocks) == sum(size // length for size in sizes)
    firsts = [int(blocks[epoch * len(blocks) + place][0]) for place in range(len(blocks))]
    starts = np.cumsum([0, *sizes])
    expected = [
        int(start) + length * block
        for start, size in zip(starts, sizes, strict=False)
        for block in range(size // length)
    ]
    assert sorted(firsts) == expected


@settings(deadline=None)
@given(sizes, lengths, seeds, st.lists(st.integers(0, 120), min_size=1, max_size=30))
def test_access_in_any_order_gives_the_same_blocks(
    sizes: list[int], length: int, seed: int, indices: list[int]
) -> None:
    jumping = make(sizes, length, seed)
    sequential = [make(sizes, length, seed)[index] for index in indices]
    assert np.array_equal([jumping[index] for index in indices], sequential)


def order(seed: int = 0, stream: str = "main", epoch: int = 0, blocks: int = 50) -> list[int]:
    """The order of an epoch, as block numbers."""
    made = make([blocks], 1, seed, stream)
    return [int(made[epoch * blocks + place][0]) for place in range(blocks)]


def test_seed_stream_and_epoch_each_change_the_order() -> None:
    orders = [order(), order(seed=1), order(stream="short"), order(epoch=1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order() == orders[0]


def test_the_order_is_shuffled_evenly() -> None:
    places = np.array([order(seed=seed, blocks=10).index(0) for seed in range(500)])
    counts = np.bincount(places, minlength=10)
    assert counts.min() > 25, "a block stands at each of ten places about 50 times in 500"
    assert counts.max() < 80


def test_the_order_is_frozen() -> None:
    # A resumed run must see the blocks of the run that it resumes: never change these.
    assert order(seed=7, blocks=8) == [3, 2, 6, 7, 0, 1, 5, 4]
    assert order(seed=7, blocks=8, epoch=1) == [4, 1, 6, 2, 5, 7, 0, 3]


def test_iteration_is_the_first_epoch() -> None:
    blocks = make([10, 7], 3)
    assert [block.tolist() for block in blocks] == [blocks[i].tolist() for i in range(5)]


def test_documents_shorter_than_a_block_are_left_out() -> None:
    blocks = make([3, 8, 3], 4)
    assert sorted(blocks[index].tolist() for index in range(2)) == [[3, 4, 5, 6], [7, 8, 9, 10]]
    assert len(blocks) == 2


def test_no_document_long_enough_names_the_longest() -> None:
    with pytest.raises(DataError, match=r"no training document is 9 tokens .*'d1', has 8"):
        make([3, 8, 5], 9)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1 token, not 0"):
        make([5], 0)
    blocks = make([5], 1)
    with pytest.raises(IndexError, match="not be negative, not -1"):
        blocks[-1]
