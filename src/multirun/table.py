"""Tables of a sweep: the cost of each job before it, the outcome of each job after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from src.multirun.composition import Job, Sweep
from src.multirun.local import Outcome
from src.planning.plan import Plan
from src.report.noise import Mark
from src.report.tables import Cell, Column, Section, Table, row, terminal, widen


@dataclass(frozen=True)
class Planned:
    """A job with its plan, or without one if it is refused.

    Attributes:
        job: the combination.
        plan: None if the job is refused.
        refusal: why it is refused; None if it can run.
        state: its state so far; None if it was not looked up.
    """

    job: Job
    plan: Plan | None
    refusal: str | None
    state: str | None = None

    @property
    def flops(self) -> float:
        """Floating-point operations of all stages."""
        return self.plan.flops if self.plan else 0.0

    @property
    def hours(self) -> float | None:
        """Estimated training time; None for a device of unknown speed."""
        if self.plan is None:
            return 0.0
        return None if self.plan.seconds is None else self.plan.seconds / 3600


def show(sweep: Sweep, planned: Sequence[Planned], at_once: int | None, console: Console) -> None:
    """Print the plan of a sweep.

    Args:
        sweep: the command.
        planned: its jobs.
        at_once: how many run at the same time; None where a scheduler decides.
        console: where to print; if it is not a terminal, it becomes wide enough for every figure.
    """
    widen(console)
    for note in sweep.notes:
        console.print(f"[yellow]note: {escape(note)}[/yellow]")
    console.print(terminal(sweep_table(sweep.name, planned)))
    for refused in (p for p in planned if p.refusal is not None):
        console.print(
            f"[red]job {refused.job.number} ({escape(refused.job.label)}) is refused: "
            f"{escape(refused.refusal or '')}[/red]",
            highlight=False,
        )
    able = [p for p in planned if p.refusal is None]
    console.print(_total(able, at_once), highlight=False)


def sweep_table(name: str, planned: Sequence[Planned]) -> Table:
    """One row for each job with its swept values, cost and state, then a row of totals."""
    swept = [override.partition("=")[0] for override in planned[0].job.swept]
    costs = ("tokens", "steps", "PFLOP", "hours", "GiB a rank")
    with_state = any(one.state for one in planned)
    columns = [Column("job"), *(Column(key, "text") for key in _short(swept)), *map(Column, costs)]
    columns += [Column("state", "text")] if with_state else []
    jobs = tuple(
        row(
            str(one.job.number),
            *(override.partition("=")[2] for override in one.job.swept),
            *_cost(one),
            *([one.state or ""] if with_state else []),
        )
        for one in planned
    )
    able = [one for one in planned if one.refusal is None and one.plan]
    total = row(
        Cell("all", mark=Mark.BEST),
        *("" for _ in swept),
        f"{sum(one.plan.tokens for one in able if one.plan):,}",
        f"{sum(one.plan.steps for one in able if one.plan):,}",
        _petaflops(sum(one.flops for one in able)),
        _hours(_sum([one.hours for one in able])),
        *([""] * (1 + with_state)),
    )
    return Table(tuple(columns), (Section(jobs), Section((total,))), f"Sweep {name}")


def _cost(one: Planned) -> list[str | Cell]:
    if one.plan is None:
        return ["refused", "", "", "", ""]
    return [
        f"{one.plan.tokens:,}",
        f"{one.plan.steps:,}",
        _petaflops(one.flops),
        _hours(one.hours),
        Cell(f"{one.plan.peak / 2**30:.2f}", fault="" if one.plan.fits else "does not fit"),
    ]


def _total(able: Sequence[Planned], at_once: int | None) -> str:
    hours = _sum([p.hours for p in able])
    plans = [p.plan for p in able if p.plan]
    device = plans[0].device.name if plans else "no device"
    tokens = sum(plan.tokens for plan in plans)
    line = f"{_jobs(len(able))}: {tokens:,} tokens, {_petaflops(sum(p.flops for p in able))} PFLOP"
    if hours is not None:
        ranks = max((plan.world_size for plan in plans), default=1)
        line += f", about {hours:.2g} hours of training on {device}"
        line += f" ({hours * ranks:.2g} device-hours)" if ranks > 1 else ""
        if at_once and at_once > 1:
            line += f"; {at_once} at once: about {hours / at_once:.2g} hours"
    return line


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"


def _sum(hours: Sequence[float | None]) -> float | None:
    return None if None in hours else sum(h for h in hours if h is not None)


def _petaflops(flops: float) -> str:
    amount = flops / 1e15
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:.2g}"


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the whole key where two would look the same."""
    plain = [key.lstrip("+~").partition("@")[0] for key in keys]
    last = [key.rpartition(".")[2].rpartition("/")[2] for key in plain]
    return [
        short if last.count(short) == 1 else whole for short, whole in zip(last, plain, strict=True)
    ]


def show_end(outcomes: Sequence[Outcome], refused: Sequence[Planned], console: Console) -> None:
    """Say how many jobs have finished, and name those that have not with the reason."""
    failed = [o for o in outcomes if o.failure is not None]
    done = len(outcomes) - len(failed)
    console.print(f"{_jobs(done)} finished, {len(failed) + len(refused)} failed", highlight=False)
    for one in failed:
        console.print(
            f"[red]failed: {escape(one.task.name)}: {escape(one.failure or '')}; "
            f"see {escape(str(one.task.log))}[/red]",
            highlight=False,
            soft_wrap=True,
        )
    for one in refused:
        console.print(
            f"[red]failed: job {one.job.number} ({escape(one.job.label)}): refused: "
            f"{escape(one.refusal or '')}[/red]",
            highlight=False,
            soft_wrap=True,
        )


def counted(states: Mapping[str, int]) -> str:
    """`3 finished, 1 failed`."""
    return ", ".join(f"{count} {state}" for state, count in states.items())
