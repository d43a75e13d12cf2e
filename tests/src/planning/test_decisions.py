"""What `auto` becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from src.planning import plan
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.settings.config import RunConfig

# Engines that leave nothing to the plan.
BASE = ("+experiment=linearard_32k", "engine=zero1")

H200 = ACCELERATORS["h200"]


def small(gib: float) -> DeviceFacts:
    return replace(H200, memory=int(gib * 2**30))


def test_layers_run_again_only_where_memory_asks_for_it(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(*BASE)
    large, little = (plan.make(run, world_size=1, device=d) for d in (H200, small(60)))
    assert [s.checkpointing for s in large.stages] == [False, True]
    # The second stage has no teacher that could keep anything.
    assert (large.stages[1].keep, little.stages[0].keep) == ("qkv", "layer_inputs")
    assert little.stages[0].checkpointing
    assert little.stages[0].peak < 0.7 * large.stages[0].peak
    told = compose_run(*BASE, "engine.student.gradient_checkpointing=false")
    assert not plan.make(told, world_size=1, device=small(60)).stages[1].checkpointing


def test_as_many_blocks_at_once_as_fit_without_checkpointing_more(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(*BASE, "model=smollm2_135m")
    # Four blocks of 4096 tokens are a step.
    ard, cpt = plan.make(run, world_size=1, device=H200).stages
    assert (ard.micro_batch, ard.accumulation, cpt.micro_batch) == (4, 1, 1)
    assert plan.make(run, world_size=2, device=H200).stages[0].micro_batch == 2
    tight = plan.make(run, world_size=1, device=small(9)).stages[0]
    assert (tight.micro_batch, tight.accumulation, tight.checkpointing) == (2, 2, False)
    told = compose_run(*BASE, "model=smollm2_135m", "engine.student.micro_batch=1")
    assert plan.make(told, world_size=1, device=H200).stages[0].accumulation == 4
    # On a CPU there is no launch to save.
    assert plan.make(compose_run("+experiment=quickstart"), world_size=1).stages[0].micro_batch == 1


def test_graphs_are_recorded_where_nothing_stands_against_it(
    compose_run: Callable[..., RunConfig],
) -> None:
    def stage(*overrides: str) -> plan.StagePlan:
        run = compose_run(*BASE, "model=smollm2_135m", *overrides)
        return plan.make(run, world_size=2, device=H200).stages[0]

    assert stage().graphs
    assert stage().no_graphs is None
    for override, why in {
        "engine.cuda_graphs=false": "cuda_graphs=false",
        "engine.student.gradient_checkpointing=true": "checkpointed",
        "engine.compile=true": "compiled",
        "engine.student.zero_stage=3": "ZeRO-3",
        "engine.teacher.zero_stage=3": "ZeRO-3",
        "rope=longrope": "longrope RoPE",
    }.items():
        planned = stage(override)
        assert not planned.graphs, override
        assert why in str(planned.no_graphs), override
    assert stage("engine.compile=true", "engine.cuda_graphs=true").graphs
    assert not plan.make(compose_run("+experiment=quickstart"), world_size=1).stages[0].graphs


def test_kernels_are_fused_for_llamas_formulas_on_a_gpu(
    compose_run: Callable[..., RunConfig],
) -> None:
    def fused(*overrides: str) -> bool:
        return plan.make(compose_run(*BASE, *overrides), world_size=1, device=H200).stages[0].fused

    assert fused("model=qwen2_5_0_5b")
    assert not fused("model=gemma3_270m")
    assert not fused("model=smollm2_135m", "engine.compile=true")
    assert not fused("model=smollm2_135m", "engine.fused_kernels=false")
    assert not plan.make(compose_run("+experiment=quickstart"), world_size=1).stages[0].fused
