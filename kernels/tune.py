"""Searches launch parameters for `relation_kl/launch_table.json`, on this machine's device.

``python -m kernels.bench --tune`` calls it. It takes one shape class after the other. Several
processes compile the candidates into Triton's cache, and compare their results with those of the
chunked backend. Then each candidate that agrees is timed alone, and the fastest is written to the
table. A search that is stopped keeps its findings.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Literal

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from kernels.relation_kl import attention_kl, launch, relation_kl
from kernels.relation_kl.launch import Launch, ShapeClass

Run = Callable[[], object]

# Enough heads and tokens to fill a device. With fewer, small blocks win because there are more.
_HEADS = 32
# float32 multiplies many times slower, so fewer tokens suffice.
_TOKENS = {2: 4096, 4: 1024}
_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# The allowed difference from the chunked backend's result, as a fraction of its norm. That backend
# sums in another order and, in half precision, rounds other numbers in the backward.
_DISAGREEMENT = {2: 1e-2, 4: 1e-4}
# The largest own tile of one side; if both sides have more, no room is left for other tiles.
_MOST_TILE_BYTES = 2**15


def tune(head_sizes: Sequence[int], milliseconds: Callable[[Run], float]) -> int:
    """Times candidates of every kernel and writes the fastest under this device's class.

    Args:
        head_sizes: of `launch.HEAD_SIZES`.
        milliseconds: times a call on the device alone, because the host takes longer to launch
            these kernels than they run.
    """
    device = torch.device("cuda")
    table = json.loads(launch.TABLE_FILE.read_text(encoding="utf-8"))
    found = table.setdefault(launch.device_class(device), {})
    # Half precision first: most calls use it, and float32 takes longer to compile.
    shapes = [
        ShapeClass(kernel, head_size, element_bytes)
        for element_bytes, head_size, kernel in itertools.product(
            launch.ELEMENT_BYTES, head_sizes, launch.KERNELS
        )
    ]
    began = time.perf_counter()
    with _pool() as pool:
        for number, shape in enumerate(shapes):
            tried = candidates(shape, device)
            announce(f"{shape.key}: {len(tried)} candidates", number, len(shapes), began)
            # All candidates are compiled before the first is timed: the compilers would disturb it.
            usable = list(pool.map(_runs, [(shape, candidate) for candidate in tried]))
            run = _work(shape, _TOKENS[shape.element_bytes])
            times: dict[Launch, float] = {}
            for candidate in itertools.compress(tried, usable):
                with launch.overridden({shape.kernel: candidate}):
                    times[candidate] = milliseconds(run)
            if not times:
                continue
            best = min(times, key=times.__getitem__)
            before = f"{times[tried[0]]:.3f}" if tried[0] in times else "cannot run"
            print(f"{shape.key}: {best} {times[best]:.3f} ms (before: {before})", flush=True)
            found[shape.key] = [best.block_m, best.block_n, best.num_warps, best.num_stages]
            launch.TABLE_FILE.write_text(_text(table), encoding="utf-8")
    return 0


def announce(what: str, done: int, count: int, began: float) -> None:
    """Prints to stderr what comes next, and how long the rest will take at this pace.

    Args:
        began: `time.perf_counter()` before the first shape class.
    """
    spent = time.perf_counter() - began
    left = f", {spent / done * (count - done):.0f} s left" if done else ""
    print(f"[{done + 1}/{count}] {what}{left}", file=sys.stderr, flush=True)


def candidates(shape: ShapeClass, device: torch.device) -> list[Launch]:
    """Parameters to try: first the device's present ones, then tiles of a sensible size."""
    present = launch.lookup(shape, device)
    sides, stages = ((32, 64, 128), (2, 3)) if shape.element_bytes == 2 else ((16, 32, 64), (1, 2))
    found = [
        Launch(m, n, warps, count)
        for m, n, warps, count in itertools.product(sides, sides, (4, 8), stages)
        if n <= m and m * shape.head_size * shape.element_bytes <= _MOST_TILE_BYTES
    ]
    return list(dict.fromkeys([present, *found]))


def _pool() -> Executor:
    """Processes that compile. They start as work comes; each imports and starts CUDA once."""
    workers = max(1, min(12, (os.cpu_count() or 1) - 2))
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _runs(pair: tuple[ShapeClass, Launch]) -> bool:
    """Whether a candidate compiles, fits the device and gives the right numbers."""
    shape, candidate = pair
    try:
        expected = _work(shape, 256, "chunked")()
        with launch.overridden({shape.kernel: candidate}):
            found = _work(shape, 256)()
        torch.cuda.synchronize()
    except OutOfResources:
        return False
    except Exception as error:
        # Parameters that do not compile are no candidate. If the device itself is lost, all later
        # calls of this process fail too; then this raises.
        torch.cuda.synchronize()
        print(f"{shape.key}: {candidate} fails: {error!r:.300}", file=sys.stderr, flush=True)
        return False
    difference = float((found - expected).norm() / expected.norm())
    # This comparison is false for NaN, so NaN does not agree.
    if not difference <= _DISAGREEMENT[shape.element_bytes]:
        print(f"{shape.key}: {candidate} is off by {difference:.1e}", file=sys.stderr, flush=True)
        return False
    return True


def _work(
    shape: ShapeClass, tokens: int, backend: Literal["triton", "chunked"] = "triton"
) -> Callable[[], Tensor]:
    """A call that spends its time in the shape class's kernel, except for a fixed part.

    It returns the KL of the rows, or the gradient of their sum.

    Backward kernels run after their forward. A backward alone would follow the stream of a forward
    outside the graph, and could not be captured.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    size = (1, _HEADS, tokens, shape.head_size)
    x, y = (
        torch.randn(size, generator=generator, device="cuda").to(_DTYPES[shape.element_bytes])
        for _ in range(2)
    )
    # This mask hides nothing, but selects the general kernels (`hopper.supports`).
    real = torch.ones(1, tokens, dtype=torch.bool, device="cuda")

    def rows(x: Tensor) -> Tensor:
        if shape.kernel.startswith("self"):
            return relation_kl(x, y, key_mask=real, reduction="none", backend=backend)
        return attention_kl(x, x, y, y, key_mask=real, reduction="none", backend=backend)

    if shape.kernel.endswith("forward"):
        return lambda: rows(x)
    x.requires_grad_()
    return lambda: torch.autograd.grad(rows(x).sum(), x)[0]


def _text(table: dict[str, dict[str, list[int]]]) -> str:
    """The table as text, one shape class per line."""
    classes = []
    for device, shapes in table.items():
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in shapes.items()]
        classes.append(f"  {json.dumps(device)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(classes) + "\n}\n"
