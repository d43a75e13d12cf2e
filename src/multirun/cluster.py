"""Jobs through submitit, with the settings of Hydra's submitit launcher.

The launcher's settings are used, not its code: that stops waiting for the other jobs when the
scheduler kills one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit

from src.multirun import process
from src.multirun.folder import Task, settled
from src.multirun.local import Outcome, outcome
from src.multirun.process import Share

# What the two executors share keeps its name, other settings get the executor's.
_COMMON = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node"}
_COMMON |= {"mem_gb", "nodes", "name", "stderr_to_stdout"}
_POLL = {"local": 0.5, "slurm": 10.0}


class ClusterJob:
    """The job on the node. After a time-out or a preemption it is requeued, and goes on."""

    def __init__(self, task: Task, parent: int | None) -> None:
        self.task = task
        self.parent = parent

    def __call__(self) -> int:
        """Run the job to its end, and return its exit code."""
        if settled(self.task) == "finished":
            return 0
        job = process.start(self.task, Share())
        try:
            while (code := job.poll()) is None:
                if self.parent is not None and not Path(f"/proc/{self.parent}").exists():
                    sys.exit(1)
                time.sleep(0.5)
        finally:
            process.stop([job])
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before a time-out: submit the same job again."""
        return submitit.helpers.DelayedSubmission(self)


def executor_of(launcher: Mapping[str, Any]) -> str | None:
    """`slurm` or `local` for a submitit launcher, None for another."""
    executors = {"SlurmLauncher": "slurm", "LocalLauncher": "local"}
    target = str(launcher.get("_target_", ""))
    return executors.get(target.rpartition(".")[2]) if "submitit" in target else None


def run(
    tasks: Sequence[Task],
    launcher: Mapping[str, Any],
    folder: Path,
    started: Callable[[Task], None],
    ended: Callable[[Outcome], None],
) -> list[Outcome]:
    """Submit all tasks as an array and wait for them.

    Jobs of a scheduler outlive this process; those of the local executor do not.
    """
    kind = executor_of(launcher)
    assert kind is not None
    settings = {k: v for k, v in launcher.items() if k not in ("_target_", "submitit_folder")}
    timeouts = settings.pop("max_num_timeout", None)
    first = {} if timeouts is None else {f"{kind}_max_num_timeout": timeouts}
    executor = submitit.AutoExecutor(folder=folder / "submitit" / "%j", cluster=kind, **first)
    executor.update_parameters(
        **{k if k in _COMMON else f"{kind}_{k}": v for k, v in settings.items()}
    )
    # What it pickles there has the jobs' commands.
    (folder / "submitit").mkdir(mode=0o700, exist_ok=True)
    parent = os.getpid() if kind == "local" else None
    with executor.batch():
        jobs = [executor.submit(ClusterJob(task, parent)) for task in tasks]
    began = time.monotonic()
    for task in tasks:
        started(task)
    waiting = list(zip(tasks, jobs, strict=True))
    outcomes: list[Outcome] = []
    try:
        while waiting:
            for task, job in [pair for pair in waiting if pair[1].done()]:
                waiting.remove((task, job))
                # The scheduler ended the job where there is an exception.
                code = None if job.exception() is not None else job.results()[0]
                outcomes.append(outcome(task, code, time.monotonic() - began))
                ended(outcomes[-1])
            if waiting:
                time.sleep(_POLL[kind])
    finally:
        if kind == "local":
            for _, job in waiting:
                job.cancel()
    return outcomes
