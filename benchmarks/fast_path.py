"""The fast path of a training step against the plain one: losses, gradients and repeats.

    python -m benchmarks.fast_path                 SmolLM2-135M's shape, on one GPU
    python -m benchmarks.fast_path --quick         a smoke run: the tiny model

The plain path launches each kernel by itself. The fast path is what `auto` decides: blocks at once,
CUDA graphs, fused kernels. Weights and tokens are random, and dropout is off.

Rows: `loss_difference` (largest over the steps, of the fast path and of the plain one with four
blocks together, which differs from one at a time by rounding alone), with the losses of each;
`gradient_difference` (of all gradients of one step together, relative, by number format); `repeat`
(whether two runs with `deterministic=true` gave the same losses) and `deterministic_cost` (its time
over that without).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import step
from benchmarks.short_suite import commit_of
from benchmarks.step import STAGE, STREAM, Case, RandomBlocks
from src.models.hf_config import resolved_shape
from src.objectives.base import Batch
from src.passes.graphs import WARM_UP
from src.planning import plan
from src.planning.devices import device_of, uses_cuda
from src.run_folder import device_name, versions, write_json
from src.training import launch, run, stage
from src.training.engines import Engines
from src.training.launch import World

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fast_path.json"
NO_DROPOUT = f"recipe.stages.{STAGE}.parameters.dropout=0.0"
PLAIN = ("engine.cuda_graphs=false", "engine.fused_kernels=false", NO_DROPOUT)
PATHS = {
    "plain": (*PLAIN, "engine.student.micro_batch=1"),
    "plain, four blocks together": (*PLAIN, "engine.student.micro_batch=4"),
    "fast": (NO_DROPOUT,),
}


def engines_of(overrides: Sequence[str], options: argparse.Namespace, steps: int) -> Any:
    """Settings, plan and engines of a stage of so many steps."""
    case = Case(tuple(overrides), steps=(0, steps))
    settings = step.composed(case, options.model, quick=options.quick)
    planned = plan.make(settings, world_size=1).stage(STAGE)
    device = device_of(settings.engine.device)
    built = stage.build_engines(
        settings,
        STAGE,
        planned,
        settings.objectives(STAGE),
        random_on=device if device.type == "cuda" else None,
    )
    return settings, planned, built


def trained(overrides: Sequence[str], options: argparse.Namespace) -> tuple[list[float], float]:
    """Losses of a stage's steps, and the median seconds of its last ones."""
    settings, planned, built = engines_of(overrides, options, options.steps)
    streams = settings.recipe.stages[STAGE].streams
    blocks: Any = RandomBlocks(streams[STREAM].length, resolved_shape(settings.model).vocabulary)
    records: list[Any] = []
    loop = stage.stage_run(settings, planned, built, {STREAM: blocks}, World())
    loop.train(0, records.append)
    built.close()
    paces = [record.metrics["tokens_per_second"] for record in records[options.steps // 2 :]]
    seconds = settings.recipe.stages[STAGE].step_tokens / statistics.median(paces)
    return [record.metrics["loss/total"] for record in records], seconds


def gradients(overrides: Sequence[str], options: argparse.Namespace) -> Tensor:
    """All gradients of one step's micro-step of whole blocks, on the CPU in float64."""
    settings, planned, built = engines_of(overrides, options, 1)
    length = settings.recipe.stages[STAGE].streams[STREAM].length
    blocks = RandomBlocks(length, resolved_shape(settings.model).vocabulary)
    ids_bt = torch.stack([torch.from_numpy(blocks[i]) for i in range(planned.micro_batch)])
    batch = Batch(ids_bt.to(device_of(settings.engine.device)))
    # The third micro-step of a shape is replayed.
    for _ in range(WARM_UP + 1):
        made = _gradients(built, batch)
    built.close()
    return made


def _gradients(built: Engines, batch: Batch) -> Tensor:
    student: Any = built.student
    trained = [p for p in student.network.parameters() if p.requires_grad]
    teach = None if built.teacher is None else built.teacher.outputs
    loss, _ = student._engine.module(batch, STREAM, teach)
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([g.detach().double().cpu().flatten() for g in found if g is not None])


def measured(options: argparse.Namespace) -> None:
    """Measure all rows, and write them as they come."""
    rows: list[dict[str, Any]] = []
    about = {"model": options.model, "T": 64 if options.quick else 4096}

    def add(name: str, value: float, unit: str, case: str, **more: Any) -> None:
        rows.append({"name": name, "value": value, "unit": unit, "case": case, **about, **more})
        write(options, rows)
        print({key: value for key, value in rows[-1].items() if key != "losses"}, flush=True)

    curves = {name: trained(overrides, options)[0] for name, overrides in PATHS.items()}
    for name, losses in curves.items():
        differences = [abs(a - b) for a, b in zip(losses, curves["plain"], strict=True)]
        add("loss_difference", max(differences), "nat", name, losses=losses)
    together = "engine.student.micro_batch=4"
    for dtype in ("bfloat16", "float32"):
        kind = (f"engine.dtype={dtype}", together)
        plain, fast = (gradients((*kind, *p), options) for p in (PLAIN, (NO_DROPOUT,)))
        add("gradient_difference", float((fast - plain).norm() / plain.norm()), "relative", dtype)
    _add_repeats(options, add)


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows that there are, so that they outlive what fails after them."""
    result = {
        "device": device_name(),
        "versions": versions(),
        "commit": commit_of(options.commit),
        "command": f"python -m benchmarks.fast_path --model {options.model}",
        "script": "python -m benchmarks.fast_path",
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)


def _add_repeats(options: argparse.Namespace, add: Any) -> None:
    """Two deterministic runs and one that is not, each in a process of its own."""
    runs = [_in_a_process(options, deterministic=d) for d in (True, True, False)]
    add("repeat", float(runs[0]["losses"] == runs[1]["losses"]), "1 if equal", "deterministic=true")
    ratio = runs[0]["seconds"] / runs[2]["seconds"]
    add("deterministic_cost", ratio, "of the time without", "deterministic=true")


def _in_a_process(options: argparse.Namespace, *, deterministic: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.fast_path", "--model", options.model]
    command += ["--one", "deterministic" if deterministic else "free", "--steps", "20"]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2_135m", help="a model whose shape is known")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="the tiny model, to see that it works")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--one", choices=("deterministic", "free"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one == "deterministic":
        run.be_deterministic()
    with launch.joined(World(), cuda=uses_cuda("auto")):
        if options.one:
            losses, seconds = trained((), options)
            print(json.dumps({"losses": losses, "seconds": seconds}))
            return
        measured(options)
    print(f"wrote {options.out}", flush=True)


if __name__ == "__main__":
    main()
