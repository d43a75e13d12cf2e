"""What is shown of a plan."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from src.planning import plan
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.planning.printing import show
from src.settings.config import RunConfig

# Engines that leave nothing to the plan.
BASE = ("+experiment=linearard_32k", "engine=zero1")


def test_it_is_printed(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(*BASE)
    text = io.StringIO()
    show(plan.make(run, world_size=8), run, Console(file=text))
    shown = text.getvalue()
    for expected in (
        "2,359,296 + 2,097,152 = 4,456,448 in 144 + 64 optimizer steps",
        "805,306,368",
        "7,543,721,984",
        "88% of their work repeats others'",
    ):
        assert expected in shown


def test_a_small_model_takes_mebibytes_and_a_small_budget_one_short_step(
    compose_run: Callable[..., RunConfig],
) -> None:
    def shown(*overrides: str) -> str:
        run = compose_run("+experiment=quickstart", "model=tiny", *overrides)
        console = Console(file=io.StringIO(), width=300)
        show(plan.make(run, world_size=1), run, console)
        return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO

    usual = shown()
    assert "estimated (MiB)" in usual
    assert "fewer than" not in usual
    small = shown("budget=100")
    assert "100 in 1 optimizer step\n" in small
    assert "ard: 100 tokens are fewer than a step's 512, so it takes a single" in small


def test_a_device_of_unknown_speed_is_named(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(*BASE)
    unknown = DeviceFacts("NVIDIA B1", 200 * 2**30)
    console = Console(file=io.StringIO(), width=300)
    show(plan.make(run, world_size=1, device=unknown), run, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "time: not known, since the speed of NVIDIA B1 is not listed" in shown
    assert "NVIDIA H200" in shown


def test_what_the_plan_decides_is_said(compose_run: Callable[..., RunConfig]) -> None:
    def shown(*overrides: str) -> str:
        run = compose_run(*BASE, "model=smollm2_135m", *overrides)
        console = Console(file=io.StringIO(), width=300)
        show(plan.make(run, world_size=1, device=ACCELERATORS["h200"]), run, console)
        return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO

    assert "ard: 4 blocks at once, CUDA graphs on, fused kernels on" in shown()
    assert "CUDA graphs off (longrope RoPE looks at" in shown("rope=longrope")
    assert "CUDA graphs off (engine.cuda_graphs=false)" in shown("engine.cuda_graphs=false")


def test_text_that_the_scaling_leaves_as_it_was_is_pointed_out(
    compose_run: Callable[..., RunConfig],
) -> None:
    def printed(*overrides: str) -> str:
        run = compose_run(*BASE, "model=tiny", *overrides)
        console = Console(file=io.StringIO(), width=300)
        show(plan.make(run, world_size=1), run, console)
        return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO

    assert "nothing to learn" not in printed("rope=yarn")
    note = printed("rope=dynamic")
    assert "ard: at 4,096 tokens dynamic scaling leaves RoPE as it is" in note
    assert "in stream short" in note
