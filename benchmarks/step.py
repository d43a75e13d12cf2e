"""Speed and memory of a training step, and how well the plan foresees them.

    python -m benchmarks.step                                    all cases of one GPU
    python -m benchmarks.step --cases stored-shared,plain        these cases
    python -m benchmarks.step --cases launched,auto --profile    where their steps' time goes
    python -m benchmarks.step --quick                            a smoke run: the tiny model
    python -m benchmarks.step --ranks 1,8 --cases replicated,sharded
                                                                 one GPU, and eight
    python -m benchmarks.step --ranks 2 --cases sequence-131072-ard
                                                                 two GPUs share each block
    python -m benchmarks.step --merge A.json B.json              one file from several files
    python -m benchmarks.step --replan                           errors of the present plan

A case is a stage of attention restoration under some settings, or a part of it, with random
weights of a named shape and random tokens. Each runs in a process of its own: engines are built as
for a run, at most two optimizer steps warm up, the next are timed by the loop's own clock.
Measurements add to those that the result file already holds, and all rows are made anew from them.
`--list` shows the cases.

Rows: `ard_tokens_per_second`, `cpt_tokens_per_second`, `peak_gib` (torch's allocator, from when
the engines are built), `mfu` (work without repetitions by the device's dense bfloat16 rate),
`relation_share` (of a step's time: against the same step with the layers' losses replaced by
means), `ard_time_over_plain` (against a teacher's forward pass plus a LoRA step without teacher
or head), `plan_error_memory`, `plan_error_time` (in percent), `weights_gib_per_rank`,
`throughput_over_one` (of the same case on one rank), `sequence_parallel_131072` and
`sequence_parallel_262144` (tokens/s where ranks share blocks of that length) and
`sequence_parallel_loss` (first step's loss over one rank's, at a length that one holds: run
`sequence-16384-ard` and `-cpt` on one GPU, and on more).

With `--profile` nothing is timed. The row `step_milliseconds` of a case, in profile.json beside the
result file, has the milliseconds of a step by kind of kernel (`kinds`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.merging import merge
from src.models.adapters import LoraParameters
from src.models.facts import ModelFacts
from src.models.hf_config import planned_facts, resolved_shape
from src.objectives.base import QKV, Batch, Needs, Objective, Outputs
from src.planning import cost, plan
from src.planning.cost import Setting
from src.planning.devices import ACCELERATORS, DeviceFacts, device_facts, device_of, uses_cuda
from src.planning.plan import StagePlan
from src.run_folder import device_name, git_state, versions, write_json
from src.settings import loading
from src.settings.config import RunConfig
from src.training import launch, profiling, stage
from src.training.engines import Engines
from src.training.launch import World
from src.training.loop import StepRecord

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "step.json"
STAGE, STREAM = "ard", "short"
CASE_SECONDS = 500


@dataclass(frozen=True)
class Case:
    """Settings under which a step is measured.

    Attributes:
        overrides: settings of `src.train`.
        kind: `ard`, the whole step; `sums`, the same with sums for the layers' losses; `plain`, a
            LoRA step without teacher or head; `teacher`, its forward pass alone; `cpt`, a LoRA step
            of next-token prediction.
        length: tokens of a block.
        per_step: tokens of an optimizer step.
        steps: that warm up, and that are timed.
        shared: all ranks share each block.
    """

    overrides: tuple[str, ...]
    kind: str = "ard"
    length: int = 4096
    per_step: int = 16384
    steps: tuple[int, int] = (2, 5)
    shared: bool = False


# Each kernel launched by itself, block by block.
_LAUNCHED = (
    "engine.student.micro_batch=1",
    "engine.cuda_graphs=false",
    "engine.fused_kernels=false",
)


def _engine(**settings: Any) -> tuple[str, ...]:
    names = {
        "share": "engine.teacher.share_base",
        "keep": "engine.teacher.keep",
        "again": "engine.student.gradient_checkpointing",
        "sum_in": "engine.student.accumulate_in",
        "compile": "engine.compile",
    }
    return _LAUNCHED + tuple(
        f"{names[name]}={str(value).lower()}" for name, value in settings.items()
    )


_LEAN = {"again": True, "keep": "layer_inputs", "sum_in": "bfloat16"}

# Rows of lengths that one rank does not hold.
_SHARED_ROWS = {n: f"sequence_parallel_{n}" for n in (131072, 262144)}


def _long(kind: str, length: int, *, steps: tuple[int, int] = (1, 2)) -> Case:
    """Blocks that ranks share, in the leanest setting; without dropout, which is a rank's own."""
    long = (
        f"rope.target_length={max(length, 32768)}",
        f"recipe.stages.{STAGE}.parameters.dropout=0.0",
        "engine.student.zero_stage=3",
    )
    if kind == "cpt":
        long += (f"recipe.stages.{STAGE}.streams.{STREAM}.objective=language_modeling",)
    overrides = (*long, *_engine(share=kind == "ard", **_LEAN))
    return Case(overrides, kind, length, length, steps, shared=True)


