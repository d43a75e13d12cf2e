"""The training loop: stages of mixed streams. It knows no method by name.

Each optimizer step reads its blocks over all ranks, adds up the gradients with each block's share
of the step's tokens, clips and updates. The loss that is logged is the mean over all tokens of the
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Objective, metric_prefixes
from src.progress import meter
from src.training.positions import positions
from src.training.schedule import MicroStep, Piece, StageConfig, StageSchedule, learning_rate
from src.training.sequence import Place, next_tokens

if TYPE_CHECKING:
    from src.data import Blocks
    from src.training.engine.student import Student
    from src.training.engine.teacher import Teacher
    from src.training.launch import World


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
    """Everything a stage works with.

    Attributes:
        objectives: by stream.
        window: positions that a stream may skip to, the target length.
        sequence_parallel: ranks that share each block.
    """

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
    window: int
    sequence_parallel: int = 1

    @property
    def place(self) -> Place:
        """Which blocks this rank reads, and which part of them it runs."""
        return Place.of(self.world.rank, self.world.size, self.sequence_parallel)

    def train(
        self,
        start: int,
        after_step: Callable[[StepRecord], None],
        saves_after: Callable[[int], bool] = lambda step: False,
    ) -> None:
        """Train from step `start` to the stage's end, calling `after_step` on every rank.

        A step's numbers are read when the next step is under way, so that a GPU never waits for
        them; but at once where the run is saved after it.

        Args:
            start: steps that are done.
            after_step: gets each step's record, in order.
            saves_after: whether `after_step` saves the run at this step, counted from 1.

        Raises:
            FloatingPointError: the loss or the gradient norm is not finite.
        """
        total = self.schedule.steps
        with meter(self.name, total, done=start, quiet=not self.world.is_main) as progress:

            def finish(pending: _Pending) -> None:
                record = self._record(pending)
                after_step(record)
                progress.advance(note=f"loss {record.metrics['loss/total']:.4g}")

            waiting: _Pending | None = None
            for step in range(start, total):
                pending = self._step(step)
                if waiting is not None:
                    finish(waiting)
                waiting = pending
                if step + 1 == total or saves_after(step + 1):
                    finish(waiting)
                    waiting = None

    def _step(self, step: int) -> _Pending:
        clock = _Clock(self.device)
        # Dropout depends on the step and the rank alone, so a resumed run draws what this one did.
        torch.manual_seed(_mixed_seed(self.seed, self.name, step, self.world.rank))
        sums = _Sums()
        micro_steps = list(
            self.schedule.micro_steps(
                step,
                rank=self.place.reader,
                world_size=self.place.readers,
                micro_batch=self.micro_batch,
            )
        )
        batch = self._batch(micro_steps[0])
        for number, micro in enumerate(micro_steps, start=1):
            # The next blocks are on their way while this one is computed.
            ahead = None if number == len(micro_steps) else self._batch(micro_steps[number])
            self._micro_step(step, micro, batch, sums, last=ahead is None)
            batch = ahead or batch
        lr = learning_rate(self.stage, step, self.schedule.steps)
        grad_norm = self.student.step(lr)
        sums.reduce(distribute=self.world.size > 1)
        clock.stop()
        return _Pending(step, lr, grad_norm, sums, clock)

    def _record(self, pending: _Pending) -> StepRecord:
        step = pending.step
        losses, grad_norm = pending.sums.means(), float(pending.grad_norm)
        seconds = pending.clock.seconds()
        tokens = self.schedule.tokens_at(step)
        if not np.isfinite(losses["loss/total"]) or not np.isfinite(grad_norm):
            raise FloatingPointError(
                f"stage {self.name}, step {step + 1}: loss {losses['loss/total']}, gradient norm "
                f"{grad_norm}: lower the stage's lr, or train in float32"
            )
        rates = {"lr": pending.lr, "grad_norm": grad_norm, "tokens_per_second": tokens / seconds}
        return StepRecord(step + 1, self.schedule.tokens_before(step + 1), losses | rates)

    def _micro_step(
        self, step: int, micro: MicroStep, batch: Batch, sums: _Sums, *, last: bool
    ) -> None:
        stream = self.stage.streams[micro.stream]
        tokens = len(micro.pieces) * micro.tokens
        share = tokens / self.schedule.tokens_at(step)
        needs = self.objectives[micro.stream].needs(self.facts)
        outputs = None
        # Without an engine of its own the teacher is the student's frozen part, and runs there.
        if needs.teacher and self.teacher is not None:
            outputs = self.teacher.outputs(batch, needs)
        loss, metrics = self.student.loss(batch, micro.stream, outputs)
        # DeepSpeed averages over ranks; shares already sum to one over those that read blocks of
        # their own, and the mean of the losses of those that share blocks is the blocks'.
        self.student.backward(loss * (stream.weight * share * self.place.readers), last=last)
        sums.add("loss/total", loss.detach() * stream.weight, share)
        for name, value in metrics.items():
            sums.add(self._metric_name(micro.stream, name), value, share)

    @cached_property
    def _terms(self) -> dict[str, dict[str, Objective]]:
        """Objectives by stream and by their names in the config."""
        terms: dict[str, dict[str, Objective]] = {}
        for name, stream in self.stage.streams.items():
            objective = self.objectives[name]
            terms[name] = {part: each for part, each, _ in objective.parts}
            terms[name] = terms[name] or {next(iter(stream.terms)): objective}
        return terms

    @cached_property
    def _prefixes(self) -> dict[tuple[str, str], str]:
        return metric_prefixes(self._terms, self.facts)

    def _metric_name(self, stream: str, name: str) -> str:
        """The name in the log of a metric that a stream's objective reports."""
        term = next(iter(self._terms[stream]))
        if self.objectives[stream].parts:
            term, _, name = name.partition("/")
        return f"loss/{self._prefixes[stream, term]}{name}"

    def _batch(self, micro: MicroStep) -> Batch:
        # A rank without a block of its own runs another's at weight 0: collectives need everyone.
        pieces = micro.pieces or (micro.stand_in,)
        rows_bt = np.stack([self.blocks[p.stream][p.block][: p.tokens] for p in pieces])
        positions_bt = None
        if self.stage.streams[micro.stream].positions != "contiguous":
            positions_bt = self._on_device(np.stack([self._positions(p) for p in pieces]))
        if self.place.parts == 1:
            return Batch(self._on_device(rows_bt), positions_bt)
        return Batch(
            self._on_device(rows_bt),
            positions_bt,
            parts=self.place.parts,
            first=self.place.first(rows_bt.shape[1]),
            next_ids_bt=self._on_device(next_tokens(rows_bt)),
        )

    def _positions(self, piece: Piece) -> np.ndarray:
        stream = self.stage.streams[piece.stream]
        key = f"{self.seed}/{self.name}/{piece.stream}/{piece.block}"
        # A block that is cut short has the first of the positions that it would have whole.
        return positions(stream.positions, stream.length, self.window, key)[: piece.tokens]

    def _on_device(self, rows_bt: np.ndarray) -> Tensor:
        """This rank's part of whole blocks' tokens."""
        stacked = torch.from_numpy(np.ascontiguousarray(self.place.cut(rows_bt)))
        if self.device.type == "cuda":
            # From pinned memory the copy runs beside the computation.
            stacked = stacked.pin_memory()
        return stacked.to(self.device, non_blocking=True)


