"""The training loop: stages of mixed streams. It knows no method by name.

Each optimizer step reads its blocks over all ranks, adds up the gradients with each block's share
of the step's tokens, clips and updates. The loss that is logged is the mean over all tokens of the
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed

from src.facts import ModelFacts
from src.objectives.base import Batch, Objective
from src.progress import meter
from src.schedule import MicroStep, Piece, StageConfig, StageSchedule, learning_rate

if TYPE_CHECKING:
    from src.data import Blocks
    from src.engine import Student, Teacher
    from src.launch import World


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: steps done in the stage, this one included.
        tokens: tokens read in the stage, this step's included.
        metrics: losses (`loss/...`), `lr`, `grad_norm` (before clipping), `tokens_per_second`.
    """

    step: int
    tokens: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class StageRun:
    """Everything a stage works with."""

    name: str
    stage: StageConfig
    schedule: StageSchedule
    blocks: Mapping[str, Blocks]
    objectives: Mapping[str, Objective]
    facts: ModelFacts
    teacher: Teacher | None
    student: Student
    world: World
    device: torch.device
    micro_batch: int
    seed: int

    def train(self, start: int, after_step: Callable[[StepRecord], None]) -> None:
        """Train from step `start` to the stage's end, calling `after_step` on every rank.

        Raises:
            FloatingPointError: the loss or the gradient norm is not finite.
        """
        total = self.schedule.steps
        with meter(self.name, total, done=start, quiet=not self.world.is_main) as progress:
            for step in range(start, total):
                record = self._step(step)
                after_step(record)
                progress.advance(note=f"loss {record.metrics['loss/total']:.4g}")

    def _step(self, step: int) -> StepRecord:
        began = time.perf_counter()
        # Dropout depends on the step and the rank alone, so a resumed run draws what this one did.
        torch.manual_seed(_mixed_seed(self.seed, self.name, step, self.world.rank))
        sums = _Sums()
        micro_steps = list(
            self.schedule.micro_steps(
                step,
                rank=self.world.rank,
                world_size=self.world.size,
                micro_batch=self.micro_batch,
            )
        )
        for number, micro in enumerate(micro_steps, start=1):
            self._micro_step(step, micro, sums, last=number == len(micro_steps))
        lr = learning_rate(self.stage, step, self.schedule.steps)
        grad_norm = self.student.step(lr)
        losses = sums.reduced(distribute=self.world.size > 1)
        seconds = time.perf_counter() - began
        tokens = self.schedule.tokens_at(step)
        if not np.isfinite(losses["loss/total"]) or not np.isfinite(grad_norm):
            raise FloatingPointError(
                f"stage {self.name}, step {step + 1}: loss {losses['loss/total']}, gradient norm "
                f"{grad_norm}: lower the stage's lr, or train in float32"
            )
        rates = {"lr": lr, "grad_norm": grad_norm, "tokens_per_second": tokens / seconds}
        return StepRecord(step + 1, self.schedule.tokens_before(step + 1), losses | rates)

    def _micro_step(self, step: int, micro: MicroStep, sums: _Sums, *, last: bool) -> None:
        stream = self.stage.streams[micro.stream]
        # A rank without a block of its own runs another's at weight 0: collectives need everyone.
        batch = self._batch(micro.pieces or (micro.stand_in,))
        tokens = len(micro.pieces) * micro.tokens
        share = tokens / self.schedule.tokens_at(step)
        needs = self.objectives[stream.objective].needs(self.facts)
        outputs = None
        # Without an engine of its own the teacher is the student's frozen part, and runs there.
        if needs.teacher and self.teacher is not None:
            outputs = self.teacher.outputs(batch, needs)
        loss, metrics = self.student.loss(batch, stream.objective, outputs)
        # DeepSpeed averages over ranks; shares already sum to one over them.
        self.student.backward(loss * (stream.weight * share * self.world.size), last=last)
        sums.add("loss/total", loss.detach() * stream.weight, share)
        for name, value in metrics.items():
            sums.add(f"loss/{name}", value, share)

    def _batch(self, pieces: tuple[Piece, ...]) -> Batch:
        rows = [self.blocks[p.stream][p.block][: p.tokens] for p in pieces]
        ids_bt = torch.from_numpy(np.stack(rows))
        return Batch(ids_bt.to(self.device))


class _Sums:
    """Weighted sums over a step's micro-steps and ranks, kept on the device until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._shares: dict[str, float] = {}

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a micro-step's value with its share of the step's tokens."""
        self._values[name] = self._values.get(name, 0.0) + value.float() * share
        self._shares[name] = self._shares.get(name, 0.0) + share

    def reduced(self, *, distribute: bool) -> dict[str, Any]:
        """Means over all ranks as plain numbers, lists for vectors.

        Each is the mean over the tokens that had it: a stream's own loss is not made smaller by the
        other streams. `loss/total` spans the step, so its shares add up to one.
        """
        values = list(self._values.values())
        shares = torch.tensor(list(self._shares.values()), device=values[0].device)
        flat = torch.cat([*(value.reshape(-1) for value in values), shares])
        if distribute:
            distributed.all_reduce(flat)
        numbers = flat.tolist()
        means: dict[str, Any] = {}
        start = 0
        for (name, value), share in zip(
            self._values.items(), numbers[len(numbers) - len(values) :], strict=True
        ):
            part = [number / share for number in numbers[start : start + value.numel()]]
            means[name] = part[0] if value.ndim == 0 else part
            start += value.numel()
        return means


def _mixed_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """A seed of its own for every stage, step and rank."""
    key = [seed, step, rank, *stage.encode()]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
