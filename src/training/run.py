"""One training run on one rank: stages in order, then export, evaluation and tracking."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from src import tracking
from src.data.corpus import TrainingBlocks
from src.data.documents import DataError
from src.evals import running
from src.evals.suites import SUITES
from src.models.exporting.whole import ExportError
from src.models.merging import MergeConfig
from src.objectives.base import Objective
from src.planning import plan
from src.planning.devices import device_of, dtype_of, uses_cuda
from src.run_folder import RunFolder, write_json
from src.settings.config import RunConfig
from src.training import checkpoint, launch, profiling, signals, stage
from src.training.card import add_scores, model_card
from src.training.checkpoint import Checkpoint, Position, Saver
from src.training.engine.student import Student
from src.training.export import Export
from src.training.interim import Interim
from src.training.launch import World
from src.training.loop import StageRun, StepRecord
from src.training.publishing import push
from src.training.signals import Stopped
from src.training.texts import Data, prepare_data
from src.training.watch import Watch


class FrozenTeacherError(RuntimeError):
    """The teacher's weights changed during training."""


def execute(config: RunConfig, folder: RunFolder, world: World) -> None:
    """Train, export and evaluate; every rank calls it.

    Rank 0 writes the run's record. However the run ends, its state is recorded and the tracker is
    closed.
    """
    tracker = tracking.Tracker()
    succeeded = False
    try:
        if world.is_main:
            folder.reserve()
        if config.deterministic:
            be_deterministic()
        with signals.stoppable(), launch.joined(world, cuda=uses_cuda(config.engine.device)):
            if world.is_main:
                tracker = _start_tracker(config, folder)
            with checkpoint.Saver(folder, config.checkpoint.keep) as saver:
                run = _Run(config, folder, world, tracker, saver)
                run.train()
            launch.leave(world)
            if world.is_main:
                results = None
                if config.eval.suites():
                    results = running.evaluate_finished(config, folder)
                    results.report(tracker)
                if config.tracking.mode != "disabled":
                    _hand_over(config, run.plan, folder, tracker)
                if results is not None:
                    _score_card(config, folder, results)
                    # This raises if a suite failed, so the results are handed over before.
                    results.check()
                if config.export.push is not None:
                    print(f"pushed to {push(folder.export(), config.export)}")
        succeeded = True
        if world.is_main:
            folder.end("finished")
    except KeyboardInterrupt as stopped:
        if world.is_main:
            folder.end("interrupted", f"{stopped}; go on with resume={folder.path}")
        raise
    except BaseException as error:
        if number := signals.received():
            if world.is_main:
                folder.end("interrupted", f"stopped; go on with resume={folder.path}")
            raise Stopped(number) from error
        if world.is_main:
            folder.end("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        tracker.finish(succeeded=succeeded)


def be_deterministic() -> None:
    """Let torch use deterministic kernels only. Call it before anything runs on a GPU."""
    # cuBLAS reads it when it is set up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling new tensors finds reads of memory that nobody wrote; it makes nothing deterministic.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _hand_over(
    config: RunConfig, planned: plan.Plan, folder: RunFolder, tracker: tracking.Tracker
) -> None:
    """Give the tracker totals, the figures of the page, and the model if it is asked for."""
    # Imported here because the page's modules take a second to load.
    from src.report.tracked import run_figures

    record = folder.record()
    totals = {key: record[key] for key in ("tokens", "seconds", "step")}
    tracker.summarize({f"total/{key}": value for key, value in totals.items()})
    tracker.summarize({"total/flops": planned.flops})
    tracker.log_figures(run_figures(folder.path))
    tracker.log_model(folder.export(), name=f"{config.experiment}-{record['run_id']}")


def _score_card(config: RunConfig, folder: RunFolder, results: running.Evaluated) -> None:
    """Write the scores of a finished run into the card of its export."""
    tables = [t for name, record in results.records.items() for t in SUITES[name].tables(record)]
    last = list(config.recipe.stages)[-1]
    add_scores(folder.export(), config, folder.record(), last, tables)


