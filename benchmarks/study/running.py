"""Runs jobs as processes of the project's own commands, several on a GPU, and writes their rows."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.study import phases, scores
from benchmarks.study.grid import Grid, Job
from src.multirun import process
from src.multirun.composition import identity
from src.multirun.local import core_shares, visible_gpus
from src.multirun.process import Share
from src.planning.devices import GPU_SHARE, gpus
from src.results import Role
from src.run_folder import (
    RunFolder,
    device_name,
    versions,
    whole_checkpoints,
    write_json,
    write_whole,
)
from src.settings import loading, strict
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
_PLAIN = re.compile(r"[A-Za-z0-9_/.-]+")


class Results:
    """The rows of a study, as `runs.json` holds them, and the items of the tests beside it."""

    def __init__(self, folder: Path, commit: str | None) -> None:
        """Read the rows that there are.

        Raises:
            ConfigError: the file is damaged.
        """
        self.folder = folder
        self._commit = commit
        self.rows: list[dict[str, Any]] = []
        if not self.file.is_file():
            return
        try:
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--out: {self.file} cannot be read ({type(error).__name__}: {error}): restore it, "
                "or give another folder"
            ) from error

    @property
    def file(self) -> Path:
        """The file of the rows."""
        return self.folder / "runs.json"

    def add(self, row: Mapping[str, Any], items: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Add a row, with the items of its tests by model, and write both."""
        where = {"commit": self._commit, "device": device_name(), "versions": versions()}
        self.rows.append({**row, **where})
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, by_task in items.items():
            write_items(self.folder / "items" / f"{name}.json", by_task)
        write_json(
            self.file,
            {"schema": SCHEMA, "script": "python -m benchmarks.study", "rows": self.rows},
        )


def write_items(file: Path, by_task: Mapping[str, Sequence[float]]) -> None:
    """Write the scores of items, a task a line; most are 0 or 1."""
    lines: list[str] = []
    for task, values in by_task.items():
        short = [int(value) if value == int(value) else value for value in values]
        lines.append(f"{json.dumps(task)}: {json.dumps(short, separators=(',', ':'))}")
    file.parent.mkdir(exist_ok=True)
    write_whole(file, ("{" + ",\n".join(lines) + "}\n").encode())


@dataclass
class Running:
    """A job and its process, on its part of the machine."""

    job: Job
    process: Any
    command: list[str]
    began: float
    part: Share