# Both models sharded over the ranks.
_SHARDED = (
    *("engine.student.zero_stage=3", "engine.teacher.zero_stage=3"),
    *(*_engine(again=True), "engine.student.micro_batch=4"),
)
# Next-token prediction that trains all weights, as the second stage does.
_CPT = (
    f"recipe.stages.{STAGE}.streams.{STREAM}.objective=language_modeling",
    f"parameters@recipe.stages.{STAGE}.parameters=full",
)

CASES: dict[str, Case] = {
    "stored-two": Case(_engine(share=False, again=False)),
    "stored-shared": Case(_engine(share=True, again=False)),
    "compiled-two": Case(_engine(share=False, again=False, compile=True)),
    "sums-stored": Case(_engine(share=False, again=False), "sums"),
    "plain-stored": Case(_engine(again=False), "plain"),
    "teacher-stored": Case(_engine(), "teacher"),
    "lean-two": Case(_engine(share=False, **_LEAN)),
    "lean-shared": Case(_engine(share=True, **_LEAN)),
    "lean-two-32k": Case(_engine(share=False, **_LEAN), length=32768, per_step=32768, steps=(1, 2)),
    "lean-shared-32k": Case(
        _engine(share=True, **_LEAN), length=32768, per_step=32768, steps=(1, 2)
    ),
    "zero3": Case(_SHARDED, per_step=32768, steps=(1, 3)),
    # So many blocks that eight ranks have four each, as one rank has at once: all weights on each
    # rank, and both models sharded.
    "replicated": Case(("engine.student.micro_batch=4",), per_step=131072, steps=(3, 3)),
    "sharded": Case(_SHARDED, per_step=131072, steps=(1, 3)),
    # What `auto` decides, and the same with less of it. Graphs are recorded in the third step.
    "auto": Case((), steps=(4, 10)),
    "auto-shared": Case(("engine.teacher.share_base=true",), steps=(4, 10)),
    "auto-compiled": Case(("engine.compile=true",), steps=(4, 10)),
    "launched": Case(_LAUNCHED, steps=(2, 5)),
    "launched-together": Case(_LAUNCHED[1:], steps=(2, 5)),
    "cpt-auto": Case(_CPT, "cpt", 32768, 32768, (4, 6)),
    "cpt-launched": Case((*_CPT, *_LAUNCHED), "cpt", 32768, 32768, (2, 4)),
    # A step of over a minute needs no other to warm up.
    "sequence-131072-ard": _long("ard", 131072, steps=(0, 1)),
    "sequence-131072-cpt": _long("cpt", 131072, steps=(1, 1)),
    "sequence-262144-ard": _long("ard", 262144, steps=(0, 1)),
    "sequence-262144-cpt": _long("cpt", 262144, steps=(0, 1)),
    "sequence-16384-ard": _long("ard", 16384),
    "sequence-16384-cpt": _long("cpt", 16384),
}


@dataclass(frozen=True)
class Measurement:
    """What a case gave on one machine.

    Attributes:
        settings: what distinguishes it, for the rows.
        step_seconds: median of the timed steps; of a forward pass for kind `teacher`.
        peak_gib, build_peak_gib: allocated at most while steps ran, and while engines were built.
        weights_gib: both models' weights on a rank.
        planned_gib, planned_seconds: what the plan said (none for a part of a step).
        flops: of a step over all ranks, without repetitions.
        versions, commit: of what was measured.
        losses: of the steps, those that warm up included.
    """

    case: str
    kind: str
    device: str
    ranks: int
    settings: dict[str, Any]
    step_seconds: float
    tokens_per_second: float
    peak_gib: float
    build_peak_gib: float
    weights_gib: float
    planned_gib: float
    planned_seconds: float | None
    flops: float
    matrix_rate: float | None
    versions: dict[str, str]
    commit: str
    losses: Sequence[float] = ()

    @property
    def key(self) -> tuple[str, str, int, str]:
        """One measurement a case, model, number of ranks and device is kept."""
        return self.case, self.settings["model"], self.ranks, self.device


