"""A sweep from its command line to its exit code."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from src import tracking
from src.multirun import cluster, composition, local, table
from src.multirun.composition import Job, Sweep
from src.multirun.folder import SweepFolder, Task, best_tasks, earlier, settled
from src.multirun.local import Outcome
from src.multirun.process import Share
from src.planning import plan
from src.planning.advice import check_fits
from src.run_folder import check_writable
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training.launch import world_from_environment
from src.training.signals import stoppable

# An exit code is a byte, and shells use those from 126 on.
MOST_FAILED = 100
Prepare = Callable[[Iterable[RunConfig]], None]


def run(arguments: Sequence[str], prepare: Prepare) -> int:
    """Plan and run the sweep of a command line.

    Args:
        arguments: overrides.
        prepare: gathers what runs read; with `prepare=true` no more is done.

    Returns:
        The number of failed jobs, 100 at most: the exit code.

    Raises:
        ConfigError, SweepError: a user's mistake, before anything is started.
        KeyboardInterrupt: the sweep was stopped, and its jobs too, unless a scheduler runs them.
    """
    if world_from_environment(os.environ) is not None:
        raise ConfigError(
            "-m: a launcher has started this command on several ranks; a sweep starts its jobs "
            "itself: type it without the launcher"
        )
    sweep = composition.expand(arguments)
    sweep = replace(sweep, jobs=tuple(_planned(job, sweep) for job in sweep.jobs))
    if not sweep.able:
        reasons = dict.fromkeys(job.refusal or "" for job in sweep.refused)
        raise ConfigError("\n".join(["every job of the sweep is refused:", *reasons]))
    if sweep.prepare:
        for job in sweep.refused:
            print(f"refused: {job.label}: {job.refusal}", file=sys.stderr)
        # The machine that will run them may be another, so that devices do not matter.
        prepare(job.settings for job in sweep.able if job.settings is not None)
        return _code(len(sweep.refused))
    if sweep.folder is not None:
        check_writable(sweep.folder, f"run_dir={sweep.folder}")
    parts = _parts(sweep)
    before = earlier(sweep.name, sweep.folder) if sweep.resume else []
    if sweep.resume:
        best = best_tasks(sweep.able, before)
        sweep = replace(sweep, jobs=tuple(_with_state(job, best) for job in sweep.jobs))
    table.show(sweep, None if parts is None else len(parts), Console(stderr=not sweep.dry_run))
    return _code(len(sweep.refused)) if sweep.dry_run else _run(sweep, before, parts)


def _planned(job: Job, sweep: Sweep) -> Job:
    if job.settings is None:
        return job
    try:
        made = plan.make(job.settings, world_size=job.settings.launch.ranks)
        if not (sweep.dry_run or sweep.prepare):
            check_fits(made, job.settings)
    except ConfigError as error:
        return replace(job, refusal=str(error))
    return replace(job, plan=made)


def _with_state(job: Job, best: Mapping[str, Task]) -> Job:
    if job.refusal is not None:
        return job
    return replace(job, state=best[job.hash].state if job.hash in best else "missing")


def _parts(sweep: Sweep) -> list[Share] | None:
    """The parts that this machine is divided into; None if submitit runs the jobs."""
    launcher = sweep.launcher
    settings = [job.settings for job in sweep.able if job.settings is not None]
    executor = cluster.executor_of(launcher)
    others = {s.launch.by for s in settings} - {"local", executor}
    if others:
        raise ConfigError(
            f"launch={others.pop()}: a sweep starts the ranks of its jobs itself; use launch=local "
            "with launch.nproc, or launch=slurm with hydra/launcher=submitit_slurm"
        )
    if executor is not None:
        return None
    if launcher.get("_target_", "") not in _LAUNCHERS:
        raise ConfigError(
            f"hydra/launcher: {launcher['_target_']} is not known here; use parallel, "
            "submitit_slurm or submitit_local, or none for one job after the other"
        )
    if "n_jobs" not in launcher:  # Hydra's basic launcher: one after the other, with everything
        return [Share()]
    n_jobs = launcher["n_jobs"]
    if n_jobs is not None and not isinstance(n_jobs, int):
        raise ConfigError(f"hydra.launcher.n_jobs: {n_jobs!r}; give a number, or null")
    # -1 is joblib's way to say: as many as there is room for.
    together = launcher.get("runs_per_gpu", 1)
    if together != "auto" and (type(together) is not int or together < 1):
        raise ConfigError(
            f"hydra.launcher.runs_per_gpu: {together!r}; give auto, or a number of at least 1"
        )
    parts = local.shares(settings, None if n_jobs == -1 else n_jobs, together)
    if not sweep.dry_run:
        _check_memory(sweep.able, len(parts))
    return parts


_LAUNCHERS = (
    "",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
)


def _check_memory(able: Sequence[Job], at_once: int) -> None:
    """Refuse jobs that fit a machine's memory one by one, but not together."""
    on_cpu = [job.plan for job in able if job.plan is not None and job.plan.device.is_cpu]
    forced = any(job.settings.allow_oversubscribe for job in able if job.settings)
    if not on_cpu or forced:
        return
    peak = max(made.world_size * made.peak for made in on_cpu)
    has = on_cpu[0].device.usable * on_cpu[0].world_size
    if at_once * peak > has:
        raise ConfigError(
            f"hydra.launcher.n_jobs: {at_once} jobs at once need an estimated "
            f"{at_once * peak / 2**30:.1f} GiB, and there are {has / 2**30:.1f}; use "
            f"{max(1, int(has / peak))} at most (or try with allow_oversubscribe=true)"
        )


