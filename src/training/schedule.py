"""Which rank reads which blocks at which optimizer step: pure arithmetic.

A stage is a mixture of streams. A slot is `batch_size` blocks of one stream. Slots follow a fixed
interleaved pattern, in which each stream has its share. An optimizer step reads slots up to its
number of tokens. The last step ends on the stage's exact token, if need be with a shorter block.
Everything is a function of the step's number, so a resumed run continues at the exact next block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, NamedTuple

from pydantic import Field

from src.models.adapters import Parameters
from src.models.config import MOST_LENGTH, PositiveFloat, PositiveInt, Rate, Tokens
from src.training.positions import Positions
from src.training.repeats import Repeats

# A block of a single token predicts nothing and has nothing to attend to.
BlockLength = Annotated[int, Field(gt=1, le=MOST_LENGTH)]
# A step's blocks are listed one by one.
MOST_BLOCKS = 2**17
Share = Annotated[int, Field(gt=0, le=10_000)]
LossWeight = Annotated[float, Field(ge=1e-9, le=1e9)]


@dataclass(frozen=True)
class StreamConfig:
    """Blocks of one length with one objective.

    Attributes:
        objective: a name from `objective.terms`, or several names with weights, which are summed.
        length: tokens of a block.
        batch_size: blocks of a slot, over all ranks together. If null, the stage's `slot_tokens`
            give it; without them it is 1.
        share: slots of this stream in each turn of the mixture.
        positions: of the student's tokens, up to the target length (src/training/positions.py).
            The teacher's positions are contiguous.
        repeats: passages that occur in a block again (src/training/repeats.py); null for none.
    """

    objective: str | Annotated[dict[str, PositiveFloat], Field(min_length=1)]
    length: BlockLength
    batch_size: PositiveInt | None = None
    share: Share = 1
    weight: LossWeight = 1.0
    positions: Positions = "contiguous"
    repeats: Repeats | None = None

    @property
    def terms(self) -> dict[str, float]:
        """Its objectives by name, with their weights."""
        return {self.objective: 1.0} if isinstance(self.objective, str) else self.objective

    @property
    def blocks(self) -> int:
        """Blocks of one slot."""
        return self.batch_size or 1

    @property
    def slot_tokens(self) -> int:
        """Tokens of one slot."""
        return self.length * self.blocks


@dataclass(frozen=True)
class StepSize:
    """Tokens of an optimizer step and of a slot, for stages with at least `from_tokens` tokens."""

    from_tokens: PositiveInt
    tokens_per_step: PositiveInt
    slot_tokens: PositiveInt | None = None


@dataclass(frozen=True)
class StageConfig:
    """A mixture of streams, trained with one set of parameters up to an exact number of tokens.

    The number of micro-steps that each rank accumulates follows from the tokens of a step. The
    learning rate warms up linearly over `warmup_steps`, from above 0 in the first step, and then
    follows a cosine from `lr` to `final_lr_fraction * lr`.

    Attributes:
        tokens: of the stage; a run's `budget` replaces it (src/settings/budget.py).
        tokens_per_step: tokens of an optimizer step; if null, `step_sizes` gives them.
        step_sizes: step sizes by the stage's tokens, so that a small budget still has many steps.
        slot_tokens: tokens of each stream's slot; they give each `batch_size` that is null. If
            null, `step_sizes` gives them, by `tokens_per_step` if that is set and else by `tokens`.

    Raises:
        ValueError: a step is not a whole number of slots or turns, or a stream's blocks do not
            fill a slot.
    """

    tokens: Tokens
    tokens_per_step: Tokens | None
    lr: Rate
    warmup_steps: Annotated[int, Field(ge=0)]
    final_lr_fraction: Annotated[float, Field(ge=0, le=1)]
    parameters: Parameters
    streams: Annotated[dict[str, StreamConfig], Field(min_length=1)]
    slot_tokens: PositiveInt | None = None
    step_sizes: tuple[StepSize, ...] = ()

    def __post_init__(self) -> None:
        if self.slot_tokens is None:
            object.__setattr__(self, "slot_tokens", self._slots_of_given_steps())
        if self.slot_tokens is not None:
            object.__setattr__(self, "streams", _filled(self.streams, self.slot_tokens))
        if self.tokens_per_step is None:
            if not self.step_sizes:
                raise ValueError("tokens_per_step is null and step_sizes is empty: give one")
            return
        shortest = min(s.length for s in self.streams.values())
        most = max(self.tokens_per_step, max(s.slot_tokens for s in self.streams.values()))
        if most // shortest > MOST_BLOCKS:
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step}: a step of {most // shortest:,} blocks of "
                f"{shortest} tokens; give at most {MOST_BLOCKS:,} blocks"
            )
        slots = [s.slot_tokens for s in self.streams.values()]
        turn = sum(s.slot_tokens * s.share for s in self.streams.values())
        equal = len(set(slots)) == 1
        unit = slots[0] if equal else turn
        if self.tokens_per_step % unit:
            what = "one turn of the mixture"
            if equal:
                what = "a slot (length x batch_size" + (
                    ")" if self.slot_tokens is None else f", by slot_tokens={self.slot_tokens})"
                )
            below = self.tokens_per_step // unit * unit
            above = below + unit
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step} is not a multiple of {unit}, the tokens "
                f"of {what}: give {f'{below} or ' if below else ''}{above}"
                f"{'' if equal else ', or slot_tokens for slots of equal tokens'}"
            )

    def _slots_of_given_steps(self) -> int | None:
        """Tokens of a slot, from `step_sizes`, if `tokens_per_step` is set and they are needed.

        The largest step size up to `tokens_per_step` gives them, or else the smallest step size. So
        a mixture keeps the proportions that slots of equal tokens have.
        """
        undecided = any(stream.batch_size is None for stream in self.streams.values())
        if self.tokens_per_step is None or not self.step_sizes or not undecided:
            return None
        by_tokens = sorted(self.step_sizes, key=lambda size: size.tokens_per_step)
        fitting = [size for size in by_tokens if size.tokens_per_step <= self.tokens_per_step]
        return (fitting[-1] if fitting else by_tokens[0]).slot_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of a full optimizer step, once `of_size` has decided them."""
        assert self.tokens_per_step is not None, "of_size comes first"
        return self.tokens_per_step

    def at_once(self, stream: str, micro_batch: int) -> int:
        """The largest number of a stream's blocks in one rank's micro-step.

        It is `micro_batch` for the stage's longest stream. Shorter streams have as many blocks as
        fit into the same tokens.
        """
        longest = max(s.length for s in self.streams.values())
        return micro_batch * longest // self.streams[stream].length

    def of_size(self, tokens: int) -> StageConfig:
        """The stage with this many tokens, which decide the sizes that are null.

        Raises:
            ValueError: `step_sizes` begins at more tokens; or the sizes contradict each other.
        """
        if self.tokens_per_step is not None:
            return replace(self, tokens=tokens)
        sizes = [size for size in self.step_sizes if size.from_tokens <= tokens]
        if not sizes:
            least = min(size.from_tokens for size in self.step_sizes)
            raise ValueError(
                f"tokens={tokens}: step_sizes begins at {least} tokens; give tokens_per_step"
            )
        size = max(sizes, key=lambda size: size.from_tokens)
        return replace(
            self,
            tokens=tokens,
            tokens_per_step=size.tokens_per_step,
            slot_tokens=self.slot_tokens or size.slot_tokens,
        )