@dataclass(frozen=True)
class HiddenOnly(Objective):
    """A step of the same kind without teacher or head: a mean square of the last hidden states."""

    type: str = "hidden_only"

    def needs(self, facts: ModelFacts) -> Needs:
        """Hidden states."""
        return Needs(teacher=False, hidden=True)

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar that every layer's gradient depends on."""
        assert student.hidden_bth is not None
        return student.hidden_bth.float().square().mean(), {}


@dataclass(frozen=True)
class Sums(Objective):
    """The whole step but for the relations: each layer's loss is a sum of its attention inputs."""

    type: str = "sums"

    def needs(self, facts: ModelFacts) -> Needs:
        """What relations of all layers need."""
        return Needs(teacher=True, qkv_layers=tuple(range(facts.layers)))

    def layer(self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts) -> Tensor:
        """Both sides' numbers are read once."""
        assert teacher is not None
        pairs = (
            (student.q_bhtd, teacher.q_bhtd),
            (student.k_bgtd, teacher.k_bgtd),
            (student.v_bgtd, teacher.v_bgtd),
        )
        return torch.stack([s.mean() - t.mean() for s, t in pairs]).sum()

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over layers."""
        return torch.stack(list(student.layers.values())).mean(), {}


class RandomBlocks:
    """Blocks of random tokens, by number."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self._length, self._vocabulary = length, vocabulary

    def __getitem__(self, index: int) -> np.ndarray:
        draw = np.random.default_rng(index)
        return draw.integers(0, self._vocabulary, self._length, dtype=np.int64)


@functools.cache
def _composer() -> loading.Composer:
    return loading.Composer("train")


def composed(case: Case, model: str, *, quick: bool, ranks: int = 1) -> RunConfig:
    """The case as a run's config, on so many ranks."""
    length, per_step = (64, 128) if quick else (case.length, case.per_step)
    overrides = [
        "+experiment=linearard_32k",
        f"model={'tiny' if quick else model}",
        *([] if quick else ["+model.random_weights=true"]),
        f"engine={'cpu' if quick and not torch.cuda.is_available() else 'zero1'}",
        "eval=none",
        "tracking=none",
        "objective.allow_beyond_native=true",
        "allow_oversubscribe=true",
        "engine.teacher.verify_frozen=false",
        "~recipe.stages.cpt",
        f"recipe.stages.{STAGE}.streams.{STREAM}.length={length}",
        f"recipe.stages.{STAGE}.tokens_per_step={per_step}",
        f"recipe.stages.{STAGE}.tokens={per_step * sum(case.steps)}",
        *(o for o in case.overrides if not (quick and "accumulate_in" in o)),
        *([f"engine.sequence_parallel={ranks}"] if case.shared else []),
        # The tiny model has four heads, too few for eight ranks.
        *(["model.shape.heads=8"] if quick and case.shared else []),
    ]
    return loading.load(RunConfig, _composer()(overrides))


