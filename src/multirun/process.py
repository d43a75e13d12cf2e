"""A job as a process: the command a user would type, bound to the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from src.multirun.folder import Task
from src.run_folder import RunFolder, whole_checkpoints
from src.training import launch

_PR_SET_PDEATHSIG = 1
# Seconds that a stopped job may need to write its record and close its tracker.
_GRACE = 30.0


@dataclass(frozen=True)
class Share:
    """The part of a machine that a job uses."""

    environment: Mapping[str, str] = field(default_factory=dict)  # what differs from this process's
    cores: frozenset[int] | None = None  # that it may run on; None for all


def arguments(task: Task) -> list[str]:
    """The arguments of `python -m src.train`; a run with a complete checkpoint is resumed."""
    if whole_checkpoints(RunFolder(task.run_dir)):
        return [f"resume={quoted(str(task.run_dir))}"]
    sweep = {f"+sweep.{key}": value for key, value in vars(task.sweep).items()}
    settings = {"run_dir": str(task.run_dir), **sweep}
    typed = {key: quoted(v) if isinstance(v, str) else v for key, v in settings.items()}
    return [*task.overrides, *(f"{key}={value}" for key, value in typed.items())]


def start(task: Task, share: Share) -> subprocess.Popen[bytes]:
    """Start a job; its output is appended to its log.

    Call this from the main thread. On Linux the job is killed when the thread that started it
    ends, so that it cannot outlive this process, however that ends.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "src.train", *arguments(task)],
            env=os.environ | dict(share.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=Binding(os.getpid(), share.cores),
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop jobs: ask them to end, and kill them after a while."""
    launch.stop(processes, grace=_GRACE)


class Binding:
    """Runs in the child before the program: tie it to its parent and to its cores."""

    def __init__(self, parent: int, cores: frozenset[int] | None) -> None:
        self._parent = parent
        self._cores = cores
        # Loaded here, because little may happen between fork and exec.
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def __call__(self) -> None:
        if self._libc is not None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._parent:  # it ended before the line above
                os._exit(1)
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)


def quoted(text: str) -> str:
    """A quoted string, so that Hydra does not parse it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
