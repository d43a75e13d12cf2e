"""Training blocks: an endless, shuffled, random-access sequence cut from documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from src.data.documents import DataError
from src.data.hashing import mix64


class Span(NamedTuple):
    """Consecutive tokens of one document."""

    document: int
    start: int
    tokens: int


class Blocks:
    """Blocks of exactly `length` tokens.

    A document gives `len(tokens) // length` whole blocks from its start. What is left of it, and
    shorter documents, are packed: they follow each other in packed blocks, and a piece that does
    not fit is continued in the next block. The last packed block is filled up from the first
    piece again. Without packing these tokens are not read. `segments` tells where one document ends
    and the next one begins.

    `len(blocks)` is the number of blocks in an epoch, of which `packed` are packed ones. `packable`
    is the number of packed blocks that the documents give, wanted or not. `blocks[i]` exists for
    every i >= 0: each epoch has its own order of all blocks, fixed by (seed, stream, epoch).
    Accesses leave no state, so a run that resumes at i, or a rank that reads a share of the blocks,
    sees the same blocks as an uninterrupted single process.

    Args:
        documents: (name, tokens) of the training documents, at least one.
        length: tokens in a block.
        seed, stream: of the order; streams of different names have different ones.
        packing: whether pieces shorter than a block are packed.
        wanted: how many blocks will be read. If given, pieces are packed from the longest on, and
            only into as many blocks as whole ones do not provide; the shortest ones may then be
            `available` and not read. None packs all of them.
        learnt: for each document, which tokens a next-token loss counts, bool [tokens]; None if it
            counts all.

    Raises:
        DataError: `length` is not positive, or the documents do not fill a block.
    """

    def __init__(
        self,
        documents: Sequence[tuple[str, np.ndarray]],
        length: int,
        *,
        seed: int,
        stream: str,
        packing: bool = False,
        wanted: int | None = None,
        learnt: Sequence[np.ndarray] | None = None,
    ) -> None:
        if length < 1:
            raise DataError(f"block length must be at least 1 token, not {length}")
        self.length = length
        self.seed = seed
        self.stream = stream
        self._documents = documents
        self._learnt = learnt
        self._sizes = np.array([len(tokens) for _, tokens in documents], dtype=np.int64)
        if self._sizes.max() < length and not packing:
            name, longest = max(documents, key=lambda document: len(document[1]))
            raise DataError(
                f"no training document is {length} tokens long, and blocks are not packed: the "
                f"longest, {name!r}, has {len(longest)}; choose shorter blocks, or data with "
                "longer documents"
            )
        if self._sizes.sum() < length:
            raise DataError(
                f"all training documents together have {self._sizes.sum()} tokens, fewer than a "
                f"block of {length}: choose shorter blocks, or more text"
            )
        blocks = self._sizes // length
        self._long = np.flatnonzero(blocks)
        self._ends = np.cumsum(blocks[self._long])
        self._whole = int(self._ends[-1]) if len(self._ends) else 0
        self._longest_first = wanted is not None
        self._pack(blocks * length, packing=packing, wanted=wanted)
        self._epoch, self._order = 0, self._permutation(0)

    def _pack(self, cut: np.ndarray, *, packing: bool, wanted: int | None) -> None:
        """Put the pieces that start at `cut`, one of each document, in a row."""
        rest = self._sizes - cut if packing else np.zeros_like(cut)
        pieces = np.flatnonzero(rest)
        if wanted is not None:
            pieces = pieces[np.argsort(-rest[pieces], kind="stable")]
        self._pieces, self._starts = pieces, cut[pieces]
        self._piece_ends = np.cumsum(rest[pieces])
        total = int(self._piece_ends[-1]) if len(pieces) else 0
        self.packed = self.packable = -(-total // self.length)
        if wanted is not None:
            self.packed = min(self.packed, max(0, wanted - self._whole))

    def __len__(self) -> int:
        return self._whole + self.packed

    def __getitem__(self, index: int) -> np.ndarray:
        """Block `index`: int64 [length]."""
        parts = [self._documents[d][1][start : start + n] for d, start, n in self._spans_at(index)]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(np.int64)

    def documents(self, index: int) -> list[str]:
        """The names of the documents in block `index`."""
        return [self._documents[d][0] for d, _, _ in self._spans_at(index)]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The first epoch."""
        return (self[index] for index in range(len(self)))

    @property
    def recipe(self) -> str:
        """What makes these blocks others than whole ones of the same documents; else empty."""
        order = ", the longest pieces first" if self._longest_first else ""
        return f"{self.packed} packed{order}" if self.packed else ""

    @property
    def marked(self) -> bool:
        """Whether blocks have several segments, or tokens that a loss does not count."""
        return self.packed > 0 or self._learnt is not None

    def segments(self, index: int) -> list[int]:
        """Tokens of each segment of a block; a segment is of one document."""
        return [span.tokens for span in self._spans_at(index)]

    def learnt(self, index: int) -> np.ndarray | None:
        """Which tokens of a block a next-token loss counts, bool [length]; None for all."""
        if self._learnt is None:
            return None
        spans = self._spans_at(index)
        return np.concatenate([self._learnt[d][start : start + n] for d, start, n in spans])

    @property
    def most_segments(self) -> int:
        """The largest number of segments of a block."""
        if not self.packed:
            return 1
        firsts = np.arange(self.packed, dtype=np.int64) * self.length
        lasts = np.minimum(firsts + self.length, self._piece_ends[-1]) - 1
        first, last = (np.searchsorted(self._piece_ends, x, side="right") for x in (firsts, lasts))
        final = len(self._spans(self._whole + self.packed - 1))
        return max(int((last - first).max()) + 1, final)

    @property
    def available(self) -> int:
        """Blocks that the documents give, whether they are wanted or not."""
        return self._whole + self.packable

    def used(self) -> np.ndarray:
        """Tokens of each document that are in the available blocks, int64 [documents]."""
        used = self._sizes // self.length * self.length
        used[self._pieces] += np.diff(self._piece_ends, prepend=0)
        return used

    def read(self, blocks: int) -> np.ndarray:
        """Tokens of each document that are in the first `blocks` blocks, int64 [documents].

        A token that is read twice counts once; those that fill the last packed block up do not.
        """
        if blocks >= self.available:
            return self.used()
        numbers = self._permutation(0)[:blocks]
        read = np.zeros_like(self._sizes)
        documents = np.searchsorted(self._ends, numbers[numbers < self._whole], side="right")
        np.add.at(read, self._long[documents], self.length)
        for number in numbers[numbers >= self._whole].tolist():
            left = int(self._piece_ends[-1]) - (number - self._whole) * self.length
            for document, _, tokens in self._spans(number):
                read[document] += min(tokens, left)
                left = max(0, left - tokens)
        return np.minimum(read, self.used())

    def _spans_at(self, index: int) -> list[Span]:
        if index < 0:
            raise IndexError(f"block index must not be negative, not {index}")
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return self._spans(int(self._order[place]))

    def _spans(self, block: int) -> list[Span]:
        """Of a block by its number: whole blocks come first, then packed ones."""
        if block < self._whole:
            long = int(np.searchsorted(self._ends, block, side="right"))
            before = int(self._ends[long - 1]) if long else 0
            start = (block - before) * self.length
            return [Span(int(self._long[long]), start, self.length)]
        spans: list[Span] = []
        place, left = (block - self._whole) * self.length, self.length
        while left:
            place %= int(self._piece_ends[-1])
            piece = int(np.searchsorted(self._piece_ends, place, side="right"))
            before = int(self._piece_ends[piece - 1]) if piece else 0
            tokens = min(int(self._piece_ends[piece]) - place, left)
            start = int(self._starts[piece]) + place - before
            spans.append(Span(int(self._pieces[piece]), start, tokens))
            place, left = place + tokens, left - tokens
        return spans

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy's generators are not used: their streams may change between versions, and a resumed
        # run must see the same order.
        name = f"{self.seed}/{self.stream}/{epoch}".encode()
        key = np.frombuffer(hashlib.sha256(name).digest()[:8], dtype="<u8")
        return np.argsort(mix64(mix64(np.arange(len(self))) ^ key), kind="stable")