def measure(name: str, model: str, world: World, *, quick: bool, commit: str | None) -> Measurement:
    """Run one case in this process."""
    case = CASES[name]
    settings = composed(case, model, quick=quick, ranks=world.size)
    cuda = uses_cuda(settings.engine.device)
    with launch.joined(world, cuda=cuda):
        device = device_of(settings.engine.device)
        if quick and not cuda:
            # Work this small is done before a second thread has started.
            torch.set_num_threads(1)
        planned = plan.make(settings, world_size=world.size).stage(STAGE)
        objectives = _objectives(case, settings)
        gauge = _Gauge(device)
        built = stage.build_engines(
            settings, STAGE, planned, objectives, random_on=device if cuda else None
        )
        build_peak = gauge.peak()
        gauge.reset()
        shape = resolved_shape(settings.model)
        length = settings.recipe.training[STAGE].streams[STREAM].length
        blocks = RandomBlocks(length, shape.vocabulary)
        losses: list[float] = []
        if case.kind == "teacher":
            seconds = _teacher_seconds(built, blocks, device, case.steps)
        else:
            records = _records(built, settings, planned, blocks, world)
            paces = [record.metrics["tokens_per_second"] for record in records[case.steps[0] :]]
            seconds = settings.recipe.training[STAGE].step_tokens / statistics.median(paces)
            losses = [record.metrics["loss/total"] for record in records]
        both: tuple[Any, Any] = (built.student, built.teacher)
        held = sum(engine.weight_bytes() for engine in both if engine is not None)
        peak = gauge.peak()
        built.close()
        result = _measurement(
            name, settings, world, device_facts(settings.engine.device), planned, seconds
        )
        return Measurement(
            **result,
            peak_gib=peak / 2**30,
            build_peak_gib=build_peak / 2**30,
            weights_gib=held / 2**30,
            versions=versions(),
            commit=commit or git_state(ROOT)["git_commit"] or "unknown",
            losses=losses,
        )


def profiled(name: str, given: argparse.Namespace) -> None:
    """Run a case in this process under the profiler, and write where its steps' time goes."""
    case = replace(CASES[name], steps=(profiling.WARM_UP, profiling.PROFILED))
    settings = composed(case, given.model, quick=given.quick)
    world, stage_of = World(), settings.recipe.training[STAGE]
    with launch.joined(world, cuda=uses_cuda(settings.engine.device)):
        device = device_of(settings.engine.device)
        planned = plan.make(settings, world_size=1).stage(STAGE)
        objectives = _objectives(case, settings)
        random_on = device if device.type == "cuda" else None
        built = stage.build_engines(settings, STAGE, planned, objectives, random_on=random_on)
        blocks: Any = RandomBlocks(
            stage_of.streams[STREAM].length, resolved_shape(settings.model).vocabulary
        )
        with tempfile.TemporaryDirectory() as folder:
            profile = profiling.StepProfile(
                Path(folder) / "trace.json.gz", 0, planned.steps, device
            )
            run = stage.stage_run(settings, planned, built, {STREAM: blocks}, world)
            run.train(0, lambda record: None, around=profile.around)
    row = {
        "name": "step_milliseconds",
        "value": profile.milliseconds[profiling.WHOLE],
        "unit": "ms",
        "case": name,
        "model": settings.model.name,
        "T": stage_of.streams[STREAM].length,
        "kinds": {k: v for k, v in profile.milliseconds.items() if k != profiling.WHOLE},
    }
    commit = given.commit or git_state(ROOT)["git_commit"]
    command = "python -m benchmarks.step --profile"
    merge(given.out.with_name("profile.json"), [row], commit=commit, command=command)


def _objectives(case: Case, settings: RunConfig) -> dict[str, Objective]:
    if case.kind == "plain":
        return {STREAM: HiddenOnly()}
    if case.kind == "sums":
        return {STREAM: Sums()}
    return settings.objectives(STAGE)


def _records(
    engines: Engines, settings: RunConfig, planned: StagePlan, blocks: Any, world: World
) -> list[StepRecord]:
    """What the loop records of the optimizer steps."""
    records: list[StepRecord] = []
    stage_run = stage.stage_run(settings, planned, engines, {STREAM: blocks}, world)
    stage_run.train(0, records.append)
    return records


