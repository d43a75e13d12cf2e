"""How a teacher reads blocks that are longer than its window: in chunks that overlap by half.

Each chunk's earlier half is context for its later half, which is kept, so every token but those of
the first chunk has been read after at least half a chunk. Positions run on from chunk to chunk.
RoPE depends on their differences alone, so a chunk is read as if it stood at the start, and queries
and keys of neighbouring chunks fit together.

Shapes: b batch, t tokens of a block, n chunks of a block, c tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """The chunks of blocks.

    Attributes:
        size: tokens of a chunk, even; None for blocks that are read whole.
    """

    tokens: int
    size: int | None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First token of each chunk; the last chunk ends with the block."""
        if self.size is None or self.tokens <= self.size:
            return (0,)
        return (*range(0, self.tokens - self.size, self.size // 2), self.tokens - self.size)

    @property
    def read(self) -> int:
        """Tokens that are read of a block, those read twice counted twice."""
        return len(self.starts) * self._length

    @property
    def pairs(self) -> int:
        """Squares of the chunks' lengths, added up: twice the pairs of causal attention."""
        return len(self.starts) * self._length**2

    def cut(self, x_bt: Tensor) -> Tensor:
        """The chunks of each block, [b n, c]."""
        if len(self.starts) == 1:
            return x_bt
        import torch

        return torch.stack([x_bt[:, s : s + self._length] for s in self.starts], 1).flatten(0, 1)

    def joined(self, x: Tensor, axis: int) -> Tensor:
        """Blocks from chunks: [b n, ..., c, ...] to [b, ..., t, ...], with tokens on `axis`."""
        if len(self.starts) == 1:
            return x
        import torch

        by_chunk = x.unflatten(0, (-1, len(self.starts))).unbind(1)
        kept, end = [], 0
        for part, start in zip(by_chunk, self.starts, strict=True):
            kept.append(part.narrow(axis, end - start, start + self._length - end))
            end = start + self._length
        return torch.cat(kept, axis)

    @property
    def _length(self) -> int:
        return self.tokens if len(self.starts) == 1 else self.size or self.tokens
