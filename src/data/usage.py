"""How much of a corpus the blocks of each stream use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from src.data.mixing import MixedBlocks

if TYPE_CHECKING:
    from src.data.corpus import Corpus, TrainingBlocks

# Where classes of documents by length begin, in tokens.
_BOUNDS = (0, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)


@dataclass(frozen=True)
class SourceUse:
    """A source of a mixture: its share, blocks of its epoch, and blocks that the stage reads."""

    name: str
    share: float
    blocks: int
    read: int


@dataclass(frozen=True)
class StreamUse:
    """What a stream reads."""

    name: str  # STAGE/STREAM
    length: int  # tokens of a block
    blocks: int  # of an epoch, which uses as much of the text as whole and packed blocks can
    packed: int  # of these, blocks that are made of pieces of documents
    read: int  # blocks that the stage reads
    longest_first: bool  # whether the stage reads less than an epoch, and long documents first
    tokens_by_document: np.ndarray  # tokens of each training document in an epoch, int64
    read_by_document: np.ndarray  # of these, tokens that the stage reads, int64
    sources: tuple[SourceUse, ...] = ()  # the parts of a mixture

    @classmethod
    def of(cls, name: str, blocks: TrainingBlocks, read: int) -> StreamUse:
        """The use of a stream that reads so many of these blocks."""
        sources: tuple[SourceUse, ...] = ()
        if isinstance(blocks, MixedBlocks):
            counts = blocks.counts(read)
            sources = tuple(
                SourceUse(source, blocks.shares[source], part.available, counts[source])
                for source, part in blocks.parts.items()
            )
        sizes = (blocks.length, blocks.available, blocks.packable, read)
        longest_first = len(blocks) < blocks.available
        return cls(name, *sizes, longest_first, blocks.used(), blocks.read(read), sources)

    @property
    def tokens(self) -> int:
        """Tokens of the text in an epoch."""
        return int(self.tokens_by_document.sum())

    @property
    def tokens_read(self) -> int:
        """Of these, tokens that the stage reads."""
        return int(self.read_by_document.sum())


@dataclass(frozen=True)
class LengthClass:
    """Training documents of `least` tokens or more, below the next class.

    `used` are their tokens in an epoch of each stream, `read` those that its stage reads.
    """

    least: int
    documents: int
    tokens: int
    used: dict[str, int]
    read: dict[str, int]

    @property
    def label(self) -> str:
        """Such as `256 to 1,023`."""
        following = [bound for bound in _BOUNDS if bound > self.least]
        return f"{self.least:,} to {following[0] - 1:,}" if following else f"{self.least:,} or more"


@dataclass(frozen=True)
class TextUse:
    """How much of the training documents of each length each stream uses."""

    documents: int
    tokens: int
    held_out: int
    streams: tuple[StreamUse, ...]
    classes: tuple[LengthClass, ...]

    @classmethod
    def of(cls, corpus: Corpus, streams: Sequence[StreamUse]) -> TextUse:
        """The use of a corpus."""
        sizes = np.array([info.tokens for info in corpus.documents if info.split == "train"])
        place = np.searchsorted(_BOUNDS, sizes, side="right") - 1
        classes = []
        for i in np.unique(place).tolist():
            here = place == i
            used = {s.name: int(s.tokens_by_document[here].sum()) for s in streams}
            read = {s.name: int(s.read_by_document[here].sum()) for s in streams}
            counts = int(here.sum()), int(sizes[here].sum())
            classes.append(LengthClass(_BOUNDS[i], *counts, used, read))
        held_out = len(corpus.documents) - len(sizes)
        return cls(len(sizes), int(sizes.sum()), held_out, tuple(streams), tuple(classes))

    def record(self) -> dict[str, Any]:
        """For run.json."""
        streams = {
            s.name: {
                "length": s.length,
                "blocks": s.blocks,
                "packed_blocks": s.packed,
                "blocks_read": s.read,
                "used_tokens": s.tokens,
                "read_tokens": s.tokens_read,
                "sources": [asdict(source) for source in s.sources],
            }
            for s in self.streams
        }
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "held_out_documents": self.held_out,
            "streams": streams,
            "by_length": [asdict(c) for c in self.classes],
        }
