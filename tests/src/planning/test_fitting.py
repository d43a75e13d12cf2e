"""What the plan chooses where engines are `auto`: the least that fits, and the fastest of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from src.planning import fitting, plan
from src.planning.advice import check_fits
from src.planning.devices import ACCELERATORS, DeviceFacts, device_facts
from src.planning.plan import Plan
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from tests.conftest import by_default

BASE = "+experiment=linearard_32k"
H200 = ACCELERATORS["h200"]


def planned(run: RunConfig, ranks: int, device: DeviceFacts) -> Plan:
    run = replace(run, launch=replace(run.launch, nproc=ranks))
    return plan.make(run, world_size=ranks, device=device)


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("device", ACCELERATORS)
@pytest.mark.parametrize(
    "experiment", ["linearard_32k", "cpt_long_32k", "longred_c_32k", "logit_kd_32k"]
)
@by_default(lambda ranks, device, experiment: (device, ranks) == ("h100", 2))
def test_the_papers_runs_fit_as_typed(
    compose_run: Callable[..., RunConfig], experiment: str, device: str, ranks: int
) -> None:
    made = planned(compose_run(f"+experiment={experiment}"), ranks, ACCELERATORS[device])
    assert made.fits
    assert not fitting.is_open(made.engine)


@pytest.mark.parametrize(
    ("device", "ranks", "chosen"),
    [
        ("h200", 1, (1, False, 1)),
        ("h100", 1, (1, True, 1)),
        ("h100", 2, (2, False, 2)),
        ("h100", 8, (1, False, 8)),
    ],
)
def test_it_shards_and_offloads_no_more_than_it_must(
    compose_run: Callable[..., RunConfig], device: str, ranks: int, chosen: tuple[int, bool, int]
) -> None:
    engine = planned(compose_run(BASE), ranks, ACCELERATORS[device]).engine
    student = engine.student
    assert chosen == (student.zero_stage, student.offload_optimizer, engine.sequence_parallel)


def test_a_cpu_computes_in_float32_and_a_gpu_in_bfloat16(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(BASE, "model=tiny")
    assert planned(run, 1, device_facts("cpu")).engine.dtype == "float32"
    assert planned(run, 1, H200).engine.dtype == "bfloat16"
    named = compose_run(BASE, "model=tiny", "engine.dtype=bfloat16")
    assert planned(named, 1, device_facts("cpu")).engine.dtype == "bfloat16"


def test_what_is_named_stays(compose_run: Callable[..., RunConfig]) -> None:
    named = compose_run(
        BASE, "engine.student.zero_stage=2", "engine.student.offload_optimizer=false"
    )
    made = planned(named, 1, ACCELERATORS["h100"])
    assert not made.fits
    assert (made.engine.student.zero_stage, made.engine.student.offload_optimizer) == (2, False)
    whole = planned(compose_run(BASE, "engine=zero1"), 8, H200)
    assert whole.engine.sequence_parallel == 1
    moved = compose_run(BASE, "engine.student.offload_parameters=true")
    assert planned(moved, 1, H200).engine.student.zero_stage == 3


def test_blocks_are_shared_only_if_that_is_planned_to_be_clearly_faster(
    compose_run: Callable[..., RunConfig],
) -> None:
    many = "recipe.stages.cpt.tokens_per_step=262144"
    alone = planned(compose_run("+experiment=cpt_long_32k", many, "engine=zero1"), 8, H200)
    made = planned(compose_run("+experiment=cpt_long_32k", many), 8, H200)
    assert alone.seconds is not None
    assert made.seconds is not None
    assert made.engine.sequence_parallel == 1 or made.seconds * 1.4 < alone.seconds
    few = planned(compose_run("+experiment=cpt_long_32k"), 8, H200)
    assert few.engine.sequence_parallel == 8
    assert few.stages[0].busy == 1


def test_a_device_of_unknown_speed_gets_what_fits(compose_run: Callable[..., RunConfig]) -> None:
    unknown = DeviceFacts("some GPU", ACCELERATORS["h100"].memory)
    made = planned(compose_run(BASE), 2, unknown)
    assert made.fits
    assert made.seconds is None


def test_offloading_more_than_the_host_has_is_refused(
    compose_run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compose_run(BASE)
    made = planned(run, 1, ACCELERATORS["h100"])
    assert made.offloaded == pytest.approx(16 * 6_738_415_616)
    monkeypatch.setattr("src.planning.advice.host_memory", lambda: 64 * 2**30)
    with pytest.raises(ConfigError, match=r"offload_optimizer: true needs .* 100\.41 GiB of the "):
        check_fits(made, run)
    monkeypatch.setattr("src.planning.advice.host_memory", lambda: 256 * 2**30)
    check_fits(made, run)


def test_engines_that_all_contradict_each_other_are_refused_by_name(
    compose_run: Callable[..., RunConfig],
) -> None:
    full = "parameters@recipe.stages.ard.parameters=full"
    run = compose_run(BASE, "engine.teacher.share_base=true", full)
    with pytest.raises(ConfigError, match=r"engine\.teacher\.share_base: true, but recipe"):
        planned(run, 2, H200)