def _teacher_seconds(
    built: Engines, blocks: Any, device: torch.device, steps: tuple[int, int]
) -> float:
    """Median seconds of the teacher's whole forward pass on a block."""
    assert built.teacher is not None
    batch = Batch(torch.from_numpy(blocks[0])[None].to(device))
    seconds = []
    for _ in range(sum(steps)):
        _wait(device)
        began = time.perf_counter()
        built.teacher.outputs(batch, Needs(teacher=True, hidden=True, qkv_layers=(0,)))
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[steps[0] :])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class _Gauge:
    """The most memory allocated since the last reset; the process's own on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        if self._cuda:
            return float(torch.cuda.max_memory_allocated())
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _measurement(
    name: str,
    settings: RunConfig,
    world: World,
    device: DeviceFacts,
    planned: plan.StagePlan,
    seconds: float,
) -> dict[str, Any]:
    case, stage = CASES[name], settings.recipe.training[STAGE]
    length = stage.streams[STREAM].length
    tokens = length if case.kind == "teacher" else stage.step_tokens
    about = {
        "case": name,
        "model": settings.model.name,
        "T": length,
        "tokens": length,
        "tokens_per_step": stage.step_tokens,
        "timed_steps": case.steps[1],
        "ranks": world.size,
        "share_base": settings.engine.teacher.share_base,
        "checkpointing": planned.checkpointing,
        "keep": planned.keep,
        "micro_batch": planned.micro_batch,
        "graphs": planned.graphs,
        "fused": planned.fused,
        "compile": settings.engine.compile,
        "sequence_parallel": settings.engine.sequence_parallel,
        "zero_stages": [settings.engine.student.zero_stage, settings.engine.teacher.zero_stage],
    }
    parameters = stage.parameters
    if isinstance(parameters, LoraParameters):
        about |= {"lora_rank": parameters.rank, "lora_dropout": parameters.dropout}
    return {
        "case": name,
        "kind": case.kind,
        "device": device.name if device.is_cpu else device_name(),
        "ranks": world.size,
        "settings": about,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "planned_gib": planned.peak / 2**30,
        "planned_seconds": planned.seconds_per_step,
        "flops": _plain_flops(settings, planned, world) * tokens / length,
        "matrix_rate": device.matrix_rate,
    }


def _plain_flops(settings: RunConfig, planned: plan.StagePlan, world: World) -> float:
    """Floating-point operations of a block, nothing done twice."""
    shape = settings.model.shape
    assert shape is not None
    facts = planned_facts(settings.model)
    adapters = planned.total_parameters - shape.parameters
    setting = Setting(settings, settings.recipe.training[STAGE], shape, facts, adapters, world.size)
    return cost.block_work(setting, STREAM).flops


def rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """The result's rows, from all measurements."""
    made: list[dict[str, Any]] = []

    def add(name: str, value: float, unit: str, of: Measurement, **more: Any) -> None:
        made.append(
            {"name": name, "value": value, "unit": unit, **of.settings, "device": of.device, **more}
        )

    for of in measurements:
        if of.kind == "ard":
            _case_rows(of, "ard_tokens_per_second", add)
        if of.kind == "cpt":
            _case_rows(of, "cpt_tokens_per_second", add)
        if CASES[of.case].shared and of.ranks > 1:
            _shared_rows(of, measurements, add)
    for of in measurements:
        if of.kind != "ard":
            continue
        sums = _like(measurements, of, "sums")
        plain, teacher = _like(measurements, of, "plain"), _like(measurements, of, "teacher")
        if sums:
            share = 1 - sums.step_seconds / of.step_seconds
            add("relation_share", share, "of a step's time", of)
        if plain and teacher:
            blocks = of.settings["tokens_per_step"] / of.settings["tokens"]
            base = plain.step_seconds + blocks * teacher.step_seconds
            add("ard_time_over_plain", of.step_seconds / base, "", of, plain_seconds=base)
        one = next((m for m in _on_one_rank(measurements, of) if _comparable(m, of)), None)
        if one:
            ratio = of.tokens_per_second / one.tokens_per_second
            add("throughput_over_one", ratio, "", of)
    return made


def _on_one_rank(measurements: Sequence[Measurement], of: Measurement) -> list[Measurement]:
    """The same case and model on one rank, on whichever device; none for one rank itself."""
    return [
        m
        for m in measurements
        if m.case == of.case
        and m.settings["model"] == of.settings["model"]
        and m.ranks == 1 < of.ranks
    ]


def _comparable(one: Measurement, other: Measurement) -> bool:
    """Whether their times are of the same code on the same kind of device."""
    return (one.device, one.commit) == (other.device, other.commit)


def notes(measurements: Sequence[Measurement]) -> list[str]:
    """Rows that are missing although their measurements are there, and why."""
    said: list[str] = []
    for of in measurements:
        ones = _on_one_rank(measurements, of)
        if of.kind == "ard" and of.ranks > 1 and not any(_comparable(m, of) for m in ones):
            places = [f"{m.device} at {m.commit}" for m in ones]
            had = f"one rank on {', '.join(places)}" if places else "one rank was not"
            said.append(
                f"throughput_over_one of {of.case}, {of.settings['model']}: {of.ranks} ranks were "
                f"measured on {of.device} at {of.commit}, and {had}; measure both with one commit "
                "on one kind of device"
            )
    return said


