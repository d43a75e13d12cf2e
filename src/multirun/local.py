"""Jobs on this machine: one after the other, or several at once with their own GPUs or cores."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from src.multirun import process
from src.multirun.folder import Task, failure_of
from src.multirun.process import Share
from src.planning import plan
from src.planning.devices import GPU_SHARE, DeviceFacts, device_facts, gpus, uses_cuda
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

# Runs that `runs_per_gpu=auto` lets share a GPU: beyond it they only take turns.
_MOST = 8


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    task: Task
    failure: str | None  # None if it has finished
    seconds: float


def shares(
    jobs: Sequence[RunConfig], n_jobs: int | None, runs_per_gpu: int | Literal["auto"] = 1
) -> list[Share]:
    """The parts that this machine is divided into; each runs one job at a time.

    Args:
        jobs: all that are to run.
        n_jobs: how many run at once; None: as many as there are GPUs for, or without GPUs one for
            two cores.
        runs_per_gpu: how many share a GPU; auto: as many as fit by their plans.

    Raises:
        ConfigError: the machine has too few GPUs for that, `n_jobs` is below 1, or runs of several
            GPUs are to share them.
    """
    if n_jobs is not None and n_jobs < 1:
        raise ConfigError(f"hydra.launcher.n_jobs: {n_jobs}; give at least 1, or null")
    if any(uses_cuda(job.engine.device) for job in jobs):
        return _gpu_shares(jobs, n_jobs, runs_per_gpu)
    return core_shares(n_jobs, len(jobs))


def _gpu_shares(
    jobs: Sequence[RunConfig], n_jobs: int | None, runs_per_gpu: int | Literal["auto"]
) -> list[Share]:
    each = max(job.launch.nproc for job in jobs)
    if runs_per_gpu != 1 and each > 1:
        raise ConfigError(
            f"hydra.launcher.runs_per_gpu: {runs_per_gpu} is for runs of one GPU, and "
            f"launch.nproc={each}; use runs_per_gpu=1"
        )
    together = most_on_a_gpu(jobs) if runs_per_gpu == "auto" else runs_per_gpu
    # Neighbours get different GPUs, so that few jobs do not share one while others are idle.
    visible = visible_gpus() * together
    wanted = n_jobs or max(1, min(len(jobs), len(visible) // each))
    if wanted * each > len(visible):
        raise ConfigError(
            f"hydra.launcher.n_jobs: {wanted} jobs at once with launch.nproc={each} need "
            f"{wanted * each} GPUs, and there are {len(visible)}"
            + (f", each counted {together} times for runs_per_gpu" if together > 1 else "")
        )
    shared = {GPU_SHARE: repr(1 / together)} if together > 1 else {}
    return [
        Share(
            {"CUDA_VISIBLE_DEVICES": ",".join(visible[i * each : (i + 1) * each])}
            | _threads(len(os.sched_getaffinity(0)) // wanted)
            | shared
        )
        for i in range(wanted)
    ]


def most_on_a_gpu(jobs: Sequence[RunConfig]) -> int:
    """How many of the jobs fit on one GPU, each with as much of its memory.

    A job fits if its plan does, with the engines of a whole GPU and without running more layers
    twice.
    """
    device = device_facts("auto")
    alone = [plan.make(job, world_size=1, device=device) for job in jobs]
    best = 1
    for together in range(2, min(_MOST, len(jobs)) + 1):
        part = replace(device, memory=device.memory // together)
        if all(_fits_as_well(*pair, part) for pair in zip(jobs, alone, strict=True)):
            best = together
    return best


def _fits_as_well(job: RunConfig, alone: plan.Plan, part: DeviceFacts) -> bool:
    beside = plan.make(job, world_size=1, device=part)
    return (
        beside.fits
        and beside.engine == alone.engine
        and all(
            one.checkpointing == two.checkpointing
            for one, two in zip(alone.stages, beside.stages, strict=True)
        )
    )


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(place) for place in range(len(gpus()))]


def core_shares(n_jobs: int | None, jobs: int) -> list[Share]:
    """The parts that the cores are divided into, each with as many threads as it has cores.

    Args:
        n_jobs: how many parts; None: one for two cores, and no more than there are jobs.
    """
    cores = sorted(os.sched_getaffinity(0))
    wanted = n_jobs or max(1, min(jobs, len(cores) // 2))
    each = len(cores) // wanted
    if each == 0:  # more jobs than cores: the system deals them out
        return [Share(_threads(1))] * wanted
    return [
        Share(_threads(each), frozenset(cores[i * each : (i + 1) * each])) for i in range(wanted)
    ]


def _threads(cores: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))}


def run(
    tasks: Sequence[Task],
    parts: Sequence[Share],
    started: Callable[[Task], None],
    ended: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run all tasks, as many at once as there are parts, and wait for them.

    If a task fails, the others go on. However this function ends, its jobs end too.
    """
    waiting, free = deque(tasks), list(parts)
    running: list[tuple[Task, Share, subprocess.Popen[bytes], float]] = []
    outcomes: list[Outcome] = []
    try:
        while waiting or running:
            while waiting and free:
                task, share = waiting.popleft(), free.pop(0)
                running.append((task, share, process.start(task, share), time.monotonic()))
                started(task)
            for job in [job for job in running if job[2].poll() is not None]:
                running.remove(job)
                task, share, ran, began = job
                free.append(share)
                outcomes.append(outcome(task, ran.returncode, time.monotonic() - began))
                ended(outcomes[-1])
            time.sleep(0.1)
    finally:
        process.stop([ran for _, _, ran, _ in running])
    return outcomes


def outcome(task: Task, code: int | None, seconds: float) -> Outcome:
    """A job's outcome by its exit code and its folder; without a code by its folder."""
    if code in (0, None) and task.state == "finished":
        return Outcome(task, None, seconds)
    if code is None:
        how = f"its run folder says {task.state}"
    else:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Outcome(task, failure_of(task, how), seconds)