def _filled(streams: dict[str, StreamConfig], slot_tokens: int) -> dict[str, StreamConfig]:
    """Set each stream's batch size so that its slot has `slot_tokens` tokens."""
    filled: dict[str, StreamConfig] = {}
    for name, stream in streams.items():
        blocks, rest = divmod(slot_tokens, stream.length)
        if rest or stream.batch_size not in (None, blocks):
            size = "" if stream.batch_size is None else f" x batch_size={stream.batch_size}"
            raise ValueError(
                f"streams.{name}.length={stream.length}{size} does not make slot_tokens="
                f"{slot_tokens}: give a length that divides it, and batch_size=null"
            )
        filled[name] = replace(stream, batch_size=blocks)
    return filled


class Piece(NamedTuple):
    """A block to read: its stream, its index in the stream, and how many tokens of it are used."""

    stream: str
    block: int
    tokens: int


class MicroStep(NamedTuple):
    """One forward and backward pass of one rank.

    Attributes:
        tokens: tokens of each block, equal on all ranks.
        stand_in: a block to run at weight 0 if `pieces` is empty, as collectives need every rank.
    """

    stream: str
    tokens: int
    pieces: tuple[Piece, ...]
    stand_in: Piece


class StageSchedule:
    """The steps of a stage.

    Raises:
        ValueError: the stage would end on a block of a single token, which predicts nothing.
    """

    def __init__(self, stage: StageConfig) -> None:
        self.stage = stage
        self._pattern = _interleave({name: s.share for name, s in stage.streams.items()})
        self.steps = -(-stage.tokens // stage.step_tokens)
        lengths = {s.length for s in stage.streams.values()}
        if any(p.tokens == 1 < min(lengths) for p in self.pieces(self.steps - 1)):
            raise ValueError(
                f"tokens={stage.tokens} ends on a block of a single token: give "
                f"{stage.tokens - 1} or {stage.tokens + 1}"
            )

    def tokens_at(self, step: int) -> int:
        """Tokens of one optimizer step; the last step may have fewer than the others."""
        return min(self.stage.step_tokens, self.stage.tokens - step * self.stage.step_tokens)

    def tokens_before(self, step: int) -> int:
        """Tokens read before a step."""
        return min(step * self.stage.step_tokens, self.stage.tokens)

    def pieces(self, step: int) -> list[Piece]:
        """All blocks of a step over all ranks, in order."""
        left = self.tokens_at(step)
        taken: list[Piece] = []
        slot = self._first_slot(step)
        while left > 0:
            for piece in self._slot(slot):
                if left <= 0:
                    break
                taken.append(piece._replace(tokens=min(piece.tokens, left)))
                left -= taken[-1].tokens
            slot += 1
        return taken

    def micro_steps(
        self, step: int, *, rank: int, world_size: int, micro_batch: int
    ) -> Iterator[MicroStep]:
        """One rank's micro-steps in a step.

        Consecutive blocks of the same stream and length form micro-steps of at most
        `world_size * StageConfig.at_once(...)` blocks, which the ranks take in turn.
        """
        for (stream, tokens), group in groupby(
            self.pieces(step), key=lambda p: (p.stream, p.tokens)
        ):
            blocks = list(group)
            width = world_size * self.stage.at_once(stream, micro_batch)
            for start in range(0, len(blocks), width):
                chunk = blocks[start : start + width]
                yield MicroStep(stream, tokens, tuple(chunk[rank::world_size]), chunk[0])

    def accumulation(self, *, world_size: int, micro_batch: int) -> int:
        """Micro-steps that each rank accumulates in a full step."""
        steps = self.micro_steps(0, rank=0, world_size=world_size, micro_batch=micro_batch)
        return sum(1 for _ in steps)

    def blocks_read(self) -> dict[str, int]:
        """Number of blocks that the stage reads of each stream; the last may be cut short."""
        read = self._blocks_before(self.steps - 1)
        for piece in self.pieces(self.steps - 1):
            read[piece.stream] += 1
        return read

    def tokens_read(self) -> dict[str, int]:
        """Tokens of each stream over the whole stage; they add up to the stage's tokens."""
        before = self._blocks_before(self.steps - 1)
        tokens = {name: n * self.stage.streams[name].length for name, n in before.items()}
        for piece in self.pieces(self.steps - 1):
            tokens[piece.stream] += piece.tokens
        return tokens

    def _blocks_before(self, step: int) -> dict[str, int]:
        turns, rest = divmod(self._first_slot(step), len(self._pattern))
        return {
            name: (turns * stream.share + self._pattern[:rest].count(name)) * stream.blocks
            for name, stream in self.stage.streams.items()
        }

    def _first_slot(self, step: int) -> int:
        """The number of slots before a step. A step is a whole number of slots or of turns."""
        slots = {s.slot_tokens for s in self.stage.streams.values()}
        if len(slots) == 1:
            return step * self.stage.step_tokens // slots.pop()
        turn = sum(s.slot_tokens * s.share for s in self.stage.streams.values())
        return step * self.stage.step_tokens // turn * len(self._pattern)

    def _slot(self, slot: int) -> Iterator[Piece]:
        turn, place = divmod(slot, len(self._pattern))
        name = self._pattern[place]
        stream = self.stage.streams[name]
        earlier = turn * stream.share + self._pattern[:place].count(name)
        for i in range(stream.blocks):
            yield Piece(name, earlier * stream.blocks + i, stream.length)


def _interleave(shares: dict[str, int]) -> list[str]:
    """One turn of the mixture, with each stream spread evenly (smooth weighted round robin)."""
    total = sum(shares.values())
    credit = dict.fromkeys(shares, 0)
    pattern: list[str] = []
    for _ in range(total):
        for name, share in shares.items():
            credit[name] += share
        chosen = max(shares, key=lambda name: credit[name])
        credit[chosen] -= total
        pattern.append(chosen)
    return pattern


def learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up from above 0, then a cosine to the final fraction."""
    if step < stage.warmup_steps:
        return stage.lr * (step + 1) / stage.warmup_steps
    progress = (step - stage.warmup_steps) / max(1, steps - 1 - stage.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return stage.lr * (stage.final_lr_fraction + (1 - stage.final_lr_fraction) * cosine)
