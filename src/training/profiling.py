"""Where a step's time goes: a trace of a few steps by torch's profiler, and a table of it.

The trace (`profile/STAGE.json.gz` in the run folder) opens in chrome://tracing or Perfetto. On a
GPU the table has the seconds of each kind of kernel, and the time in which no kernel ran.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from src.progress import widen

# Steps that run before the profile: kernels are compiled and graphs recorded in them.
WARM_UP = 5
PROFILED = 3

# The first pattern that a kernel's name matches says its kind.
_KINDS = (
    ("attention", r"sdpa|flash|fmha|attention|fusion::(compute_dot|convert_dq)"),
    ("relations", r"^(forward|backward|weigh|self_forward|self_backward|gather)\w*_kernel$"),
    ("matrix products", r"nvjet|gemm|cutlass|cublas|splitKreduce|aten::(add)?(b|m)+m$|linear"),
    ("norms, RoPE, gates (fused)", r"_rms_norm|_swiglu|_triton_rope|triton_(poi|red|per)_"),
    ("optimizer", r"adam|lamb|multi_tensor_apply"),
    ("between ranks", r"nccl|all_?reduce|all_?gather|reduce_scatter"),
    ("copies", r"memcpy|memset|copy|fill"),
)
_ELSE = "elementwise and the rest"
IDLE, WHOLE = "no kernel runs", "a step"


class StepProfile:
    """Profiles a few steps of a stage, and writes the trace when they are done.

    Args:
        first: number of the stage's first step in this process.
    """

    def __init__(self, file: Path, first: int, total: int, device: torch.device) -> None:
        self._file, self._device = file, device
        last = min(total, first + WARM_UP + PROFILED)
        self._steps = range(max(first, last - PROFILED), last)
        self._profiler: Any = None
        self._began = 0.0
        # Milliseconds a step by kind of work, once the steps are done; `IDLE` and `WHOLE` too.
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """A step runs inside the block."""
        if self._steps and step == self._steps[0]:
            self._wait()
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._began = time.perf_counter()
        yield
        if self._profiler is not None and step == self._steps[-1]:
            self._finish()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _finish(self) -> None:
        self._wait()
        seconds = (time.perf_counter() - self._began) / len(self._steps)
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self._file))
        console = widen(Console(file=sys.stdout), 100)
        for line in self._lines(profiler.events(), seconds):
            console.print(line, highlight=False)

    def _lines(self, events: Iterable[Any], seconds: float) -> Iterator[str]:
        cuda = self._device.type == "cuda"
        rows, busy = breakdown(events, steps=len(self._steps), cuda=cuda)
        self.milliseconds = {WHOLE: 1e3 * seconds} | {kind: ms for kind, (ms, _) in rows}
        yield f"profile of {len(self._steps)} steps: {1e3 * seconds:.1f} ms a step ({self._file})"
        for kind, (milliseconds, calls) in rows:
            share = milliseconds / (10 * seconds)
            yield f"  {kind:<28} {milliseconds:9.2f} ms {share:6.1f} %  {calls:7,.0f} calls"
        if cuda:
            idle = self.milliseconds[IDLE] = max(0.0, 1e3 * seconds - busy)
            yield f"  {IDLE:<28} {idle:9.2f} ms {idle / (10 * seconds):6.1f} %"


def breakdown(
    events: Iterable[Any], *, steps: int, cuda: bool
) -> tuple[list[tuple[str, tuple[float, float]]], float]:
    """Time and calls a step by kind of work, the longest first.

    Args:
        cuda: count kernels on the GPU, not operators on the CPU.

    Returns:
        (kind, (milliseconds, calls)) of each kind; and the milliseconds in which a kernel ran.
    """
    sums: dict[str, tuple[float, float]] = {}
    spans: list[tuple[float, float]] = []
    for event in events:
        on_gpu = event.device_type.name == "CUDA"
        if on_gpu != cuda or getattr(event, "is_user_annotation", False):
            continue
        microseconds = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
        kind = kind_of(event.name)
        before = sums.get(kind, (0.0, 0.0))
        sums[kind] = (before[0] + microseconds / 1e3 / steps, before[1] + 1 / steps)
        spans.append((event.time_range.start, event.time_range.end))
    return sorted(sums.items(), key=lambda row: -row[1][0]), _covered(spans) / 1e3 / steps


def kind_of(name: str) -> str:
    """The kind of work that a kernel or operator of this name does."""
    return next((kind for kind, words in _KINDS if re.search(words, name, re.I)), _ELSE)


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
