"""The training loop of a stage. It knows no method by name.

An optimizer step reads its blocks over all ranks, adds up their gradients, each weighted by its
share of the step's tokens, clips and updates. The logged loss is the mean over the step's tokens.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed

from src.objectives.base import Batch, Objective, metric_prefixes
from src.progress import meter
from src.training.batches import Batches
from src.training.schedule import MicroStep, StageSchedule, learning_rate
from src.training.signals import Stopped
from src.training.watch import Watch

if TYPE_CHECKING:
    from src.training.engines import Engines
    from src.training.launch import World


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: steps done in the stage, this one included.
        tokens: tokens read in the stage, this step's included.
        metrics: losses (`loss/...`), `lr`, `grad_norm` (before clipping), `tokens_per_second`,
            and `skipped` or `spike` where the step was one (src/training/watch.py).
        documents: that were read, for such a step only.
        stops: whether the run ends after this step because of a signal, and is to be saved.
    """

    step: int
    tokens: int
    metrics: dict[str, Any]
    documents: tuple[str, ...] = ()
    stops: bool = False

    @property
    def skipped(self) -> bool:
        """Whether a number was not finite, so that the weights are as they were."""
        return "skipped" in self.metrics


@dataclass(frozen=True)
class StageRun:
    """A stage on this rank: what it trains, and on what.

    Attributes:
        batches: what this rank reads.
        micro_batch: blocks of a micro-step.
        max_skipped: steps in a row that may be skipped.
        watch: judges the numbers of each step.
    """

    batches: Batches
    engines: Engines
    world: World
    micro_batch: int
    max_skipped: int = 3
    watch: Watch = field(default_factory=Watch)

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.batches.name

    @property
    def schedule(self) -> StageSchedule:
        """Which rank reads which block at which step."""
        return self.batches.schedule

    def train(
        self,
        start: int,
        after_step: Callable[[StepRecord], None],
        saves_after: Callable[[int], bool] = lambda step: False,
        around: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext(),
        asked: Callable[[], int] = lambda: 0,
    ) -> None:
        """Train from step `start` to the stage's end, calling `after_step` on every rank.

        The numbers of a step are read while the next step runs, so that a GPU never waits for
        them. If the run is saved after a step, they are read at once.

        Args:
            saves_after: whether `after_step` saves the run at this step, counted from 1.
            around: entered around each step, counted from 0 (src/training/profiling.py).
            asked: the number of the signal that this rank got, or 0. All ranks then end after the
                same step, the one that is under way or the next.

        Raises:
            FloatingPointError: the loss or the gradient norm of `max_skipped` steps in a row was
                not finite. The weights are those from before these steps.
            Stopped: a rank got a signal.
        """
        total = self.schedule.steps
        in_a_row = 0
        with meter(self.name, total, done=start, quiet=not self.world.is_main) as progress:

            def finish(pending: _Pending, *, stops: bool = False) -> None:
                nonlocal in_a_row
                record = replace(self._record(pending), stops=stops)
                after_step(record)
                in_a_row = in_a_row + 1 if record.skipped else 0
                if in_a_row == self.max_skipped:
                    raise FloatingPointError(self._failure(record, in_a_row))
                progress.advance(note=f"loss {record.metrics['loss/total']:.4g}")

            waiting: _Pending | None = None
            for step in range(start, total):
                with around(step):
                    pending = self._step(step, asked)
                if waiting is not None:
                    finish(waiting)
                # Ranks agree through the numbers of the step before, which all have just read.
                together = waiting is not None and waiting.sums.asked
                stops = bool(asked()) if self.world.size == 1 else together
                waiting = pending
                if step + 1 == total or saves_after(step + 1) or stops:
                    finish(waiting, stops=stops)
                    waiting = None
                if stops:
                    raise Stopped(asked() or signal.SIGTERM)

    def _step(self, step: int, asked: Callable[[], int]) -> _Pending:
        clock = _Clock(self.batches.device)
        # Dropout depends only on the seed, stage, step and rank, so a resumed run draws the same.
        torch.manual_seed(_mixed_seed(self.batches.seed, self.name, step, self.world.rank))
        sums = _Sums()
        place = self.batches.place
        micro_steps = list(
            self.schedule.micro_steps(
                step, rank=place.reader, world_size=place.readers, micro_batch=self.micro_batch
            )
        )
        batch = self.batches.of(micro_steps[0], step)
        for number, micro in enumerate(micro_steps, start=1):
            # The next blocks are copied to the device while this one is computed.
            following = micro_steps[number : number + 1]
            ahead = self.batches.of(following[0], step) if following else None
            self._micro_step(step, micro, batch, sums, last=ahead is None)
            batch = ahead or batch
        lr = learning_rate(self.schedule.stage, step, self.schedule.steps)
        grad_norm = self.engines.student.step(lr)
        sums.reduce(distribute=self.world.size > 1, asked=asked() != 0)
        clock.stop()
        return _Pending(step, lr, grad_norm, sums, clock)

    def _record(self, pending: _Pending) -> StepRecord:
        step = pending.step
        losses, grad_norm = pending.sums.means(), float(pending.grad_norm)
        seconds = pending.clock.seconds()
        tokens = self.schedule.tokens_at(step)
        rates = {"lr": pending.lr, "grad_norm": grad_norm, "tokens_per_second": tokens / seconds}
        metrics = losses | rates
        flags = self.watch.flags(metrics)
        pieces, blocks = self.schedule.pieces(step) if flags else (), self.batches.blocks
        documents = dict.fromkeys(d for p in pieces for d in blocks[p.stream].documents(p.block))
        done = self.schedule.tokens_before(step + 1)
        return StepRecord(step + 1, done, metrics | flags, tuple(documents))

    def _failure(self, record: StepRecord, in_a_row: int) -> str:
        return (
            f"stage {self.name}, step {record.step}: {in_a_row} steps in a row gave no finite "
            f"numbers (loss {record.metrics['loss/total']}, gradient norm "
            f"{record.metrics['grad_norm']}) and were skipped: lower the stage's lr, or train in "
            "float32"
        )

    def _micro_step(
        self, step: int, micro: MicroStep, batch: Batch, sums: _Sums, *, last: bool
    ) -> None:
        stream, engines = self.schedule.stage.streams[micro.stream], self.engines
        tokens = len(micro.pieces) * micro.tokens
        share = tokens / self.schedule.tokens_at(step)
        # A teacher that shares the student's weights has no engine of its own.
        teach = None if engines.teacher is None else engines.teacher.outputs
        loss, metrics = engines.student.loss(batch, micro.stream, teach)
        # DeepSpeed takes the mean of gradients over ranks, and shares add up to one over the
        # readers: hence the factor. Ranks that share blocks each have a loss whose mean over them
        # is the blocks' loss.
        sums.add("loss/total", loss.detach() * stream.weight, share)
        scaled = loss * (stream.weight * share * self.batches.place.readers)
        # A loss that is not finite makes all gradients of its step so, also where its own are not.
        # Engines skip such a step. Otherwise the factor is exactly 1.
        engines.student.backward(scaled * sums.one_if_finite() if last else scaled, last=last)
        for name, value in metrics.items():
            sums.add(self._metric_name(micro.stream, name), value, share)

    @cached_property
    def _terms(self) -> dict[str, dict[str, Objective]]:
        """Objectives by stream and by their names in the config."""
        terms: dict[str, dict[str, Objective]] = {}
        for name, stream in self.schedule.stage.streams.items():
            objective = self.engines.objectives[name]
            terms[name] = {part: each for part, each, _ in objective.parts}
            terms[name] = terms[name] or {next(iter(stream.terms)): objective}
        return terms

    @cached_property
    def _prefixes(self) -> dict[tuple[str, str], str]:
        return metric_prefixes(self._terms, self.engines.facts)

    def _metric_name(self, stream: str, name: str) -> str:
        """The name in the log of a metric that a stream's objective reports."""
        term = next(iter(self._terms[stream]))
        if self.engines.objectives[stream].parts:
            term, _, name = name.partition("/")
        return f"loss/{self._prefixes[stream, term]}{name}"