class Pool:
    """Runs what is ready, `jobs` at a time on each GPU, until nothing is or the time is over."""

    def __init__(
        self,
        grid: Grid,
        results: Results,
        work: Path,
        *,
        jobs: int = 1,
        start: Callable[[list[str], Path, Share], Any] | None = None,
    ) -> None:
        """Args:
        grid: what is run.
        results: what is known.
        work: folder of the runs.
        jobs: at a time on a GPU; without GPUs, on this machine.
        start: starts a command, with its log and its part of the machine.
        """
        self.grid, self.results, self.work, self._jobs = grid, results, work, jobs
        self._start = start or started
        self._running: list[Running] = []
        self._free = parts(jobs, visible_gpus() if gpus() else [])
        self.failed: dict[str, str] = {}

    def run(self, time_limit: float | None = None) -> None:
        """Run; whatever ends this ends its runs.

        Args:
            time_limit: in seconds. What would not end in time, by the longest job of its phase so
                far, is not started; what runs when the time is over is stopped.

        Raises:
            ConfigError: another call runs in the same folder.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.work / "lock").acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"--work: {self.work} is being run by another call: wait until it ends, or name "
                "other folders with --out and --work"
            ) from None
        with held:
            self._run_all(time_limit)

    def _run_all(self, time_limit: float | None) -> None:
        ends = math.inf if time_limit is None else time.monotonic() + time_limit
        try:
            while (waiting := list(self._ready())) or self._running:
                left = ends - time.monotonic()
                ending = [job for job in waiting if self._longest(job) <= left]
                for job in ending[: len(self._free)]:
                    self._begin(job)
                if left <= 0 or not (ending or self._running):
                    print("the time is over; the same command goes on", flush=True)
                    return
                time.sleep(0.2)
                for ran in [ran for ran in self._running if ran.process.poll() is not None]:
                    self._ended(ran)
        finally:
            process.stop([ran.process for ran in self._running])

    def _longest(self, job: Job) -> float:
        """Seconds of the longest job of the same model and phase; 0 where there was none."""
        kin = ((row["model"], row["phase"], row.get("job_seconds", 0)) for row in self.results.rows)
        return max((s for *of, s in kin if of == [job.model, job.phase]), default=0)

    def _ready(self) -> Iterator[Job]:
        busy = {ran.job.name for ran in self._running} | self.failed.keys()
        asked: set[str] = set()
        for job in phases.ready(self.grid, self.results.rows):
            first = job.phase == "untrained" and not scores.untrained(self.results.rows, job.model)
            if job.name not in busy and not (first and job.model in asked):
                yield job
            if first:  # a native model is evaluated once, not by several processes at a time
                asked.add(job.model)

    def _begin(self, job: Job) -> None:
        command = self.command(job)
        if command is None:  # a call before this one ended between the run and its row
            self._finished(job, 0.0)
        else:
            self._run(job, command, time.monotonic(), self._free.pop(0))

    def _run(self, job: Job, command: list[str], began: float, part: Share) -> None:
        print(f"$ {shlex.join(['python', *command])}", flush=True)
        started = self._start(command, self._log(job), part)
        self._running.append(Running(job, started, command, began, part))

    def command(self, job: Job) -> list[str] | None:
        """A job's next command, by what its folder holds; None when it is done.

        A run that was cut off is resumed.
        """
        grid, folder = self.grid.of(job.model), RunFolder(self.work / job.run)
        model, scaling = grid.models[job.model], grid.scalings[job.scaling]
        if job.method == "untrained":
            split = "validation" if job.phase == "untrained" else "test"
            if scores.evaluated(folder.evals, "native", split):
                return None
            return ["-m", "src.evaluate", *asked_untrained(grid, job), _place("out", folder.evals)]
        if not _trained(folder) or self._lost(job, folder):
            if whole_checkpoints(folder):
                return ["-m", "src.train", _place("resume", folder.path)]
            # Later ones win: an experiment names a scaling.
            return [
                *("-m", "src.train", *grid.trained(job.method).settings),
                *(*model.settings, *scaling, *grid.settings),
                *(f"{key}={value:g}" for key, value in job.params.items()),
                *(
                    f"budget={job.budget}",
                    f"seed={job.seed}",
                    _place("run_dir", folder.path),
                    "eval=none",
                ),
            ]
        # Untrained models have rows of their own; drift is measured from the native one.
        asked = [_place("run", folder.path), "stages=last_alone"]
        # Further seeds of what was chosen are tested alone.
        further = job.phase == "final" and job.seed != grid.seeds[0]
        if not further and not scores.evaluated(folder.evals, "final", "validation"):
            return ["-m", "src.evaluate", *asked, "eval=validation", *model.validation]
        if job.phase == "final" and not scores.evaluated(folder.evals, "final", "test"):
            return ["-m", "src.evaluate", *asked, "eval=test", *model.test]
        if job.phase == "measure" and not scores.measured(folder.evals):
            asked = [_place("run", folder.path), "stages=last"]
            return ["-m", "src.evaluate", *asked, "eval=measures", *model.measures]
        return None

    @staticmethod
    def _lost(job: Job, folder: RunFolder) -> bool:
        """Whether a model that is still to be asked is gone; its folder is removed then."""
        gone = job.phase in ("final", "measure") and not folder.export().is_dir()
        if gone:
            shutil.rmtree(folder.path)
        return gone

    def _log(self, job: Job) -> Path:
        return self.work / "logs" / f"{job.name}.log"

    def _ended(self, ran: Running) -> None:
        self._running.remove(ran)
        code, folder = ran.process.returncode, RunFolder(self.work / ran.job.run)
        command = None if code else self.command(ran.job)
        if _diverged(folder):
            self._finished(ran.job, time.monotonic() - ran.began)
        elif code or command == ran.command:
            why = f"exit code {code}" if code else "it left no results"
            self.failed[ran.job.name] = f"{ran.job.name}: {why}; see {self._log(ran.job)}"
            print(self.failed[ran.job.name], flush=True)
        elif command is None:
            self._finished(ran.job, time.monotonic() - ran.began)
        else:
            self._run(ran.job, command, ran.began, ran.part)
            return
        self._free.append(ran.part)

    def _finished(self, job: Job, seconds: float) -> None:
        folder = RunFolder(self.work / job.run)
        row, items = row_of(job, folder)
        if job.method == "untrained":
            asked = asked_untrained(self.grid.of(job.model), job)
            settings = asdict(loading.compose(EvaluateConfig, "evaluate", asked))
            text = json.dumps(settings, sort_keys=True)
            row["config_hash"] = hashlib.sha256(text.encode()).hexdigest()
        # Runs that share a GPU take longer than one alone.
        row |= {"at_once": self._jobs, "job_seconds": round(seconds, 1)}
        self.results.add(row, items)
        # The best of the whole runs are tested later; a model can be trained again from its row.
        grid = self.grid.of(job.model)
        tested_later = job.phase in ("search", "whole") and job.budget == grid.budget
        measured_later = job.phase == "final" and job.seed == grid.seeds[0]
        measured_later &= job.method in grid.measured
        kept = {folder.export()} if tested_later or measured_later else set()
        for bulk in {folder.checkpoints, *folder.path.glob("export*")} - kept:
            shutil.rmtree(bulk, ignore_errors=True)
        value = "evaluated"
        if row.get("error"):
            value = "diverged"
        elif job.method != "untrained" and row["validation"]:
            value = f"{scores.choice(self.results.rows, row, self.grid.floor):.4f}"
        print(f"{job.name}: {value} after {seconds:.0f} s", flush=True)


def asked_untrained(grid: Grid, job: Job) -> list[str]:
    """The settings of `src.evaluate` for a job that trains nothing; `grid` is of its model."""
    model = grid.models[job.model]
    split, items = "test", model.test
    if job.phase == "untrained":
        split, items = "validation", model.validation
    return [*model.settings, *grid.scalings[job.scaling], f"eval={split}", *items]


def preparations(grid: Grid) -> Iterator[list[str]]:
    """Commands that fetch and make what the models of a grid read, and start nothing."""
    for name, model in grid.models.items():
        of = grid.of(name)
        method = next(iter(of.methods.values()))
        asked = {"validation": model.validation, "test": model.test}
        if of.measured:
            asked["measures"] = model.measures
        for suites, items in asked.items():
            yield [
                *("-m", "src.train", *method.settings, *model.settings, *of.scalings[of.tried[-1]]),
                *(*of.settings, f"eval={suites}"),
                # Others are of src.evaluate alone.
                *(item for item in items if item.startswith("eval.")),
                "prepare=true",
            ]


def row_of(job: Job, folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of a job that has ended, and the items of its tests by name of their file."""
    row: dict[str, Any] = {**job.about, "validation": None}
    if job.phase == "untrained":
        row |= {"native": scores.evaluated(folder.evals, "native", "validation")}
        return row | {"validation": scores.evaluated(folder.evals, "scaled", "validation")}, {}
    if job.phase == "baseline":
        roles: dict[str, Role] = {
            f"{job.model}-native": "native",
            f"{job.model}-{job.scaling}-untrained": "scaled",
        }
        return _tested(row, folder, roles)
    record = folder.record()
    row |= {key: record[key] for key in ("tokens", "seconds", "stages", "error")}
    row["config_hash"] = identity(strict.load_plain(RunConfig, folder.config()))
    if record["state"] != "finished":
        return row, {}
    row["validation"] = scores.evaluated(folder.evals, "final", "validation")
    if job.phase == "measure":
        row["measures"] = scores.measured(folder.evals)
    if job.phase != "final":
        return row, {}
    return _tested(row, folder, {job.name: "final"})


