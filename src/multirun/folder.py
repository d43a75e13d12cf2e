"""The folder of a sweep, and the state of each of its jobs.

`outputs/sweeps/NAME/ID/` holds `sweep.json` (the jobs, by the hash of their configs), a run folder
for each job, and `logs/`. The state of a job is read from its run folder, so it is right even after
a killed command, or if a job went on elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from src.multirun.composition import Job
from src.run_folder import LOCK, RunFolder, RunFolderError, new_run_id, write_json
from src.settings.config import SweepJob

SCHEMA = 1
SWEEP_FILE = "sweep.json"
OUTPUTS = Path("outputs") / "sweeps"
# Seconds that a killed job may need to release its folder.
_PATIENCE = 5.0

State = Literal["missing", "running", "failed", "interrupted", "finished"]


class SweepError(ValueError):
    """A sweep's folder cannot be used, or is in use."""


@dataclass(frozen=True)
class KnownJob:
    """A job in `sweep.json`."""

    number: int
    hash: str
    overrides: tuple[str, ...]
    folder: str  # of its run, inside the sweep's


@dataclass(frozen=True)
class SweepRecord:
    """`sweep.json`."""

    schema: Literal[1]
    name: str
    id: str
    created_at: str
    command: str
    jobs: tuple[KnownJob, ...]


@dataclass(frozen=True)
class SweepFolder:
    """A sweep that has been started."""

    path: Path
    record: SweepRecord

    @classmethod
    def create(cls, path: Path | None, name: str, command: str) -> SweepFolder:
        """A new one, without jobs.

        Raises:
            SweepError: the path is in use.
        """
        identifier = new_run_id()
        path = path or OUTPUTS / name / identifier
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            held = (path / SWEEP_FILE).is_file()
            remedy = "add sweep_resume=true, or name" if held else "name"
            what = "holds a sweep" if held else "is not empty"
            raise SweepError(f"run_dir={path} {what}: {remedy} a new folder")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        folder = cls(path, SweepRecord(SCHEMA, name, identifier, now, command, ()))
        path.mkdir(parents=True, exist_ok=True)
        return folder.holding([])

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """An existing one.

        Raises:
            SweepError: it has no readable `sweep.json`.
        """
        file = path / SWEEP_FILE
        try:
            record = TypeAdapter(SweepRecord).validate_json(file.read_bytes(), strict=True)
        except OSError as error:
            raise SweepError(f"{path} is not a sweep's folder: {error}") from error
        except ValidationError as error:
            raise SweepError(f"{file} cannot be read: {error.errors()[0]['msg']}") from error
        return cls(path, record)

    def holding(self, jobs: Sequence[Job]) -> SweepFolder:
        """The same folder with these jobs added to its own; writes `sweep.json`."""
        new = [
            KnownJob(job.number, job.hash, job.overrides, f"{job.number:03d}-{job.hash[:8]}")
            for job in jobs
            if not self.has(job)
        ]
        held = replace(self.record, jobs=(*self.record.jobs, *new))
        write_json(self.path / SWEEP_FILE, TypeAdapter(SweepRecord).dump_python(held, mode="json"))
        return SweepFolder(self.path, held)

    def has(self, job: Job) -> bool:
        """Whether it is a job of this folder."""
        return job.hash in {entry.hash for entry in self.record.jobs}

    def task(self, job: Job) -> Task:
        """The task of a job of this folder: its name, overrides and places."""
        entry = next(entry for entry in self.record.jobs if entry.hash == job.hash)
        return Task(
            label=job.label,
            overrides=job.overrides,
            run_dir=self.path / entry.folder,
            log=self.path / "logs" / f"{entry.folder}.log",
            sweep=SweepJob(self.record.name, self.record.id, entry.number, entry.hash),
        )

    def lock(self) -> FileLock:
        """Held by the command that runs the sweep.

        Raises:
            SweepError: another command holds it.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise SweepError(f"{self.path} is being run by another command") from None
        return lock


@dataclass(frozen=True)
class Task:
    """A job to run: its name, its overrides, its run folder and its log."""

    label: str
    overrides: tuple[str, ...]
    run_dir: Path
    log: Path
    sweep: SweepJob

    @property
    def state(self) -> State:
        """Its state in the run folder; a run whose folder is not locked is not running."""
        folder = RunFolder(self.run_dir)
        if not folder.record_file.is_file():
            return "missing"
        try:
            state = folder.record()["state"]
        except (RunFolderError, KeyError):
            return "failed"
        if state == "running":
            return "running" if _held(self.run_dir) else "interrupted"
        return state

    @property
    def name(self) -> str:
        """For people."""
        return f"job {self.sweep.job} ({self.label})"


def earlier(name: str, path: Path | None) -> list[SweepFolder]:
    """The sweeps of a name, newest first; with `path`, only the sweep there.

    Raises:
        SweepError: a sweep cannot be read.
    """
    if path is not None:
        return [SweepFolder.open(path)] if (path / SWEEP_FILE).is_file() else []
    files = sorted((OUTPUTS / name).glob(f"*/{SWEEP_FILE}"), reverse=True)
    return [SweepFolder.open(file.parent) for file in files]


def best_tasks(jobs: Sequence[Job], folders: Sequence[SweepFolder]) -> Mapping[str, Task]:
    """By hash, the run of each of `jobs` that got furthest: the finished one, or else the newest.

    `folders` are the sweeps, newest first.
    """
    best: dict[str, Task] = {}
    for job in jobs:
        tasks = [folder.task(job) for folder in folders if folder.has(job)]
        if tasks:
            finished = (task for task in tasks if task.state == "finished")
            best[job.hash] = next(finished, tasks[0])
    return best


def settled(task: Task) -> State:
    """The state, after waiting until a job that is being killed has released its folder."""
    deadline = time.monotonic() + _PATIENCE
    while (state := task.state) == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    return state


def failure_of(task: Task, fallback: str) -> str:
    """Why a job has not finished, in one line."""
    folder = RunFolder(task.run_dir)
    try:
        record = folder.record() if folder.record_file.is_file() else {}
    except RunFolderError as error:
        return str(error)
    if record.get("state") == "failed" and record.get("error"):
        return str(record["error"]).splitlines()[0]
    lines = task.log.read_text(errors="replace").splitlines() if task.log.is_file() else []
    refused = [line for line in lines if line.startswith("error: ")]
    return refused[-1].removeprefix("error: ") if refused else fallback


def _held(run_dir: Path) -> bool:
    try:
        with FileLock(run_dir / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True
