"""What `auto` becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from src.planning import plan
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.settings.config import RunConfig

BASE = "+experiment=linearard_32k"

H200 = ACCELERATORS["h200"]


def small(gib: float) -> DeviceFacts:
    return replace(H200, memory=int(gib * 2**30))


def test_layers_run_again_only_where_memory_asks_for_it(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(BASE)
    large, little = (plan.make(run, world_size=1, device=d) for d in (H200, small(60)))
    assert [s.checkpointing for s in large.stages] == [False, True]
    # The second stage has no teacher that could keep anything.
    assert (large.stages[1].keep, little.stages[0].keep) == ("qkv", "layer_inputs")
    assert little.stages[0].checkpointing
    assert little.stages[0].peak < 0.7 * large.stages[0].peak
    told = compose_run(BASE, "engine.student.gradient_checkpointing=false")
    assert not plan.make(told, world_size=1, device=small(60)).stages[1].checkpointing