class _Clock:
    """Seconds between two points of a device's work, without waiting for either."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._now()
        self._ended = self._began

    def stop(self) -> None:
        """The second point is here."""
        self._ended = self._now()

    def seconds(self) -> float:
        """Seconds from the first point to the second; waits for the device to get there."""
        if isinstance(self._ended, float):
            assert isinstance(self._began, float)
            return self._ended - self._began
        self._ended.synchronize()
        return self._began.elapsed_time(self._ended) / 1000

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class _Pending:
    """A step whose numbers are not read yet."""

    step: int
    lr: float
    grad_norm: Tensor | float
    sums: _Sums
    clock: _Clock


class _Sums:
    """Weighted sums over a step's micro-steps and ranks, kept on the device until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._shares: dict[str, float] = {}
        self._flat: Tensor | None = None

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a micro-step's value with its share of the step's tokens."""
        self._values[name] = self._values.get(name, 0.0) + value.float() * share
        self._shares[name] = self._shares.get(name, 0.0) + share

    def reduce(self, *, distribute: bool) -> None:
        """Add up over all ranks, without waiting for it."""
        values = list(self._values.values())
        shares = torch.tensor(list(self._shares.values()))
        device = values[0].device
        if device.type == "cuda":
            shares = shares.pin_memory().to(device, non_blocking=True)
        self._flat = torch.cat([*(value.reshape(-1) for value in values), shares])
        if distribute:
            distributed.all_reduce(self._flat)

    def means(self) -> dict[str, Any]:
        """Means over all ranks as plain numbers, lists for vectors; waits for the device.

        Each is the mean over the tokens that had it: a stream's own loss is not made smaller by the
        other streams. `loss/total` spans the step, so its shares add up to one.
        """
        values = list(self._values.values())
        assert self._flat is not None
        numbers = self._flat.tolist()
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