def _tested(
    row: dict[str, Any], folder: RunFolder, roles: Mapping[str, Role]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row with the tests of models by name, and their items."""
    row["test"] = {n: scores.evaluated(folder.evals, role, "test") for n, role in roles.items()}
    return row, {name: scores.items(folder.evals, role) for name, role in roles.items()}


def started(command: list[str], log: Path, part: Share) -> subprocess.Popen[bytes]:
    """Start a command of the project on its part of the machine."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | dict(part.environment),
            preexec_fn=process.Binding(os.getpid(), part.cores),
        )


def parts(jobs: int, devices: Sequence[str]) -> list[Share]:
    """The parts of this machine that run a job each: of a GPU's memory, and of the cores.

    Neighbours are on different GPUs. Threads of two processes on the same cores would wait for each
    other, so each has its own.

    Args:
        jobs: at a time on a GPU; without GPUs, on this machine.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES names them.
    """
    number = jobs * max(1, len(devices))
    made: list[Share] = []
    for i, share in enumerate(core_shares(number, number)):
        own = dict(share.environment)
        if devices:
            own["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
        if devices and jobs > 1:
            own[GPU_SHARE] = repr(1 / jobs)
        made.append(Share(own, share.cores))
    return made


def _place(key: str, folder: Path) -> str:
    """A setting that names a folder, in quotes if Hydra would not read it."""
    text = str(folder)
    return f"{key}={text if _PLAIN.fullmatch(text) else process.quoted(text)}"


def _trained(folder: RunFolder) -> bool:
    return folder.record_file.is_file() and folder.record()["state"] == "finished"


def _diverged(folder: RunFolder) -> bool:
    if not folder.record_file.is_file():
        return False
    return (folder.record()["error"] or "").startswith("FloatingPointError")
