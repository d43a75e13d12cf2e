"""From the blocks of a micro-step to tensors: tokens, positions, and where documents end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from src.data.corpus import TrainingBlocks
from src.objectives.base import Batch, Segments
from src.training import positions, sequence
from src.training.repeats import repeated
from src.training.schedule import MicroStep, Piece, StageSchedule
from src.training.sequence import Place


@dataclass(frozen=True)
class Batches:
    """The batches of a stage on one rank.

    Attributes:
        place: which part of each block this rank runs.
        window: number of positions that streams may skip in.
    """

    name: str
    schedule: StageSchedule
    blocks: Mapping[str, TrainingBlocks]
    place: Place
    device: torch.device
    seed: int
    window: int
    _shares: dict[tuple[str, int], float] = field(default_factory=dict, init=False)

    def of(self, micro: MicroStep, step: int) -> Batch:
        """The batch of a micro-step of optimizer step `step`."""
        # A rank without a block runs another rank's at weight 0, as collectives need every rank.
        pieces = micro.pieces or (micro.stand_in,)
        blocks = self.blocks[micro.stream]
        rows_bt = np.stack([self.tokens(piece) for piece in pieces])
        if isinstance(blocks, TrainingBlocks) and blocks.marked:
            return self._marked(blocks, pieces, rows_bt, step)
        positions_bt = None
        if self._skips(micro.stream):
            segments = [[self.schedule.stage.streams[micro.stream].length]] * len(pieces)
            positions_bt = self._part(self._positions(pieces, segments))
        if self.place.parts == 1:
            return Batch(self._part(rows_bt), positions_bt)
        return Batch(
            self._part(rows_bt),
            positions_bt,
            parts=self.place.parts,
            first=self.place.first(rows_bt.shape[1]),
            next_ids_bt=self._part(sequence.next_tokens(rows_bt)),
        )

    def tokens(self, piece: Piece) -> np.ndarray:
        """What is read of a block, with the stream's repeats, int64 [t]."""
        tokens_t = self.blocks[piece.stream][piece.block]
        repeats = self.schedule.stage.streams[piece.stream].repeats
        if repeats is not None:
            ends = np.cumsum(self._segments(piece))[:-1]
            key = f"{self._key(piece)}/repeats"
            # Documents of a packed block see nothing of each other.
            tokens_t = np.concatenate(
                [
                    repeated(document_t, repeats, f"{key}/{n}")
                    for n, document_t in enumerate(np.split(tokens_t, ends))
                ]
            )
        # A block that is cut short has the first of the whole block's repeats.
        return tokens_t[: piece.tokens]

    def _segments(self, piece: Piece) -> list[int]:
        """Tokens of each document of a whole block."""
        blocks = self.blocks[piece.stream]
        if isinstance(blocks, TrainingBlocks) and blocks.marked:
            return blocks.segments(piece.block)
        return [self.schedule.stage.streams[piece.stream].length]

    def _key(self, piece: Piece) -> str:
        return f"{self.seed}/{self.name}/{piece.stream}/{piece.block}"

    def _marked(
        self, blocks: TrainingBlocks, pieces: Sequence[Piece], rows_bt: np.ndarray, step: int
    ) -> Batch:
        """A batch of blocks with several documents, or with tokens that are not learnt."""
        stream, tokens = pieces[0].stream, rows_bt.shape[1]
        segments = [sequence.cut_segments(blocks.segments(p.block), p.tokens) for p in pieces]
        ids_bt = np.stack([sequence.segment_ids(sizes) for sizes in segments])
        inside_bt = np.stack([np.concatenate([np.arange(n) for n in sizes]) for sizes in segments])
        skipped_bt = self._positions(pieces, segments) if self._skips(stream) else None
        # A rank that runs a part of each block predicts an equal share of the blocks' tokens.
        predicted = self._predicted_share(stream, step) * rows_bt.size / self.place.parts
        return Batch(
            self._part(rows_bt),
            None if skipped_bt is None else self._part(skipped_bt),
            parts=self.place.parts,
            first=self.place.first(tokens),
            next_ids_bt=self._part(sequence.next_tokens(rows_bt, ids_bt, _learnt(blocks, pieces))),
            segments=Segments(
                self._on_device(ids_bt),
                self._part(inside_bt.astype(np.int64)),
                self._on_device(
                    sequence.segment_starts(segments, len(pieces) * blocks.most_segments)
                ),
            )
            if blocks.most_segments > 1
            else None,
            predicted=self._on_device(np.array(predicted)),
        )

    def _predicted_share(self, stream: str, step: int) -> float:
        """Share of the stream's tokens in a step, over all ranks, that have a next token."""
        if (stream, step) not in self._shares:
            self._shares.clear()
            self._shares[stream, step] = self._count_predicted(stream, step)
        return self._shares[stream, step]

    def _count_predicted(self, stream: str, step: int) -> float:
        blocks = self.blocks[stream]
        pieces = [piece for piece in self.schedule.pieces(step) if piece.stream == stream]
        predicted = 0
        for piece in pieces:
            segments = sequence.cut_segments(blocks.segments(piece.block), piece.tokens)
            learnt_bt = _learnt(blocks, [piece])
            if learnt_bt is None:
                predicted += piece.tokens - len(segments)
            else:
                ids_bt = sequence.segment_ids(segments)[None]
                following_bt = sequence.next_tokens(np.zeros_like(ids_bt), ids_bt, learnt_bt)
                predicted += int((following_bt != sequence.NOTHING).sum())
        # Where nothing is to be learnt, the loss is 0 and not 0 / 0.
        return max(predicted, 1) / sum(piece.tokens for piece in pieces)

    def _skips(self, stream: str) -> bool:
        return self.schedule.stage.streams[stream].positions != "contiguous"

    def _positions(self, pieces: Sequence[Piece], segments: Sequence[Sequence[int]]) -> np.ndarray:
        """The student's positions, [b, t]. They begin anew with each document."""
        kind = self.schedule.stage.streams[pieces[0].stream].positions
        rows: list[np.ndarray] = []
        for piece, sizes in zip(pieces, segments, strict=True):
            key = self._key(piece)
            keys = [key] if len(sizes) == 1 else [f"{key}/{n}" for n in range(len(sizes))]
            parts = [
                positions.positions(kind, size, self.window, own)
                if size >= positions.SHORTEST
                else np.arange(size, dtype=np.int64)
                for size, own in zip(sizes, keys, strict=True)
            ]
            # A block that is cut short gets the first of the whole block's positions.
            rows.append(np.concatenate(parts)[: piece.tokens])
        return np.stack(rows)

    def _part(self, rows_bt: np.ndarray) -> Tensor:
        """This rank's part of whole blocks, on the device."""
        return self._on_device(self.place.cut(rows_bt))

    def _on_device(self, values: np.ndarray) -> Tensor:
        stacked = torch.from_numpy(np.asarray(values, order="C"))
        if self.device.type == "cuda":
            # Copies from pinned memory run in parallel with the computation.
            stacked = stacked.pin_memory()
        return stacked.to(self.device, non_blocking=True)


def _learnt(blocks: TrainingBlocks, pieces: Sequence[Piece]) -> np.ndarray | None:
    """Which tokens are to be learnt, bool [b, t]; None for all."""
    rows = [blocks.learnt(piece.block) for piece in pieces]
    kept = [row[: p.tokens] for row, p in zip(rows, pieces, strict=True) if row is not None]
    return np.stack(kept) if kept else None
