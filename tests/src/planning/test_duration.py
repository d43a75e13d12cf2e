"""A step takes the longer of the device's work and the host's launches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from src.planning import plan
from src.planning.devices import ACCELERATORS
from src.settings.config import RunConfig

# Engines that leave nothing to the plan.
BASE = ("+experiment=linearard_32k", "engine=zero1")
LAUNCHED = ("engine.cuda_graphs=false", "engine.fused_kernels=false")
RESULT = Path(__file__).parents[3] / "benchmarks" / "results" / "step.json"


def seconds(compose_run: Callable[..., RunConfig], *overrides: str) -> float:
    run = compose_run(*BASE, *overrides)
    planned = plan.make(run, world_size=1, device=ACCELERATORS["h200"]).stages[0]
    assert planned.seconds_per_step is not None
    return planned.seconds_per_step


def test_small_models_wait_for_the_host_unless_launches_are_replayed(
    compose_run: Callable[..., RunConfig],
) -> None:
    small = "model=smollm2_135m"
    one = seconds(compose_run, small, *LAUNCHED, "engine.student.micro_batch=1")
    four = seconds(compose_run, small, *LAUNCHED, "engine.student.micro_batch=4")
    replayed = seconds(compose_run, small)
    assert one > 3 * four > 5 * replayed
    # A large model keeps the device busy.
    large = seconds(compose_run, *LAUNCHED, "engine.student.micro_batch=1")
    assert large < 1.3 * seconds(compose_run, *LAUNCHED, "engine.student.micro_batch=2")


@pytest.mark.parametrize("device", ["NVIDIA H200"])
def test_the_plan_is_within_a_quarter_of_what_was_measured(device: str) -> None:
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"]
    errors = {
        (row["model"], row["case"]): row["value"]
        for row in rows
        if row["name"] == "plan_error_time" and row["device"] == device and row["ranks"] == 1
    }
    assert len(errors) >= 8
    assert len({model for model, _ in errors}) >= 3
    assert max(errors.values()) <= 25