def _case_rows(of: Measurement, speed: str, add: Any) -> None:
    add(speed, of.tokens_per_second, "tokens/s, median step", of)
    add("peak_gib", of.peak_gib, "GiB a rank", of, build_peak_gib=of.build_peak_gib)
    add("weights_gib_per_rank", of.weights_gib, "GiB", of)
    if of.matrix_rate:
        rate = of.flops / of.step_seconds / of.ranks
        add("mfu", rate / of.matrix_rate, "of the device's dense rate", of)
    error = 100 * abs(of.planned_gib / of.peak_gib - 1)
    add("plan_error_memory", error, "%", of, planned=of.planned_gib, measured=of.peak_gib)
    if of.planned_seconds:
        error = 100 * abs(of.planned_seconds / of.step_seconds - 1)
        add(
            "plan_error_time",
            error,
            "%",
            of,
            planned=of.planned_seconds,
            measured=of.step_seconds,
        )


def _shared_rows(of: Measurement, measurements: Sequence[Measurement], add: Any) -> None:
    """Of ranks that share each block."""
    if (name := _SHARED_ROWS.get(of.settings["tokens"])) is not None:
        more = {"losses": of.losses, "peak_gib": of.peak_gib, "planned_gib": of.planned_gib}
        seconds = {"step_seconds": of.step_seconds, "planned_seconds": of.planned_seconds}
        add(name, of.tokens_per_second, "tokens/s", of, **more, **seconds)
    one = next((m for m in measurements if m.case == of.case and m.ranks == 1), None)
    if one and one.losses and one.device == of.device:
        ratio = of.losses[0] / one.losses[0]
        both = {"losses": of.losses, "losses_of_one_rank": one.losses}
        add("sequence_parallel_loss", ratio, "of one rank's first loss", of, **both)


def _like(measurements: Sequence[Measurement], of: Measurement, kind: str) -> Measurement | None:
    """A part's measurement under the same settings, as far as they matter to it."""
    same = ["model", "tokens", "compile", "ranks", "micro_batch", "graphs", "fused"]
    if kind != "teacher":
        same += ["checkpointing", "tokens_per_step"]
    if kind == "sums":
        same += ["share_base", "keep"]
    fitting = (
        found
        for found in measurements
        if found.kind == kind
        and found.device == of.device
        and all(found.settings.get(name) == of.settings.get(name) for name in same)
    )
    return next(fitting, None)


