"""Training blocks: an endless, shuffled, random-access sequence cut from documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from src.data.documents import DataError
from src.data.hashing import mix64


class Blocks:
    """Blocks of exactly `length` tokens, none of which crosses from one document into another.

    A document gives `len(tokens) // length` blocks from its start; the remainder is dropped.
    `len(blocks)` is the number of blocks in an epoch. `blocks[i]` exists for every i >= 0: each
    epoch has its own order of all blocks, fixed by (seed, stream, epoch). Accesses leave no state,
    so a run that resumes at i, or a rank that reads a share of the blocks, sees the same blocks as
    an uninterrupted single process.

    Args:
        documents: (name, tokens) of the training documents, at least one.
        length: tokens in a block.
        seed: of the order.
        stream: a name; streams of different names have different orders.

    Raises:
        DataError: `length` is not positive, or no document is as long as a block.
    """

    def __init__(
        self, documents: Sequence[tuple[str, np.ndarray]], length: int, *, seed: int, stream: str
    ) -> None:
        if length < 1:
            raise DataError(f"block length must be at least 1 token, not {length}")
        self.length = length
        self.seed = seed
        self.stream = stream
        self._documents = [item for item in documents if len(item[1]) >= length]
        if not self._documents:
            raise DataError(_too_short(documents, length))
        counts = [len(tokens) // length for _, tokens in self._documents]
        self._ends = np.cumsum(counts)
        self._epoch, self._order = 0, self._permutation(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Block `index`: int64 [length]."""
        document, start = self._locate(index)
        return self._documents[document][1][start : start + self.length].astype(np.int64)

    def document(self, index: int) -> str:
        """The name of the document that block `index` was cut from."""
        return self._documents[self._locate(index)[0]][0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The first epoch."""
        return (self[index] for index in range(len(self)))

    def _locate(self, index: int) -> tuple[int, int]:
        """(document, first token) of a block."""
        if index < 0:
            raise IndexError(f"block index must not be negative, not {index}")
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        block = int(self._order[place])
        document = int(np.searchsorted(self._ends, block, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        return document, (block - before) * self.length

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy's generators are not used: their streams may change between versions, and a resumed
        # run must see the same order.
        name = f"{self.seed}/{self.stream}/{epoch}".encode()
        key = np.frombuffer(hashlib.sha256(name).digest()[:8], dtype="<u8")
        return np.argsort(mix64(mix64(np.arange(len(self))) ^ key), kind="stable")


def _too_short(documents: Sequence[tuple[str, np.ndarray]], length: int) -> str:
    name, longest = max(documents, key=lambda document: len(document[1]))
    return (
        f"no training document is {length} tokens long, and blocks never cross documents: the "
        f"longest, {name!r}, has {len(longest)}; choose shorter blocks, or data with longer "
        "documents"
    )
