"""Tables of a sweep: the cost of each job before it, the outcome of each job after it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from src.multirun.composition import Job, Sweep
from src.multirun.local import Outcome
from src.planning.devices import gib
from src.planning.plan import Plan
from src.progress import widen
from src.report.noise import Mark
from src.report.tables import Cell, Column, Section, Table, row, terminal


def show(sweep: Sweep, at_once: int | None, console: Console) -> None:
    """Print the plan of a sweep; `at_once` jobs run at a time, None where a scheduler decides."""
    widen(console)
    for note in sweep.notes:
        console.print(Text(f"note: {note}", "yellow"))
    console.print(terminal(sweep_table(sweep.name, sweep.jobs)))
    for job in sweep.refused:
        console.print(Text(f"job {job.number} ({job.label}) is refused: {job.refusal}", "red"))
    console.print(_total([job.plan for job in sweep.able if job.plan], at_once), highlight=False)


def sweep_table(name: str, jobs: Sequence[Job]) -> Table:
    """One row for each job with its swept values, cost and state, then a row of totals."""
    swept = [override.partition("=")[0] for override in jobs[0].swept]
    costs = ("tokens", "steps", "PFLOP", "hours", "GiB a rank")
    with_state = any(job.state for job in jobs)
    columns = [Column("job"), *(Column(key, "text") for key in _short(swept)), *map(Column, costs)]
    columns += [Column("state", "text")] if with_state else []
    rows = tuple(
        row(
            str(job.number),
            *(override.partition("=")[2] for override in job.swept),
            *(_cost([job.plan]) if job.plan else ["refused", "", "", ""]),
            Cell(gib(job.plan.peak), fault="" if job.plan.fits else "does not fit")
            if job.plan
            else "",
            *([job.state or ""] if with_state else []),
        )
        for job in jobs
    )
    totals = _cost([job.plan for job in jobs if job.plan])
    total = row(
        Cell("all", mark=Mark.BEST), *("" for _ in swept), *totals, *[""] * (1 + with_state)
    )
    return Table(tuple(columns), (Section(rows), Section((total,))), f"Sweep {name}")


def _cost(plans: Sequence[Plan]) -> list[str]:
    """Tokens, steps, PFLOP and hours of the plans together."""
    hours = _hours(plans)
    return [
        f"{sum(plan.tokens for plan in plans):,}",
        f"{sum(plan.steps for plan in plans):,}",
        _petaflops(plans),
        "-" if hours is None else f"{hours:.2g}",
    ]


def _total(plans: Sequence[Plan], at_once: int | None) -> str:
    hours = _hours(plans)
    tokens = sum(plan.tokens for plan in plans)
    line = f"{_jobs(len(plans))}: {tokens:,} tokens, {_petaflops(plans)} PFLOP"
    if hours is not None:
        ranks = max((plan.world_size for plan in plans), default=1)
        device = plans[0].device.name if plans else "no device"
        line += f", about {hours:.2g} hours of training on {device}"
        line += f" ({hours * ranks:.2g} device-hours)" if ranks > 1 else ""
        if at_once and at_once > 1:
            line += f"; {at_once} at once: about {hours / at_once:.2g} hours"
    return line


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _hours(plans: Sequence[Plan]) -> float | None:
    """Estimated training time; None if a device's speed is unknown."""
    seconds = [plan.seconds for plan in plans]
    return None if None in seconds else sum(each for each in seconds if each) / 3600


def _petaflops(plans: Sequence[Plan]) -> str:
    amount = sum(plan.flops for plan in plans) / 1e15
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the full key where two would look the same."""
    plain = [key.lstrip("+~").partition("@")[0] for key in keys]
    last = [key.rpartition(".")[2].rpartition("/")[2] for key in plain]
    return [
        short if last.count(short) == 1 else full for short, full in zip(last, plain, strict=True)
    ]


def show_end(outcomes: Sequence[Outcome], refused: Sequence[Job], console: Console) -> None:
    """Say how many jobs have finished, and name those that have not with the reason."""
    failed = [o for o in outcomes if o.failure is not None]
    done = len(outcomes) - len(failed)
    console.print(f"{_jobs(done)} finished, {len(failed) + len(refused)} failed")
    reasons = [f"{one.task.name}: {one.failure}; see {one.task.log}" for one in failed]
    reasons += [f"job {job.number} ({job.label}): refused: {job.refusal}" for job in refused]
    for reason in reasons:
        console.print(Text(f"failed: {reason}", "red"))
