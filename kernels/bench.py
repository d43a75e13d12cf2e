"""Measures the relation kernel on this machine: first its errors, then time and memory.

    python -m kernels.bench                                  a table, and kernel.json beside it
    python -m kernels.bench --out benchmarks/results/kernel.json --reference ../LinearARD
    python -m benchmarks.figures --kernel kernel.json        pictures of it
    python -m kernels.bench --tune                           launch parameters for this device

Times are medians of replayed CUDA graphs, so they are times of the device, without the cost of
launches on the host; `host_milliseconds` is that cost. On a CPU, and for the reference, they are
medians of plain runs. A unit is a causal matrix product, ``B * H * T * T * D`` floating-point
operations. The floor is the number of units divided by the rate of an 8192^3 product in the same
run. No time is printed while a check fails.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels import tune
from kernels.relation_kl import launch, relation_kl, relation_kl_set

Row = dict[str, Any]
Shape = tuple[int, int, int, int]
Run = Callable[[], object]

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("normal", "large", "near", "one-hot")
PAPER: Shape = (1, 32, 4096, 128)
LONG: Shape = (1, 32, 32768, 128)
SMALL_HEADS: Shape = (1, 9, 8192, 64)
ON_CPU: Shape = (1, 8, 2048, 64)
MEMORY_TOKENS = (4096, 16384, 65536, 262144, 1048576)
# The allowed error: this multiple of dense torch's error, plus one float32 rounding of the result
# or of the numbers near 1 that it is computed from.
WORST_RATIO = 1.2
RELATIVE = torch.finfo(torch.float32).eps


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes the result file; 1 if a check fails."""
    options = _parser().parse_args(arguments)
    if options.tune:
        if not torch.cuda.is_available():
            print("error: --tune: no CUDA device to tune for", file=sys.stderr)
            return 2
        timer = Bench(options.seconds / 10, None)
        return tune.tune(options.head_sizes, timer.milliseconds)
    report = Report(Path(options.out), options.commit, _command(options))
    bench = Bench(options.seconds, options.reference)
    names = dict.fromkeys(name for names, _ in bench.cases() for name in names)
    wanted = set(options.rows.split(",") if options.rows else names)
    if unknown := wanted - set(names):
        print(
            f"error: --rows {','.join(sorted(unknown))}: the rows here are {', '.join(names)}",
            file=sys.stderr,
        )
        return 2
    for row in bench.checks():
        report.add(row)
        if row["rms_error"] > row["allowed"]:
            print(f"error: more than is allowed, so no times are measured: {row}", file=sys.stderr)
            return 1
    cases = [(", ".join(rows), case) for rows, case in bench.cases() if wanted & set(rows)]
    began = time.perf_counter()
    for number, (name, case) in enumerate(cases):
        tune.announce(name, number, len(cases), began)
        for row in case():
            report.add(row)
    report.show()
    return 0


def _command(options: argparse.Namespace) -> str:
    """The command as typed, without this machine's paths."""
    reference = " --reference PATH" if options.reference else ""
    rows = f" --rows {options.rows}" if options.rows else ""
    return f"python -m kernels.bench --seconds {options.seconds}{reference}{rows}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="kernel.json", help="result file (default: %(default)s)")
    parser.add_argument("--rows", default="", help="names of rows to measure, by commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="of repetitions a figure")
    parser.add_argument("--reference", help="checkout of the public reference, to time beside ours")
    parser.add_argument("--commit", default="", help="what is measured, outside a git checkout")
    parser.add_argument("--tune", action="store_true", help="search and write launch parameters")
    parser.add_argument(
        "--head-sizes",
        type=_head_sizes,
        default=",".join(str(size) for size in launch.HEAD_SIZES),
        help="head sizes to tune, by commas (default: all)",
    )
    return parser


def _head_sizes(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",") if size.isdecimal()]
    if not sizes or set(sizes) - set(launch.HEAD_SIZES) or len(sizes) != text.count(",") + 1:
        allowed = ", ".join(str(size) for size in launch.HEAD_SIZES)
        raise argparse.ArgumentTypeError(f"{text}: give some of {allowed}, by commas")
    return sizes


