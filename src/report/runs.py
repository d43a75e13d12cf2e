"""Finds and reads run folders. A folder with faults is a run with `problems`, never left out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from src import results
from src.report.files import (
    AbsentFile,
    ConfigFile,
    RunRecord,
    RunSettings,
    UnreadableFile,
    read_config,
    read_json,
    read_regular,
)
from src.report.metrics import Metrics, read_metrics
from src.report.names import MERGED, short_models
from src.results import (
    DriftResults,
    NeedleDepthResults,
    PapersResults,
    PerplexityResults,
    ResultsError,
    RulerResults,
    ShortResults,
    SuiteResults,
    TaskResults,
)

_Content = TypeVar("_Content")
# Fields of `Run` have their names.
_SUITES: tuple[type[SuiteResults[Any]], ...] = (
    *(PerplexityResults, ShortResults, RulerResults, PapersResults),
    *(NeedleDepthResults, DriftResults),
)
# A folder with one of these is a run; metrics without a record belong to a run that lost it.
_MARKS = ("run.json", "metrics.jsonl")
# Folders of a run that hold no runs, and may hold many files.
_INSIDE_A_RUN = re.compile(r"(checkpoints|export(-.*)?|evals|logs|wandb)")

_TICK_NS = 2_000_000_000
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class ReportError(ValueError):
    """A folder or a file that the user named cannot be used."""


@dataclass(frozen=True)
class Run:
    """One run folder as far as it could be read."""

    folder: Path
    name: str  # the folder's path below `outputs`
    record: RunRecord | None  # None: `run.json` could not be read
    metrics: Metrics
    problems: tuple[str, ...]
    modified_at: datetime
    """When a file of the folder was last written, as far as the file system tells."""
    config: ConfigFile = field(default_factory=ConfigFile)
    perplexity: PerplexityResults | None = None
    short: ShortResults | None = None
    ruler: RulerResults | None = None
    papers: PapersResults | None = None
    needle_depth: NeedleDepthResults | None = None
    drift: DriftResults | None = None
    short_model: str | None = None
    """The model's name among the runs that were read with this one; None: its identity."""

    @property
    def model(self) -> str:
        """The model's identity, which no other model shares; empty if it is unknown."""
        return (self.record and self.record.model) or self.settings.model.name or ""

    @property
    def model_name(self) -> str:
        """The model as it is shown: marked where its weights are random."""
        mark = " (random weights)" if self.settings.model.random_weights else ""
        return (self.short_model or self.model) + mark

    @property
    def method(self) -> str:
        """The recipe, and whether a stage merged weights; empty if it is unknown."""
        method = (self.record and self.record.method) or ""
        return method + (MERGED if method and self.settings.merges else "")

    @property
    def task_suites(self) -> tuple[TaskResults | None, ...]:
        """The suites of tasks: short, RULER, papers."""
        return (self.short, self.ruler, self.papers)

    @property
    def state(self) -> str:
        """The recorded state, or `corrupt` where there is no readable record."""
        return self.record.state if self.record else "corrupt"

    @property
    def sweep(self) -> str:
        """The sweep that the run is a job of; empty for none."""
        return self.record.sweep.name if self.record and self.record.sweep else ""

    @property
    def is_synthetic(self) -> bool:
        """Whether the run's config has the tag `synthetic`: its figures are made up."""
        tags = self.config.values.get("tags")
        return isinstance(tags, list) and "synthetic" in tags

    @property
    def settings(self) -> RunSettings:
        """The part of the config that the report understands."""
        return self.config.settings

    @property
    def started_at(self) -> datetime:
        """When the run began; without a record, when it last wrote."""
        return (self.record and self.record.started_at) or self.modified_at

    @property
    def tokens(self) -> int | None:
        """Trained tokens. The record is brought up to date now and then, the metrics every step."""
        if self.record is None:
            return None
        return max([self.record.tokens, *self.metrics.tokens[-1:]])

    @property
    def seconds(self) -> float | None:
        """Seconds of training, like `tokens`."""
        if self.record is None:
            return None
        logged = self.metrics.series.get("seconds", ())[-1:]
        seconds = [value for value in (self.record.seconds, *logged) if value is not None]
        return max(seconds, default=None)


