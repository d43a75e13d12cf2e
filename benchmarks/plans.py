"""Tables of plans: the paper's run by GPU (README), and 7B runs on several H200s (docs/scale.md).

python -m benchmarks.plans            print the tables; python -m benchmarks.figures writes them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from benchmarks import step
from src import api
from src.planning import plan
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


# Cases of benchmarks.step and their numbers of GPUs.
SEVERAL = {
    "replicated": (1, 4, 8),
    "sharded": (1, 4, 8),
    "sequence-262144-ard": (4, 8),
    "sequence-262144-cpt": (4, 8),
}


@cache
def several() -> str:
    """The Markdown table of 7B runs on several H200s."""
    head = "| run | GPUs | GiB a GPU | s a step |"
    rows = [("the paper's run, its two stages", n, _of_the_run(n)) for n in (4, 8)]
    rows += [(f"`{name}`", n, _of_a_case(name, n)) for name, many in SEVERAL.items() for n in many]
    lines = [f"| {label} | {gpus} | {_stages(made)} |" for label, gpus, made in rows]
    return "\n".join([head, "|---|---:|---:|---:|", *lines])


def _of_the_run(gpus: int) -> Plan:
    return api.plan(COMMAND, f"launch.nproc={gpus}", "plan_for=h200")


def _of_a_case(name: str, gpus: int) -> Plan:
    settings = step.composed(step.CASES[name], "llama2_7b", quick=False, ranks=gpus)
    return plan.make(replace(settings, dry_run=True, plan_for="h200"), world_size=gpus)


def _stages(made: Plan) -> str:
    """Memory and time of a step of each stage, the cells of a row."""
    assert made.fits
    memory = ", ".join(f"{stage.peak / 2**30:.0f}" for stage in made.stages)
    return f"{memory} | {', '.join(f'{stage.seconds_per_step:.3g}' for stage in made.stages)}"


def main() -> None:
    """Print the tables."""
    print(table(), several(), sep="\n\n")


if __name__ == "__main__":
    main()
