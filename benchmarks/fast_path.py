"""The fast path of a training step against the plain one: losses, gradients and repeats.

    python -m benchmarks.fast_path                 SmolLM2-135M's shape, on one GPU
    python -m benchmarks.fast_path --rows repeats  some rows: losses, gradients, repeats
    python -m benchmarks.fast_path --quick         a smoke run: the tiny model

The plain path launches each kernel by itself. The fast path is what `auto` decides: blocks at once,
CUDA graphs, fused kernels. Weights and tokens are random, and dropout is off.

Rows, put into the result file as they come, each in place of an earlier one of its name, model, T
and case:

- `loss_difference`: largest over the steps, of the fast path and of the plain one with four blocks
  together, which differs from one at a time by rounding alone; with the losses of each
- `gradient_difference`: of all gradients of one micro-step together, relative: fast against plain
  in each number format, and both in bfloat16 against plain float32 with the same weights, which
  says what bfloat16 itself costs
- `repeat`: whether two runs with `deterministic=true` gave the same losses; `deterministic_cost`,
  its time over that without; `tokens_per_second` of both
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
from benchmarks.merging import commit_of, merge
from benchmarks.step import STAGE, STREAM, Case, RandomBlocks
from src.models.hf_config import resolved_shape
from src.objectives.base import Batch
from src.passes.graphs import WARM_UP
from src.planning import plan
from src.planning.devices import device_of, uses_cuda
from src.training import launch, run, stage
from src.training.engines import Engines
from src.training.launch import World

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fast_path.json"
SCRIPT = "python -m benchmarks.fast_path"
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


def gradients(
    overrides: Sequence[str], options: argparse.Namespace, weights: dict[str, Tensor]
) -> Tensor:
    """All gradients of a micro-step of whole blocks, on the CPU in float64.

    Args:
        overrides: settings.
        options: of the command line.
        weights: of both models; where there are none, they become those of these settings.
    """
    settings, planned, built = engines_of(overrides, options, 1)
    _share(built, weights)
    length = settings.recipe.stages[STAGE].streams[STREAM].length
    blocks = RandomBlocks(length, resolved_shape(settings.model).vocabulary)
    ids_bt = torch.stack([torch.from_numpy(blocks[i]) for i in range(planned.micro_batch)])
    batch = Batch(ids_bt.to(device_of(settings.engine.device)))
    # The third micro-step of a shape is replayed.
    for _ in range(WARM_UP):
        _gradients(built, batch)
    made = _gradients(built, batch)
    built.close()
    return made


def _share(built: Engines, weights: dict[str, Tensor]) -> None:
    """Give engines these weights, or take theirs where there are none yet."""
    engines: dict[str, Any] = {"student": built.student, "teacher": built.teacher}
    held = {
        f"{owner} {name}": weight
        for owner, engine in engines.items()
        if engine is not None
        for name, weight in engine._engine.module.named_parameters()
    }
    with torch.no_grad():
        if not weights:
            torch.manual_seed(0)
            for name, weight in held.items():
                if "lora_B" in name:
                    # At zero, as they begin, they hide the gradients of the other factor.
                    weight.copy_(torch.randn(weight.shape) * 0.02)
            weights |= {name: weight.detach().cpu().clone() for name, weight in held.items()}
        for name, weight in held.items():
            weight.copy_(weights[name])


def _gradients(built: Engines, batch: Batch) -> Tensor:
    student: Any = built.student
    trained = [p for p in student.network.parameters() if p.requires_grad]
    teach = None if built.teacher is None else built.teacher.outputs
    loss, _ = student._engine.module(batch, STREAM, teach)
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([g.detach().double().cpu().flatten() for g in found if g is not None])


def measured(options: argparse.Namespace) -> None:
    """Measure the rows that are asked for, and write them as they come."""
    rows: list[dict[str, Any]] = []
    about = {"model": options.model, "T": 64 if options.quick else 4096}
    wanted = options.rows.split(",")
    command = f"python -m benchmarks.fast_path --model {options.model} --rows {options.rows}"

    def add(name: str, value: float, unit: str, case: str, **more: Any) -> None:
        rows.append({"name": name, "value": value, "unit": unit, "case": case, **about, **more})
        commit = commit_of(options.commit)
        merge(options.out, rows, commit=commit, command=command, script=SCRIPT)
        print({key: value for key, value in rows[-1].items() if key != "losses"}, flush=True)

    for part, measure in PARTS.items():
        if part in wanted:
            measure(options, add)


def _add_losses(options: argparse.Namespace, add: Any) -> None:
    curves = {name: trained(overrides, options)[0] for name, overrides in PATHS.items()}
    for name, losses in curves.items():
        differences = [abs(a - b) for a, b in zip(losses, curves["plain"], strict=True)]
        add("loss_difference", max(differences), "nat", name, losses=losses)


def _add_gradients(options: argparse.Namespace, add: Any) -> None:
    weights: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def compare(case: str, one: str, other: str) -> None:
        difference = (made[one] - made[other]).norm() / made[other].norm()
        add("gradient_difference", float(difference), "relative", case)

    for dtype in ("bfloat16", "float32"):
        # Two blocks, so that float32 fits beside nothing else on a GPU of 80 GB.
        kind = (f"engine.dtype={dtype}", "engine.student.micro_batch=2")
        for path, overrides in (("plain", PLAIN), ("fast", (NO_DROPOUT,))):
            made[f"{path} {dtype}"] = gradients((*kind, *overrides), options, weights)
        compare(dtype, f"fast {dtype}", f"plain {dtype}")
    for path in ("plain", "fast"):
        compare(f"bfloat16 {path} against float32", f"{path} bfloat16", "plain float32")


def _add_repeats(options: argparse.Namespace, add: Any) -> None:
    """Two deterministic runs and one that is not, each in a process of its own."""
    runs = [_in_a_process(options, deterministic=d) for d in (True, True, False)]
    add("repeat", float(runs[0]["losses"] == runs[1]["losses"]), "1 if equal", "deterministic=true")
    ratio = runs[0]["seconds"] / runs[2]["seconds"]
    add("deterministic_cost", ratio, "of the time without", "deterministic=true")
    for case, made in (("deterministic=true", runs[0]), ("deterministic=false", runs[2])):
        add("tokens_per_second", made["tokens"] / made["seconds"], "tokens/s", case)


PARTS = {"losses": _add_losses, "gradients": _add_gradients, "repeats": _add_repeats}


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
    parser.add_argument("--rows", default=",".join(PARTS), help="some of these, by commas")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--one", choices=("deterministic", "free"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.rows.split(",")) - set(PARTS):
        parser.error(f"--rows={','.join(sorted(unknown))}: give some of {', '.join(PARTS)}")
    if options.one == "deterministic":
        run.be_deterministic()
    with launch.joined(World(), cuda=uses_cuda("auto")):
        if options.one:
            losses, seconds = trained((), options)
            settings = step.composed(Case(()), options.model, quick=options.quick)
            tokens = settings.recipe.training[STAGE].step_tokens
            print(json.dumps({"losses": losses, "seconds": seconds, "tokens": tokens}))
            return
        measured(options)
    print(f"wrote {options.out}", flush=True)


if __name__ == "__main__":
    main()
