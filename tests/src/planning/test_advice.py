"""What is said of a run that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from src.planning import plan
from src.planning.advice import check_fits, misfit
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

# Engines that leave nothing to the plan.
BASE = ("+experiment=linearard_32k", "engine=zero1")

H200 = ACCELERATORS["h200"]


def small(gib: float) -> DeviceFacts:
    return replace(H200, memory=int(gib * 2**30))


@pytest.mark.parametrize(
    ("gib", "world_size", "overrides", "remedy"),
    [
        (40, 1, (), r"it fits with engine\.teacher\.share_base=true \(or"),
        (
            140,
            8,
            ("engine.student.zero_stage=0", "engine.student.gradient_checkpointing=false"),
            r"it fits with engine\.student\.gradient_checkpointing=true",
        ),
        (
            40,
            8,
            ("recipe.stages.ard.parameters.rank=4",),
            r"engine\.student\.zero_stage=3",
        ),
        (5, 1, (), r"with .*offload_optimizer=true.* it would need .* GiB; use more ranks"),
    ],
    ids=["one-copy", "checkpointing", "shards", "nothing"],
)
def test_a_run_that_does_not_fit_is_refused_with_what_would(
    compose_run: Callable[..., RunConfig],
    gib: float,
    world_size: int,
    overrides: tuple[str, ...],
    remedy: str,
) -> None:
    only_ard = ["~recipe.stages.cpt"] if world_size == 1 else []
    run = compose_run(*BASE, *only_ard, *overrides)
    made = plan.make(run, world_size=world_size, device=small(gib))
    with pytest.raises(ConfigError, match=remedy):
        check_fits(made, run)
    check_fits(made, replace(run, allow_oversubscribe=True))


@pytest.mark.parametrize(
    ("gib", "ranks", "overrides"),
    [
        (40, 1, ("~recipe.stages.cpt",)),
        (40, 8, ("engine.student.zero_stage=0",)),
        (24, 8, ("engine.student.zero_stage=0", "engine.student.micro_batch=2")),
        (30, 8, ("engine.compile=true",)),
    ],
    ids=["one-copy", "shards", "shards-and-more", "compiled"],
)
def test_the_settings_it_names_do_fit_and_none_is_needless(
    compose_run: Callable[..., RunConfig], gib: float, ranks: int, overrides: tuple[str, ...]
) -> None:
    run, device = compose_run(*BASE, *overrides), small(gib)
    message = misfit(plan.make(run, world_size=ranks, device=device), run)
    named = re.search(r"it fits with (.*) \(or", message)
    assert named, message
    settings = named[1].split()
    assert len({s.partition("=")[0] for s in settings}) == len(settings), "a key is named once"

    def fits(*more: str) -> bool:
        try:
            changed = compose_run(*BASE, *overrides, *more)
        except ConfigError:
            return False
        return plan.make(changed, world_size=ranks, device=device).fits

    assert fits(*settings)
    for one in settings:
        assert not fits(*(s for s in settings if s != one)), f"{one} is needless"