def load(path: Path) -> list[Measurement]:
    """Measurements of a result file; none where there is no file."""
    if not path.is_file():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    return [Measurement(**entry) for entry in held]


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of `benchmarks.whole` that a result file holds: they alone say their versions."""
    if not path.is_file():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in held if "versions" in row]


def _whole_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("name", "model", "case", "stage", "ranks", "device"))


def write(
    path: Path, measurements: Sequence[Measurement], whole: Sequence[dict[str, Any]] = ()
) -> None:
    """Write the result file, and print what is missing from its rows.

    The newest of measurements of the same case, model, ranks and device stays.

    Args:
        path: the file; rows of whole runs that it holds stay in it.
        measurements: of steps.
        whole: new rows of whole runs.
    """
    runs = list({_whole_key(row): row for row in [*whole_rows(path), *whole]}.values())
    newest = {m.key: m for m in measurements}
    order = list(CASES)
    kept = sorted(
        newest.values(),
        key=lambda m: (m.device, m.settings["model"], order.index(m.case), m.ranks),
    )
    where = [(m.versions, m.device, m.commit) for m in kept]
    where += [(row["versions"], row["device"], row["commit"]) for row in runs]
    missing = notes(kept)
    for note in missing:
        print(f"note: {note}", flush=True)
    result = {
        "device": ", ".join(dict.fromkeys(d for _, d, _ in where)),
        "versions": _common([versions for versions, _, _ in where]),
        "commit": _common([commit for _, _, commit in where]),
        "command": f"python -m benchmarks.step --cases {','.join(m.case for m in kept)}",
        "script": "python -m benchmarks.step",
        "rows": [*rows(kept), *runs],
        "notes": missing,
        "measurements": [asdict(m) for m in kept],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def _common(values: Sequence[Any]) -> Any:
    """What all measurements share; where they differ, each says its own."""
    return values[0] if all(value == values[0] for value in values) else "as each measurement says"


def replanned(of: Measurement) -> Measurement:
    """A measurement beside what the present code plans for its settings.

    Raises:
        SystemExit: its device is none that a plan can be made for.
    """
    kinds = [kind for kind in ACCELERATORS if kind in of.device.lower()]
    if not kinds:
        sys.exit(f"error: --replan: no plan can be made for {of.device}")
    settings = composed(CASES[of.case], of.settings["model"], quick=False, ranks=of.ranks)
    # The names of devices are those that `plan_for` allows.
    settings = replace(settings, dry_run=True, plan_for=kinds[0])  # type: ignore[arg-type]
    planned = plan.make(settings, world_size=of.ranks).stage(STAGE)
    return replace(of, planned_gib=planned.peak / 2**30, planned_seconds=planned.seconds_per_step)


def chosen(names: str | None) -> list[str]:
    """Cases by name; without names, all but those of ranks that share blocks.

    Raises:
        SystemExit: an unknown case.
    """
    if names is None:
        return [name for name, case in CASES.items() if not case.shared]
    found = names.split(",")
    if unknown := [name for name in found if name not in CASES]:
        sys.exit(f"error: {', '.join(unknown)} unknown; cases: {', '.join(CASES)}")
    return found


def _in_a_process(name: str, given: argparse.Namespace, ranks: int) -> bool:
    """Measure a case in a process of its own, or in so many; whether it ended well."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "benchmarks.step", "--case", name, "--out", str(given.out)]
    command += ["--model", given.model, *(["--quick"] if given.quick else [])]
    command += ["--commit", given.commit] if given.commit else []
    command += ["--profile"] if given.profile else []
    print(f"measuring {name} on {ranks} {'rank' if ranks == 1 else 'ranks'}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(CASE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # so that torchrun ends its ranks
        process.wait()
        print(f"{name}: not done after {CASE_SECONDS} s", flush=True)
        return False
    if code:
        print(f"{name}: failed with exit code {code}", flush=True)
    return code == 0


def _here(name: str, given: argparse.Namespace, world: World) -> None:
    if given.profile:
        profiled(name, given)
        return
    measured = measure(name, given.model, world, quick=given.quick, commit=given.commit)
    if world.is_main:
        write(given.out, [*load(given.out), measured])
        print(
            f"{name}: {measured.tokens_per_second:,.0f} tokens/s, peak {measured.peak_gib:.2f} GiB "
            f"(planned {measured.planned_gib:.2f}), step {measured.step_seconds:.3f} s "
            f"(planned {measured.planned_seconds or float('nan'):.3f})",
            flush=True,
        )


def main() -> None:
    """Measure, or merge files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", help="names of cases, by commas")
    parser.add_argument("--model", default="llama2_7b", help="a model whose shape is known")
    parser.add_argument("--ranks", default="1", help="numbers of ranks of this machine, by commas")
    parser.add_argument("--quick", action="store_true", help="the tiny model, to see that it works")
    parser.add_argument("--profile", action="store_true", help="profile the cases on one GPU")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--merge", type=Path, nargs="+", help="result files to put into --out")
    parser.add_argument(
        "--replan", action="store_true", help="put the present plan beside --out's measurements"
    )
    parser.add_argument("--commit", help="commit of the code, where there is no repository")
    parser.add_argument("--list", action="store_true", help="show the cases and end")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        for name, case in CASES.items():
            print(f"{name:16} {case.kind:8} {case.length:6} tokens  {' '.join(case.overrides)}")
        return
    if given.merge:
        held = [m for path in given.merge for m in load(path)]
        runs = [row for path in given.merge for row in whole_rows(path)]
        write(given.out, [*load(given.out), *held], runs)
        return
    if given.replan:
        write(given.out, [replanned(m) for m in load(given.out)])
        return
    world = launch.world_from_environment(os.environ)
    if given.case or world:
        names = [given.case] if given.case else chosen(given.cases)
        for name in names:
            _here(name, given, world or World())
        return
    names = chosen(given.cases)
    failed = [
        f"{name} on {ranks}"
        for name in names
        for ranks in map(int, given.ranks.split(","))
        if not _in_a_process(name, given, ranks)
    ]
    if failed:
        sys.exit(f"error: not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