class _Clock:
    """Seconds between two points in a device's work, measured without waiting."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = self._now()
        self._ended = self._began

    def stop(self) -> None:
        """Mark the second point."""
        self._ended = self._now()

    def seconds(self) -> float:
        """Seconds from the first point to the second; waits for the device to reach it."""
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
    """A step whose numbers have not been read."""

    step: int
    lr: float
    grad_norm: Tensor | float
    sums: _Sums
    clock: _Clock


class _Sums:
    """Sums over a step's micro-steps and ranks, weighted by tokens and kept on the device."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._shares: dict[str, float] = {}
        self._flat: Tensor | None = None
        self.asked = False  # whether a rank was asked to end, once `means` has been read

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a micro-step's value with its share of the step's tokens."""
        self._values[name] = self._values.get(name, 0.0) + value.float() * share
        self._shares[name] = self._shares.get(name, 0.0) + share

    def one_if_finite(self) -> Tensor:
        """1, or NaN if a loss of this rank so far is not finite; computed on the device."""
        return 1 + 0 * self._values["loss/total"]

    def reduce(self, *, distribute: bool, asked: bool = False) -> None:
        """Start to add up over all ranks, and with it how many were asked to end."""
        values = list(self._values.values())
        shares = torch.tensor([*self._shares.values(), float(asked)])
        device = values[0].device
        if device.type == "cuda":
            shares = shares.pin_memory().to(device, non_blocking=True)
        self._flat = torch.cat([*(value.reshape(-1) for value in values), shares])
        if distribute:
            distributed.all_reduce(self._flat)

    def means(self) -> dict[str, Any]:
        """Means over all ranks, numbers or lists of numbers; waits for the device.

        Each is the mean over the tokens of the streams that report it. `loss/total` is the mean
        over all tokens of the step.
        """
        values = list(self._values.values())
        assert self._flat is not None
        *numbers, asked = self._flat.tolist()
        self.asked = asked > 0
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