class Report:
    """The result file, written again after every row."""

    def __init__(self, path: Path, commit: str, command: str) -> None:
        self.path = path
        cuda = torch.cuda.is_available()
        self.result: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if cuda else _processor(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "triton": triton.__version__,
            },
            "commit": commit or _commit(ROOT),
            "command": command,
            "script": "kernels/bench.py",
            "rows": [],
        }

    def add(self, row: Row) -> None:
        self.result["rows"].append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.result, indent=1) + "\n"
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path)

    def show(self) -> None:
        for row in self.result["rows"]:
            shape = ",".join(str(row[k]) for k in "BHTD" if k in row)
            others = {k: v for k, v in row.items() if k not in {"name", "value", "unit", *"BHTD"}}
            detail = " ".join(f"{k}={_short(v)}" for k, v in others.items())
            print(
                f"{row['name']:32} {shape:20} {_short(row['value']):>12} {row['unit']:10} {detail}"
            )


class Bench:
    """Cases by name; each yields rows."""

    def __init__(self, seconds: float, reference: str | None) -> None:
        self.seconds = seconds
        self.reference = reference
        self.cuda = torch.cuda.is_available()
        # By name, so that a backend that cannot run is not replaced by another one.
        self.backend = "triton" if self.cuda else "chunked"
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self._rate = 0.0

    def checks(self) -> Iterator[Row]:
        """Errors of rows and gradients against float64, divided by those of dense torch."""
        shapes: list[Shape] = [(1, 2, 257, 64)]
        if self.cuda:
            shapes = [(1, 3, 513, 128), (1, 3, 777, 64)]
        for shape, family in itertools.product(shapes, FAMILIES):
            torch.manual_seed(0)
            student, teacher, scale = self._family(family, shape)
            scales = {"scale": scale, "teacher_scale": scale, "backend": self.backend}
            results: list[tuple[Tensor, Tensor]] = []
            for _ in range(2):
                x = student.clone().requires_grad_()
                rows = relation_kl(x, teacher, reduction="none", **scales)
                (gradient,) = torch.autograd.grad(rows.sum(), x)
                results.append((rows.detach(), gradient))
            ours, again = results
            if not all(torch.equal(x, y) for x, y in zip(ours, again, strict=True)):
                raise ArithmeticError(f"{family} {shape}: two runs differ, or are not numbers")
            truth = _dense(student.double(), teacher.double(), scale, torch.float64)
            plain = _dense(student.float(), teacher.float(), scale, student.dtype)
            for part, x, y, z in zip(("rows", "gradient"), ours, plain, truth, strict=True):
                error, dense, size = (
                    float(v.double().square().mean().sqrt()) for v in (x - z, y - z, z)
                )
                yield _row(
                    "error_over_dense",
                    error / max(dense, torch.finfo(torch.float32).tiny),
                    "ratio",
                    shape,
                    family=family,
                    of=part,
                    rms_error=error,
                    rms_error_dense=dense,
                    allowed=WORST_RATIO * dense + RELATIVE * max(size, 1.0),
                )

    def cases(self) -> list[tuple[tuple[str, ...], Callable[[], Iterator[Row]]]]:
        """Measurements, each with the names of the rows that it yields."""
        if not self.cuda:
            return [
                (("chunked_speedup_over_dense",), self._cpu_speed),
                (("chunked_memory_over_dense",), self._cpu_memory),
            ]
        fractions = ("fwd_fraction_of_floor", "bwd_fraction_of_floor")
        cases: list[tuple[tuple[str, ...], Callable[[], Iterator[Row]]]] = [
            (("matmul_rate",), self._matmul),
            *((fractions, partial(self._fractions, shape)) for shape in (LONG, SMALL_HEADS, PAPER)),
            *(
                (("fwd_bwd_time_over_sdpa",), partial(self._over_sdpa, shape))
                for shape in (PAPER, (1, 32, 8192, 128), LONG, SMALL_HEADS)
            ),
            (("set_time_over_single",), self._set),
            (("extra_bytes_per_token", "max_tokens"), self._memory),
            (("dense_bytes_per_token",), self._dense_memory),
            (("dense_time_over_ours",), self._over_dense),
            (("masked_time_over_causal",), self._masked),
            (("first_call_seconds",), self._first_call),
        ]
        if self.reference is not None:
            cases.insert(4, (("fwd_bwd_speedup_over_reference",), self._over_reference))
        return cases

    def _matmul(self) -> Iterator[Row]:
        yield _row("matmul_rate", self.rate / 1e12, "TFLOP/s")

    @property
    def rate(self) -> float:
        """Floating-point operations a second of a bfloat16 product."""
        if not self._rate:
            a, b = (torch.randn(8192, 8192, device=self.device).bfloat16() for _ in range(2))
            self._rate = 2 * 8192**3 / (self.milliseconds(lambda: a @ b) / 1e3)
        return self._rate

    def _fractions(self, shape: Shape) -> Iterator[Row]:
        student, teacher = self._pair(shape)
        unit = math.prod(shape) * shape[2] / self.rate * 1e3
        forward = self.milliseconds(lambda: self._loss(student, teacher))
        yield _row(
            "fwd_fraction_of_floor", 2 * unit / forward, "fraction", shape, milliseconds=forward
        )
        both = self.milliseconds(self._ours(student, teacher))
        backward = both - forward
        yield _row(
            "bwd_fraction_of_floor", 4 * unit / backward, "fraction", shape, milliseconds=backward
        )

    def _over_sdpa(self, shape: Shape) -> Iterator[Row]:
        """The time over that of torch's attention, by the faster backend, which torch chooses."""
        student, teacher = self._pair(shape)
        ours = self.milliseconds(self._ours(student, teacher))
        q, k, v = (self._random(shape).requires_grad_() for _ in range(3))
        upstream = self._random(shape)

        def attention(backends: list[SDPBackend]) -> object:
            with sdpa_kernel(backends):
                out = scaled_dot_product_attention(q, k, v, is_causal=True)
            return torch.autograd.grad(out, (q, k, v), upstream)

        times = {
            name: self.milliseconds(partial(attention, [backend]))
            for name, backend in (
                ("flash", SDPBackend.FLASH_ATTENTION),
                ("cudnn", SDPBackend.CUDNN_ATTENTION),
            )
        }
        fastest = min(times, key=times.__getitem__)
        yield _row(
            "fwd_bwd_time_over_sdpa",
            ours / times[fastest],
            "ratio",
            shape,
            milliseconds=ours,
            sdpa_backend=fastest,
            **{f"{name}_milliseconds": spent for name, spent in times.items()},
        )

    def _over_reference(self) -> Iterator[Row]:
        assert self.reference is not None
        theirs = _load_reference(Path(self.reference))
        student, teacher = self._pair(PAPER)
        scale = PAPER[3] ** -0.5

        def run() -> object:
            loss = theirs(student, student, teacher, teacher, None, True, scale, scale)
            return torch.autograd.grad(loss, student)

        reference = self.milliseconds(run, captured=False)
        ours = self.milliseconds(self._ours(student, teacher))
        torch.cuda.synchronize()
        launching = _host_time(self._ours(student, teacher), repetitions=20)
        torch.cuda.synchronize()
        yield _row(
            "fwd_bwd_speedup_over_reference",
            reference / ours,
            "ratio",
            PAPER,
            milliseconds=ours,
            reference_milliseconds=reference,
            reference_repository="github.com/gracefulning/LinearARD",
            reference_commit=_commit(Path(self.reference)),
            host_milliseconds=launching,
        )

    def _set(self) -> Iterator[Row]:
        heads, tokens, head_dim = (32, 8, 8), 4096, 128
        pairs = [self._pair((1, h, tokens, head_dim)) for h in heads]
        students, teachers = ([pair[side] for pair in pairs] for side in (0, 1))

        def together() -> object:
            loss, _ = relation_kl_set(students, teachers, [1.0] * len(heads), backend="triton")
            return torch.autograd.grad(loss, students)

        ours = self.milliseconds(together)
        shape = (1, sum(heads), tokens, head_dim)
        single = self.milliseconds(self._ours(*self._pair(shape)))
        yield _row(
            "set_time_over_single",
            ours / single,
            "ratio",
            shape,
            heads=list(heads),
            milliseconds=ours,
        )

    def _memory(self) -> Iterator[Row]:
        most, seconds = 0, 0.0
        for tokens in MEMORY_TOKENS:
            shape = (1, 1, tokens, 128)
            student, teacher = self._pair(shape)
            run = self._ours(student, teacher)
            try:
                run()
            except torch.OutOfMemoryError:
                break
            extra, seconds = _extra_bytes(run)
            most = tokens
            yield _row("extra_bytes_per_token", extra / tokens, "bytes", shape)
        yield _row("max_tokens", most, "tokens", (1, 1, most, 128), seconds=seconds)

    def _dense_memory(self) -> Iterator[Row]:
        """The same of dense torch, at the lengths that fit."""
        for tokens in MEMORY_TOKENS:
            shape = (1, 1, tokens, 128)
            try:
                extra, _ = _extra_bytes(_dense_run(*self._pair(shape)))
            except torch.OutOfMemoryError:
                return
            yield _row("dense_bytes_per_token", extra / tokens, "bytes", shape)

    def _over_dense(self) -> Iterator[Row]:
        student, teacher = self._pair(PAPER)
        theirs = self.milliseconds(_dense_run(student, teacher), captured=False)
        ours = self.milliseconds(self._ours(student, teacher))
        yield _row("dense_time_over_ours", theirs / ours, "ratio", PAPER, dense_milliseconds=theirs)

    def _masked(self) -> Iterator[Row]:
        """Time of documents of 1000 tokens in one sequence, over that of the unmasked triangle."""
        student, teacher = self._pair(PAPER)
        segments = (torch.arange(PAPER[2], device=self.device) // 1000).expand(1, -1)

        def packed() -> object:
            loss = relation_kl(student, teacher, segment_ids=segments, backend="triton")
            return torch.autograd.grad(loss, student)

        ours = self.milliseconds(packed)
        whole = self.milliseconds(self._ours(student, teacher))
        yield _row("masked_time_over_causal", ours / whole, "ratio", PAPER, milliseconds=ours)

    def _first_call(self) -> Iterator[Row]:
        program = (
            "import time, torch\nfrom kernels.relation_kl import relation_kl\n"
            "x = torch.randn(1, 2, 512, 128, device='cuda').bfloat16().requires_grad_()\n"
            "y = torch.randn_like(x)\ntorch.cuda.synchronize()\nbegan = time.perf_counter()\n"
            "relation_kl(x, y).backward()\ntorch.cuda.synchronize()\n"
            "print(time.perf_counter() - began)\n"
        )
        with tempfile.TemporaryDirectory() as empty:
            seconds = _printed(program, TRITON_CACHE_DIR=empty)
        yield _row("first_call_seconds", seconds, "seconds", (1, 2, 512, 128))

    def _cpu_speed(self) -> Iterator[Row]:
        student, teacher = self._pair(ON_CPU)
        ours = self.milliseconds(self._ours(student, teacher))
        theirs = self.milliseconds(_dense_run(student, teacher))
        yield _row(
            "chunked_speedup_over_dense",
            theirs / ours,
            "ratio",
            ON_CPU,
            milliseconds=ours,
            dense_milliseconds=theirs,
            threads=torch.get_num_threads(),
        )

    def _cpu_memory(self) -> Iterator[Row]:
        shape = (1, 1, 8192, 64)
        ours, dense = (_peak_bytes(shape, way) for way in ("chunked", "dense"))
        yield _row(
            "chunked_memory_over_dense", ours / dense, "ratio", shape, bytes=ours, dense_bytes=dense
        )

    def _ours(self, student: Tensor, teacher: Tensor) -> Run:
        return lambda: torch.autograd.grad(self._loss(student, teacher), student)

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return relation_kl(student, teacher, backend=self.backend)  # pyright: ignore[reportArgumentType]

    def _random(self, shape: Shape) -> Tensor:
        x = torch.randn(shape, device=self.device)
        return x.bfloat16() if self.cuda else x

    def _pair(self, shape: Shape) -> tuple[Tensor, Tensor]:
        return self._random(shape).requires_grad_(), self._random(shape)

    def _family(self, name: str, shape: Shape) -> tuple[Tensor, Tensor, float]:
        """Student, teacher and scale of a family of inputs."""
        x, y = (torch.randn(shape, device=self.device) for _ in range(2))
        scale = shape[3] ** -0.5
        if name == "large":  # logits near 300 and -300 that differ by about 1 within a sign
            direction = torch.randn(shape[3], device=self.device)
            signs = torch.randint(0, 2, (shape[2], 1), device=self.device) * 2.0 - 1
            scale = 300 / float(direction.square().sum())
            x, y = (signs * direction + 0.03 * z for z in (x, y))
        elif name == "near":
            y = x + 3e-4 * y
        elif name == "one-hot":  # a token's logit with itself is far above the others
            x, y = 4 * x, 4 * y
        if self.cuda:
            x, y = x.bfloat16(), y.bfloat16()
        return x, y, scale

    def milliseconds(self, run: Run, *, captured: bool = True) -> float:
        """Median time of a run."""
        run()
        if self.cuda:
            run = _captured(run) if captured else run
            run()
            torch.cuda.synchronize()
        once, least = (_device_time, 5) if self.cuda else (_host_time, 3)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < least or (
            time.perf_counter() - began < self.seconds and len(times) < 100
        ):
            times.append(once(run))
        return statistics.median(times)


def _captured(run: Run) -> Run:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _device_time(run: Run) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def _host_time(run: Run, repetitions: int = 1) -> float:
    """Milliseconds that the host takes for a run; on a GPU, to launch it."""
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    return (time.perf_counter() - start) / repetitions * 1e3


def _extra_bytes(run: Run) -> tuple[int, float]:
    """Peak memory of a run beyond what was allocated before it, and its seconds."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, time.perf_counter() - began


def _dense_run(student: Tensor, teacher: Tensor) -> Run:
    """Forward and backward as torch does it from the definition, in float32."""

    def run() -> object:
        rows = _dense_rows(student.float(), teacher.float())
        return torch.autograd.grad(rows.mean(), student)

    return run


def _dense_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL by row as defined, causal; differentiable."""
    log_s, log_t, hidden = _log_probabilities(student, teacher, student.shape[3] ** -0.5)
    return (log_t.exp() * (log_t - log_s).masked_fill(hidden, 0)).sum(-1)


def _dense(
    student: Tensor, teacher: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows, and the gradient of their sum; rounds its factors and the gradient to ``dtype``."""
    log_s, log_t, hidden = _log_probabilities(student, teacher, scale)
    rows = (log_t.exp() * (log_t - log_s).masked_fill(hidden, 0)).sum(-1)
    g = (log_s.exp() - log_t.exp()).to(dtype).to(student.dtype)
    return rows, (scale * (g @ student + g.mT @ student)).to(dtype)


def _log_probabilities(
    student: Tensor, teacher: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    tokens = student.shape[2]
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=student.device).triu(1)
    s, t = (
        (scale * (x @ x.mT)).masked_fill(hidden, -math.inf).log_softmax(-1)
        for x in (student, teacher)
    )
    return s, t, hidden


def _peak_bytes(shape: Shape, way: str) -> int:
    """Peak memory of a forward and backward in a separate process, minus its memory at the start.

    The operating system's mark of the process is read, because `getrusage` starts from the mark of
    the parent.
    """
    program = (
        "import torch\nfrom kernels.bench import _dense_rows\n"
        "from kernels.relation_kl import relation_kl\n"
        f"x = torch.randn({shape}).requires_grad_()\ny = torch.randn({shape})\n"
        "small = torch.randn(1, 1, 64, 64, requires_grad=True)\n"
        "def run(x, y):\n"
        f"    loss = relation_kl(x, y) if {way == 'chunked'} else _dense_rows(x, y).mean()\n"
        "    loss.backward()\n"
        "run(small, small.detach())\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith('VmHWM'))\n"
        "before = peak()\nrun(x, y)\nprint(peak() - before)\n"
    )
    return int(_printed(program))


def _printed(program: str, **environment: str) -> float:
    """The number that a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def _load_reference(path: Path) -> Callable[..., Tensor]:
    """The public reference's autograd function, from a checkout."""
    folder = path / "kernels" / "attention_KL"
    if not (folder / "integration.py").is_file():
        raise FileNotFoundError(
            f"--reference {path}: it has no kernels/attention_KL/integration.py"
        )
    sys.path.insert(0, str(folder.parent))
    try:
        module = importlib.import_module("attention_KL.integration")
    finally:
        sys.path.pop(0)
    return module.attn_kl_align


def _row(name: str, value: float, unit: str, shape: Shape | None = None, **more: Any) -> Row:
    settings = {} if shape is None else dict(zip("BHTD", shape, strict=True))
    return {"name": name, "value": value, "unit": unit, **settings, **more}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    """The processor's name, and the number of its cores that this process may use."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text(encoding="utf-8").splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _commit(checkout: Path) -> str:
    """The commit of a checkout. A copy without history may state it in a file COMMIT."""
    if (named := checkout / "COMMIT").is_file():
        return named.read_text(encoding="utf-8").strip()
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