def _start_tracker(config: RunConfig, folder: RunFolder) -> tracking.Tracker:
    record = folder.record()
    sweep = config.sweep
    group = config.tracking.group or (sweep.name if sweep else None)
    sweep_tags = [f"sweep:{sweep.name}", f"sweep:{sweep.id}"] if sweep else []
    return tracking.start(
        replace(config.tracking, group=group),
        run_dir=folder.path,
        run_id=record["run_id"],
        name=f"{config.experiment}-{record['run_id']}",
        job_type=config.recipe.name,
        tags=[config.experiment, config.model.name, *config.tags, *sweep_tags],
        settings=asdict(config),
    )


class _Run:
    """The stages of a run, from its newest checkpoint on."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        world: World,
        tracker: tracking.Tracker,
        saver: Saver,
    ) -> None:
        self.config = config
        self.folder = folder
        self.world = world
        self.tracker = tracker
        self.saver = saver
        self.plan = plan.make(config, world_size=world.size)
        self.names = list(config.recipe.stages)
        self.seconds_before = float(folder.record()["seconds"])
        self.began = time.perf_counter()
        self.saving = 0.0  # seconds that the stage has waited for its saves

    def train(self) -> None:
        """Train all unfinished stages."""
        resumed = self._resumed()
        first = self.names.index(resumed.position.stage) if resumed else 0
        key = self.folder.record()["corpus"]
        data = prepare_data(self.config, key=key)
        if data.corpus.key != key:
            raise DataError(
                f"data: the texts on this machine differ from rank 0's (corpus "
                f"{data.corpus.key[:12]}, not {key[:12]}): copy them, or share their folder"
            )
        for index in range(first, len(self.names)):
            asked = self.config.recipe.stages[self.names[index]]
            if isinstance(asked, MergeConfig):
                self._merge_stage(index, asked)
            else:
                self._train_stage(index, data, resumed if index == first else None)

    def _resumed(self) -> Checkpoint | None:
        """The checkpoint to go on from: rank 0's choice. It drops metrics of steps after it."""
        chosen = None
        if self.world.is_main:
            chosen = checkpoint.newest(self.folder)
            if chosen is None:
                self.folder.forget_metrics()
            elif (said := checkpoint.restore_metrics(self.folder, chosen)) is not None:
                print(said, file=sys.stderr)
        return launch.agreed(chosen)

    def _train_stage(self, index: int, data: Data, resumed: Checkpoint | None) -> None:
        config, name = self.config, self.names[index]
        start = resumed.position.stage_step if resumed else 0
        weights = self.folder.export(self.names[index - 1]) if index else config.student.folder
        building = time.perf_counter()
        cuda = uses_cuda(config.engine.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        objectives = self._objectives(name, data, weights)
        planned = self.plan.stage(name)
        engines = stage.build_engines(config, name, planned, objectives, weights=weights)
        verified = engines.has_teacher and config.engine.teacher.verify_frozen
        sha256 = engines.teacher_sha256() if verified else None
        if resumed is not None:
            with resumed.state() as saved:
                engines.student.load(saved)
        interim = None
        if config.eval.every_steps:
            interim = Interim.of(config, name, data.corpus, device_of(config.engine.device))
        training = time.perf_counter()
        watch = Watch(line for line in self.folder.metrics() if line["stage"] == name)
        loop = stage.stage_run(config, planned, engines, data.blocks[name], self.world, watch)
        self.saving = 0.0
        with signals.deferred() as asked:
            loop.train(
                start,
                lambda record: self._after_step(loop, engines.student, record, interim),
                lambda step: self._saves_after(name, step) or self._looks_after(name, step),
                self._around(name, start),
                asked,
            )
        peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {}
        trained = engines.student.trained_parameters()
        if sha256 is not None:
            after = engines.teacher_sha256()
            if self.world.is_main:
                self.folder.update(teacher_sha256={"before": sha256, "after": after})
            if after != sha256:
                raise FrozenTeacherError(
                    f"the teacher's weights changed: sha256 {sha256} -> {after}"
                )
        engines.close()
        exporting = time.perf_counter()
        if self.world.is_main:
            self._export(index, trained, weights)
        exported = time.perf_counter()
        self._saving(self.saver.wait)
        if self.world.is_main:
            done = time.perf_counter()
            seconds = {
                "build_seconds": training - building,
                "seconds": done - training,
                "save_seconds": self.saving,
                "export_seconds": exported - exporting,
            }
            self._record_stage(name, seconds | peak)
        distributed.barrier()

    def _merge_stage(self, index: int, asked: MergeConfig) -> None:
        name, began = self.names[index], time.perf_counter()
        if self.world.is_main:
            weights = self.folder.export(self.names[index - 1])
            self._export_of(index).write_merged(weights, asked)
            self._record_stage(name, {"seconds": time.perf_counter() - began})
        distributed.barrier()

    def _export_of(self, index: int) -> Export:
        """What a stage's model is exported to."""
        config, name = self.config, self.names[index]
        last = index == len(self.names) - 1
        return Export(
            self.folder.export(None if last else name),
            config.model,
            config.rope,
            dtype_of(config.engine.dtype),
            card=model_card(config, self.folder.record(), name),
            gguf=config.export.gguf and last,
        )

    def _export(self, index: int, trained: Mapping[str, Tensor], weights: Path | None) -> None:
        config, name = self.config, self.names[index]
        try:
            parameters = config.recipe.training[name].parameters
            self._export_of(index).write_trained(
                trained, parameters, weights=weights, seed=config.seed
            )
        except ExportError as error:
            step = self.plan.stage(name).steps
            raise ExportError(f"stage {name}, step {step}: {error}") from error

    def _around(self, name: str, start: int) -> Callable[[int], AbstractContextManager[None]]:
        """What a stage's steps run in: a profile of a few of them, on rank 0, if asked for."""
        if not (self.config.profile and self.world.is_main):
            return lambda step: nullcontext()
        file = self.folder.path / "profile" / f"{name}.json.gz"
        steps = self.plan.stage(name).steps
        device = device_of(self.config.engine.device)
        return profiling.StepProfile(file, start, steps, device).around

    def _objectives(self, name: str, data: Data, weights: Path | None) -> dict[str, Objective]:
        """A stage's objectives by stream, their layers chosen by drift if they await it."""
        objectives = self.config.objectives(name)
        asking = [stream for stream, o in objectives.items() if o.awaits_drift]
        if not asking:
            return objectives
        drift = self._drift(name, data.blocks[name][asking[0]], weights)
        return {stream: o.with_drift(drift) for stream, o in objectives.items()}

    def _drift(self, name: str, blocks: TrainingBlocks, weights: Path | None) -> list[float]:
        """The stage's attention drift, the same on every rank and after a resume.

        It is measured once and recorded, so that a run that resumes, maybe on another GPU, chooses
        the same layers.
        """
        recorded = self.folder.record().get("attention_drift", {}) if self.world.is_main else {}
        if (drift := launch.agreed(recorded.get(name))) is None:
            drift = stage.measured_drift(self.config, blocks, weights)
            if self.world.is_main:
                self.folder.update(attention_drift=recorded | {name: drift})
        return drift

    def _after_step(
        self, loop: StageRun, student: Student, record: StepRecord, interim: Interim | None
    ) -> None:
        name = loop.name
        if interim is not None and self._looks_after(name, record.step):
            record = replace(record, metrics=record.metrics | interim.figures(student))
        steps_before, tokens_before = self._before(name)
        step, tokens = steps_before + record.step, tokens_before + record.tokens
        seconds = self.seconds_before + time.perf_counter() - self.began
        if self.world.is_main:
            entry = {"step": step, "tokens": tokens, "stage": name, "seconds": round(seconds, 3)}
            self._flag(loop, entry, record)
            self.folder.log(entry | record.metrics)
            counters = {"tokens": tokens, "flops": self._flops(name, record.tokens)}
            self.tracker.log(counters | {"seconds": seconds} | record.metrics, step=step)
        if record.stops or self._saves_after(name, record.step):
            position = Position(step, name, record.step, tokens, self.world.size)
            saved = partial(self._record_save, step=step, tokens=tokens, seconds=round(seconds, 3))
            self._saving(partial(self.saver.save, student, position, saved))
            if record.stops:
                self._saving(self.saver.wait)

    def _record_save(self, **done: float) -> None:
        if self.world.is_main:
            self.folder.update(**done)

    def _saving(self, work: Callable[[], None]) -> None:
        """Do a part of a save, and count its time."""
        began = time.perf_counter()
        work()
        self.saving += time.perf_counter() - began

    def _flag(self, loop: StageRun, entry: dict[str, Any], record: StepRecord) -> None:
        """Say that a step was skipped or is a spike; keep what a skipped one has read."""
        if not record.documents:
            return
        entry["documents"] = list(record.documents)
        numbers = {key: record.metrics[key] for key in ("loss/total", "grad_norm")}
        what = "skipped, as a number is not finite" if record.skipped else "a spike"
        said = f"stage {loop.name}, step {record.step}: {what} ({numbers}); documents: "
        print(said + ", ".join(record.documents), file=sys.stderr)
        if record.skipped:
            kept = _keep_batch(self.folder.path / "replay", loop, record.step - 1)
            print(f"its blocks are kept in {kept}", file=sys.stderr)

    def _saves_after(self, name: str, step: int) -> bool:
        """Whether a checkpoint is written after this step of the stage, counted from 1."""
        every = self.config.checkpoint.every_steps
        return step == self.plan.stage(name).steps or (self._before(name)[0] + step) % every == 0

    def _looks_after(self, name: str, step: int) -> bool:
        """Whether the student is scored after this step of the stage, counted from 1."""
        every = self.config.eval.every_steps
        return every is not None and (self._before(name)[0] + step) % every == 0

    def _before(self, name: str) -> tuple[int, int]:
        """Steps and tokens of the stages before this one."""
        earlier = self._earlier(name)
        return sum(stage.steps for stage in earlier), sum(stage.tokens for stage in earlier)

    def _earlier(self, name: str) -> list[plan.StagePlan]:
        """The stages before this one that train."""
        names = self.names[: self.names.index(name)]
        return [stage for stage in self.plan.stages if stage.name in names]

    def _flops(self, name: str, tokens: int) -> float:
        """Planned floating-point operations up to this many tokens of a stage."""
        here = self.plan.stage(name)
        earlier = sum(stage.flops for stage in self._earlier(name))
        return earlier + here.flops * tokens / here.tokens

    def _record_stage(self, name: str, measured: Mapping[str, float]) -> None:
        """Record a finished stage. `seconds` counts from its first step to its export."""
        tokens = steps = 0
        if name in self.config.recipe.training:
            tokens, steps = self.plan.stage(name).tokens, self.plan.stage(name).steps
        stages = [s for s in self.folder.record()["stages"] if s["name"] != name]
        entry: dict[str, Any] = {"name": name, "tokens": tokens, "steps": steps}
        entry |= {key: round(value, 3) for key, value in measured.items()}
        self.folder.update(stages=[*stages, entry])
        figures = {"tokens": tokens, **measured}
        self.tracker.summarize({f"stage/{name}/{key}": v for key, v in figures.items()})


def _keep_batch(folder: Path, run: StageRun, step: int) -> Path:
    """Write all ranks' blocks of a stage's step, counted from 0, in place of an earlier step's."""
    folder.mkdir(exist_ok=True)
    blocks = [
        {
            "stream": piece.stream,
            "block": piece.block,
            "documents": list(run.batches.blocks[piece.stream].documents(piece.block)),
            "tokens": piece.tokens,
            "ids": run.batches.tokens(piece).tolist(),
        }
        for piece in run.schedule.pieces(step)
    ]
    file = folder / f"{run.name}.json"
    seed = run.batches.seed
    write_json(file, {"stage": run.name, "step": step + 1, "seed": seed, "blocks": blocks})
    return file