def _run(sweep: Sweep, before: Sequence[SweepFolder], parts: list[Share] | None) -> int:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    shared = [folder for folder in before if best_tasks(sweep.able, [folder])]
    command = _command(sweep.arguments)
    folder = shared[0] if shared else SweepFolder.create(sweep.folder, sweep.name, command)
    if sweep.resume and not shared:
        console.print("no earlier sweep of this name has any of these jobs: all of them run")
    with folder.lock():
        best = best_tasks(sweep.able, before)
        folder = folder.holding([job for job in sweep.able if job.hash not in best])
        tasks = [best.get(job.hash) or folder.task(job) for job in sweep.able]
        states = [settled(task) for task in tasks]
        if sweep.resume:
            counts = Counter(states).items()
            console.print(f"so far: {', '.join(f'{count} {state}' for state, count in counts)}")
        by_state = list(zip(tasks, states, strict=True))
        for task in (task for task, state in by_state if state == "running"):
            console.print(f"left alone, since it is being run: {task.name}")
        todo = [task for task, state in by_state if state not in ("finished", "running")]
        outcomes = _all(sweep, todo, folder, parts, console)
    table.show_end(outcomes, sweep.refused, console)
    failed = sum(o.failure is not None for o in outcomes) + len(sweep.refused)
    console.print(f"sweep folder: {folder.path}")
    if failed:
        console.print(f"run the failed ones again: {_command(_resumed(sweep))}")
    if any(job.settings and job.settings.tracking.mode == "offline" for job in sweep.able):
        console.print(tracking.sync_hint(f"{folder.path}/*"))
    return _code(failed)


def _all(
    sweep: Sweep,
    tasks: Sequence[Task],
    folder: SweepFolder,
    parts: list[Share] | None,
    console: Console,
) -> list[Outcome]:
    def started(task: Task) -> None:
        console.print(f"started {task.name}: {task.run_dir}")

    def ended(outcome: Outcome) -> None:
        how = "finished" if outcome.failure is None else f"FAILED ({outcome.failure})"
        console.print(f"{how}: {outcome.task.name}, {outcome.seconds:.0f} s")

    try:
        with stoppable():
            if parts is None:
                return cluster.run(tasks, sweep.launcher, folder.path, started, ended)
            return local.run(tasks, parts, started, ended)
    except KeyboardInterrupt:
        console.print(f"stopped; go on with {_command(_resumed(sweep))}")
        raise


def _resumed(sweep: Sweep) -> list[str]:
    arguments = [a for a in sweep.arguments if not a.startswith("sweep_resume=")]
    return [*arguments, "sweep_resume=true"]


def _command(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "src.train", "-m", *arguments])


def _code(failed: int) -> int:
    return min(failed, MOST_FAILED)