def read_run(folder: Path, outputs: Path) -> Run:
    """The run in `folder`; `problems` describes the faults of its files."""
    problems: list[str] = []

    def attempt(read: Callable[[], _Content]) -> _Content | None:
        try:
            return read()
        except (UnreadableFile, ResultsError) as error:
            problems.append(str(error))
            return None

    record = attempt(lambda: read_json(folder / "run.json", RunRecord))
    config = attempt(lambda: read_config(folder / "config.yaml")) or ConfigFile()
    metrics = attempt(lambda: _metrics(folder / "metrics.jsonl", record)) or Metrics()

    def suite(kind: type[SuiteResults[Any]]) -> SuiteResults[Any] | None:
        """Of all items where there is that, else of the half to report, else to choose by."""
        for split in (None, "test", "validation"):
            read = partial(results.read, folder / "evals", kind, read_regular, split=split)
            if found := attempt(read):
                return found
        return None

    suites: dict[str, Any] = {kind.suite: suite(kind) for kind in _SUITES}
    return Run(
        folder=folder,
        name=_display_name(folder, outputs),
        record=record,
        metrics=metrics,
        modified_at=_modified_at(folder, *(folder / mark for mark in _MARKS)),
        config=config,
        problems=(*problems, *metrics.problems),
        **suites,
    )


def read_runs(
    outputs: Path,
    read: Callable[[Path, Path], Run] = read_run,
    tree: FolderTree | None = None,
) -> list[Run]:
    """All runs at any depth below `outputs`, newest first. Symbolic links are not followed.

    `read` reads one run's folder; a server's function reuses runs that did not change. `tree` is
    what an earlier call has found, so that unchanged folders are not listed again. Raises
    ReportError if `outputs` is not a folder.
    """
    if not outputs.is_dir():
        raise ReportError(f"outputs={outputs}: no such folder; name the one that holds the runs")
    refusals: list[OSError] = []
    folders = (tree or FolderTree()).runs(outputs, refusals.append)
    runs = [read(folder, outputs) for folder in folders]
    runs += [_refused(error, outputs) for error in refusals]
    names = short_models({run.model for run in runs})
    named = [replace(run, short_model=names[run.model]) for run in runs]
    return sorted(named, key=lambda run: (run.started_at, run.name), reverse=True)


def count_corrupt(runs: Sequence[Run]) -> int:
    """The number of `runs` with a fault in their files."""
    return sum(bool(run.problems) for run in runs)


class FolderTree:
    """Folders by path. A folder is listed again only when its modification time has changed."""

    def __init__(self) -> None:
        self._listed: dict[str, tuple[int, tuple[str, ...], bool]] = {}

    def runs(self, outputs: Path, refuse: Callable[[OSError], None]) -> Iterator[Path]:
        """The folders of runs; `refuse` is told of those that cannot be listed."""
        earlier, self._listed = self._listed, {}
        waiting = [str(outputs)]
        while waiting:
            path = waiting.pop()
            try:
                listed = self._listed[path] = _listing(path, earlier.get(path))
            except FileNotFoundError:
                continue  # removed since its parent was listed
            except OSError as error:
                refuse(error)
                continue
            waiting += listed[1]
            if listed[2]:
                yield Path(path)


def _listing(
    path: str, known: tuple[int, tuple[str, ...], bool] | None
) -> tuple[int, tuple[str, ...], bool]:
    """A folder's modification time, the folders to look into, and whether it is a run's."""
    changed = os.stat(path).st_mtime_ns
    if known is not None and known[0] == changed:
        return known
    with os.scandir(path) as found:
        entries = list(found)
    is_run = any(entry.name in _MARKS for entry in entries)
    folders = tuple(
        entry.path
        for entry in entries
        if entry.is_dir(follow_symlinks=False)
        and not (is_run and _INSIDE_A_RUN.fullmatch(entry.name))
    )
    # The clock of file systems is coarse: what comes within the same tick would go unnoticed.
    settled = abs(time.time_ns() - changed) > _TICK_NS
    return (changed if settled else -1, folders, is_run)


def _refused(error: OSError, outputs: Path) -> Run:
    """A folder that cannot be listed, which may be a run."""
    folder = Path(error.filename)
    return Run(
        folder=folder,
        name=_display_name(folder, outputs),
        record=None,
        metrics=Metrics(),
        problems=(f"the folder cannot be read ({error.strerror})",),
        modified_at=_modified_at(outputs),
    )


def _metrics(path: Path, record: RunRecord | None) -> Metrics:
    try:
        return read_metrics(path)
    except AbsentFile:
        if record and record.step == 0:  # before the first logged step there are none
            return Metrics()
        raise


def _modified_at(*paths: Path) -> datetime:
    times = []
    for path in paths:
        with suppress(OSError):  # it may be removed at any time
            times.append(path.lstat().st_mtime)
    # A time may be any number; this one is for order.
    return datetime.fromtimestamp(min(max([0.0, *times]), _LATEST), UTC)


def _display_name(folder: Path, outputs: Path) -> str:
    """The path below `outputs`; bytes that are not UTF-8 become the replacement character."""
    return os.fsencode(folder.relative_to(outputs)).decode("utf-8", "replace")
