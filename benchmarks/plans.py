"""The README's table of commands by GPU: what the plan of the paper's run says for each.

python -m benchmarks.plans            print the table; python -m benchmarks.figures writes it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from src import api
from src.planning.plan import Plan

COMMAND = "+experiment=linearard_32k"


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind in one machine: what `plan_for` calls them, and how many there are."""

    label: str
    kind: str
    gpus: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """What a user types behind `python -m src.train`."""
        return (COMMAND,) if self.gpus == 1 else (COMMAND, f"launch.nproc={self.gpus}")

    def plan(self) -> Plan:
        """The plan for it."""
        return api.plan(*self.overrides, f"plan_for={self.kind}")


MACHINES = (
    Machine("1 H200", "h200", 1),
    Machine("1 H100 80 GB", "h100", 1),
    Machine("1 A100 80 GB", "a100", 1),
    Machine("2 H100 80 GB", "h100", 2),
    Machine("2 A100 80 GB", "a100", 2),
    Machine("8 H100 80 GB", "h100", 8),
    Machine("8 A100 80 GB", "a100", 8),
)


@cache
def table() -> str:
    """The Markdown table: a machine a row."""
    head = "| you have | type | GiB a GPU | minutes of training | chosen by the plan |"
    return "\n".join([head, "|---|---|---:|---:|---|", *(_row(machine) for machine in MACHINES)])


def _row(machine: Machine) -> str:
    made = machine.plan()
    if not made.fits or made.seconds is None:
        raise ValueError(f"{machine.label}: the paper's run does not fit")
    typed = f"`python -m src.train {' '.join(machine.overrides)}`"
    return (
        f"| {machine.label} | {typed} | {made.peak / 2**30:.0f} | {made.seconds / 60:.0f} "
        f"| {', '.join(_choices(made))} |"
    )


def _choices(made: Plan) -> Iterator[str]:
    """What the plan has chosen, in words."""
    engine = made.engine
    if engine.student.offload_optimizer:
        yield f"optimizer on the host ({made.offloaded / 2**30:.0f} GiB)"
    if made.world_size > 1:
        sharded = {1: "optimizer", 2: "optimizer and gradients", 3: "optimizer and weights"}
        yield f"{sharded[engine.student.zero_stage]} sharded"
    if engine.teacher.share_base:
        yield "one copy of the weights"
    if engine.sequence_parallel > 1:
        yield f"{engine.sequence_parallel} GPUs share a block"
    if again := [stage.name for stage in made.stages if stage.checkpointing]:
        yield f"checkpointing in {', '.join(again)}"


def main() -> None:
    """Print the table."""
    print(table())


if __name__ == "__main__":
    main()
