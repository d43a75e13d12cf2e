"""Parts of the Hopper kernels, each timed by itself, beside flash SDPA; one H100 or H200.

    python -m benchmarks.kernel_parts

Prints a JSON row a line. `python -m kernels.bench` measures what a user calls; this one says where
the time goes: the forward kernel, the pass that does extreme rows again, upstream weights, the
backward kernel. Times are medians of replayed CUDA graphs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.bench import Bench, Report
from kernels.relation_kl import hopper, relation_kl
from kernels.relation_kl import triton as backend

SHAPES = ((1, 32, 4096, 128), (1, 9, 8192, 64), (1, 32, 8192, 128), (1, 32, 32768, 128))


def main() -> None:
    """Measures and prints."""
    bench = Bench(0.5, None, Report(Path("kernel_parts.json"), "", ""))
    print(json.dumps({"device": torch.cuda.get_device_name(), "matmul_tflops": bench.rate / 1e12}))
    for shape in SHAPES:
        print(json.dumps({"shape": shape, **milliseconds(bench, shape)}), flush=True)


def milliseconds(bench: Bench, shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Of each part, and what fraction of the floor the two kernels reach."""
    student, teacher, upstream = (torch.randn(shape, device="cuda").bfloat16() for _ in range(3))
    scales = [shape[3] ** -0.5]
    rows = backend._empty_rows([student])
    call = backend._Call.of([student], [teacher], None, None, True, None, False)
    relations = backend._relations([student], [teacher], [student], scales, scales)
    ones = torch.ones(1, device="cuda").expand(shape[:3])
    gradient = torch.empty_like(student)
    x, q, k, v = (torch.randn_like(student).requires_grad_() for _ in range(4))

    def forward() -> None:
        hopper.forward([student], [teacher], scales, scales, rows)

    def general(redo: bool) -> None:
        call.launch(backend.self_forward_kernel, "self_forward", relations, rows, redo)

    def attention() -> object:
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, (q, k, v), upstream)

    forward()
    weights, units = backend._weights(ones, list(rows[1:]), shape[1], student.dtype)
    parts: dict[str, Callable[[], object]] = {
        "forward": forward,
        "again": lambda: general(True),
        "general_forward": lambda: general(False),
        "weights": lambda: backend._weights(ones, list(rows[1:]), shape[1], student.dtype),
        "backward": lambda: hopper.backward(
            [student], [teacher], scales, scales, weights, units, [gradient]
        ),
        "whole": lambda: torch.autograd.grad(relation_kl(x, teacher, backend="triton"), x),
        "sdpa": attention,
    }
    spent = {name: bench.milliseconds(part) for name, part in parts.items()}
    unit = math.prod(shape) * shape[2] / bench.rate * 1e3
    spent["forward_of_floor"] = 2 * unit / spent["forward"]
    spent["backward_of_floor"] = 4 * unit / spent["backward"]
    return spent


if __name__ == "__main__":
    main()
