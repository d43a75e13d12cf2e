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


def test_text_of_exactly_a_block_is_one_block() -> None:
    assert make([8], 8)[0].tolist() == list(range(8))
    packed = Blocks(documents_of_sizes([3, 5]), 8, seed=0, stream="main", packing=True)
    assert sorted(packed[0].tolist()) == list(range(8))
    assert (len(packed), packed.packed) == (1, 1)


def test_blocks_name_their_documents_and_say_what_marks_them() -> None:
    whole = make([8, 16], 8)
    assert sorted(whole.documents(i)[0] for i in range(3)) == ["d0", "d1", "d1"]
    assert (whole.marked, whole.recipe) == (False, "")
    packed = Blocks(documents_of_sizes([3, 5]), 8, seed=0, stream="main", packing=True)
    assert sorted(packed.documents(0)) == ["d0", "d1"]
    assert (packed.marked, packed.recipe) == (True, "1 packed")
    learnt = [np.ones(8, dtype=bool)]
    of_answers = Blocks(documents_of_sizes([8]), 8, seed=0, stream="main", learnt=learnt)
    assert of_answers.marked


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


def packed(
    sizes: list[int], length: int, seed: int = 0, wanted: int | None = None, **more: object
) -> Blocks:
    texts = documents_of_sizes(sizes)
    return Blocks(texts, length, seed=seed, stream="main", packing=True, wanted=wanted, **more)


any_sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda s: sum(s) >= 9)


@settings(deadline=None)
@given(any_sizes, lengths, seeds)
def test_an_epoch_of_packed_blocks_holds_every_token(
    sizes: list[int], length: int, seed: int
) -> None:
    """Each once, but for those that fill the last block up."""
    blocks = packed(sizes, length, seed)
    tokens = np.concatenate([blocks[i] for i in range(len(blocks))])
    assert set(tokens.tolist()) == set(range(sum(sizes)))
    assert len(tokens) - sum(sizes) < length
    assert blocks.used().tolist() == sizes


@settings(deadline=None)
@given(any_sizes, lengths, seeds, st.integers(0, 60))
def test_a_segment_is_of_one_document(sizes: list[int], length: int, seed: int, index: int) -> None:
    blocks = packed(sizes, length, seed)
    block, segments = blocks[index], blocks.segments(index)
    assert block.shape == (length,)
    assert sum(segments) == length
    assert 1 <= len(segments) <= blocks.most_segments
    ends = np.cumsum(sizes)
    for part in np.split(block, np.cumsum(segments)[:-1]):
        assert part.tolist() == list(range(part[0], part[0] + len(part)))
        assert len(set(np.searchsorted(ends, part, side="right"))) == 1


@settings(deadline=None)
@given(any_sizes, lengths)
def test_the_most_segments_are_those_of_some_block(sizes: list[int], length: int) -> None:
    blocks = packed(sizes, length)
    counts = [len(blocks.segments(i)) for i in range(len(blocks))]
    assert blocks.most_segments == max(counts)


def test_whole_blocks_are_the_same_with_packing_where_nothing_is_left() -> None:
    whole, filled = make([8, 4, 12], 4, seed=3), packed([8, 4, 12], 4, seed=3)
    assert not filled.marked
    assert [b.tolist() for b in filled] == [b.tolist() for b in whole]


def test_long_blocks_take_the_longest_pieces_and_no_more_than_wanted() -> None:
    sizes = [3, 9, 1, 6, 2, 12]
    assert not packed(sizes, 8, wanted=2).marked
    blocks = packed(sizes, 8, wanted=4)
    assert len(blocks) == 4
    assert blocks.packed == 2
    # Two whole blocks; then pieces of 6, 4, 3 and 2 tokens, and 1 of the rest.
    assert blocks.read(4).tolist() == [3, 9, 0, 6, 2, 12]
    assert packed(sizes, 8, wanted=100).read(100).tolist() == sizes


@settings(deadline=None, max_examples=50)
@given(any_sizes, lengths, seeds, st.none() | st.integers(1, 60), st.integers(0, 60))
def test_the_tokens_that_are_read_are_counted(
    sizes: list[int], length: int, seed: int, wanted: int | None, number: int
) -> None:
    """Whatever is wanted, the same text is available."""
    blocks = packed(sizes, length, seed, wanted)
    assert blocks.used().tolist() == sizes
    assert blocks.available == len(packed(sizes, length, seed))
    number = min(number, len(blocks))
    read = {int(token) for i in range(number) for token in blocks[i]}
    ends = np.cumsum(sizes)
    counted = [sum(end - n <= t < end for t in read) for n, end in zip(sizes, ends, strict=True)]
    repeated = np.array(counted) - blocks.read(number)
    assert (repeated >= 0).all()
    assert repeated.sum() < (length if sum(n % length for n in sizes) % length else 1)


def test_text_that_fills_no_block_is_refused() -> None:
    with pytest.raises(DataError, match=r"together have 8 tokens, fewer than a block of 9"):
        packed([3, 5], 9)


def test_tokens_that_are_not_learnt_come_with_their_block() -> None:
    sizes = [3, 9, 4]
    learnt = [tokens % 2 == 0 for _, tokens in documents_of_sizes(sizes)]
    blocks = packed(sizes, 8, learnt=learnt)
    assert blocks.marked
    for i in range(len(blocks)):
        marks = blocks.learnt(i)
        assert marks is not None
        assert marks.tolist() == (blocks[i] % 2 == 0).tolist()
