"""What a run will cost."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from src.models.adapters import make_trainable
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.planning import plan
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.planning.printing import show
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from tests.conftest import by_default

BASE = "+experiment=linearard_32k"


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("model", ["llama2_7b", "llama3_8b", "tiny"])
def test_paper_run_has_its_tokens_and_steps_on_any_ranks(
    compose_run: Callable[..., RunConfig], model: str, world_size: int
) -> None:
    made = plan.make(compose_run(BASE, f"model={model}"), world_size=world_size)
    assert [(s.tokens, s.steps) for s in made.stages] == [(2_359_296, 144), (2_097_152, 64)]
    assert (made.tokens, made.steps) == (4_456_448, 208)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llama2_7b", 6_738_415_616),
        ("llama3_8b", 8_030_261_248),
        ("mistral_7b", 7_241_732_096),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen2_5_7b", 7_615_616_512),
        ("qwen3_0_6b", 596_049_920),
        ("qwen3_8b", 8_190_735_360),
        ("gemma3_270m", 268_098_176),
        ("gemma3_1b", 999_885_952),
    ],
)
def test_parameters_of_known_models(
    compose_run: Callable[..., RunConfig], model: str, parameters: int
) -> None:
    assert compose_run(BASE, f"model={model}").model.shape.parameters == parameters


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "qkv", "full"])
@pytest.mark.parametrize(
    "model", ["tiny", "tiny_mistral", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"]
)
@by_default(lambda model, kind: model == "tiny_gemma3" or kind in ("dora", "qkv"))
def test_parameters_are_those_of_the_built_model(
    compose_run: Callable[..., RunConfig], model: str, kind: str
) -> None:
    chosen = f"parameters@recipe.stages.ard.parameters={kind}"
    run = compose_run(BASE, f"model={model}", chosen)
    network = load_model(run.model, native_config(run.model), dtype=torch.float32)
    assert run.model.shape.parameters == sum(p.numel() for p in network.parameters())
    stage = run.recipe.stages["ard"]
    trained = make_trainable(network, stage.parameters, seed=0)
    made = plan.make(run, world_size=1).stages[0]
    assert made.trainable_parameters == sum(
        p.numel() for p in trained.parameters() if p.requires_grad
    )
    assert made.total_parameters == sum(p.numel() for p in trained.parameters())


def test_memory_shards_with_the_stage(compose_run: Callable[..., RunConfig]) -> None:
    def parts(*overrides: str) -> dict[str, float]:
        return plan.make(compose_run(BASE, *overrides), world_size=4).stages[1].memory

    for stage, part in ((1, "optimizer"), (2, "gradients"), (3, "student weights")):
        whole = parts(f"engine.student.zero_stage={stage - 1}")
        sharded = parts(f"engine.student.zero_stage={stage}")
        assert sharded[part] == pytest.approx(whole[part] / 4)
    assert parts("engine.student.offload_optimizer=true")["optimizer"] == 0


def test_work_of_a_dense_model_is_six_flops_a_weight_and_token(
    compose_run: Callable[..., RunConfig],
) -> None:
    """At short length attention is negligible, so the known rule of thumb must come out."""
    run = compose_run(
        BASE,
        "engine.student.gradient_checkpointing=false",
        "recipe.stages.cpt.streams.long.length=128",
        "recipe.stages.cpt.tokens_per_step=1024",
    )
    stage = plan.make(run, world_size=1).stages[1]
    assert stage.flops / stage.tokens == pytest.approx(6 * run.model.shape.parameters, rel=0.05)


CHECKPOINTING = "engine.student.gradient_checkpointing"
SHARED = "engine.teacher.share_base=true"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.compile=true", f"{CHECKPOINTING}=true"], "compile=true and student.gradient_che"),
        (["engine.compile=true", "engine.student.zero_stage=3"], "compile=true needs whole weigh"),
        (["engine.compile=true", "engine.teacher.zero_stage=3"], "compile=true needs whole weigh"),
        (
            [
                *("engine.dtype=bfloat16", "engine.student.zero_stage=0"),
                "engine.student.accumulate_in=float32",
            ],
            "student.accumulate_in=float32 needs zero_stage 1, 2 or 3 in bfloat16",
        ),
        (
            ["engine.dtype=float32", "engine.student.accumulate_in=bfloat16"],
            "student.accumulate_in=bfloat16 is for dtype=bfloat16",
        ),
        ([f"{CHECKPOINTING}=sometimes"], CHECKPOINTING),
    ],
    ids=["checkpointing", "student", "teacher", "no-zero", "float32", "word"],
)
def test_engines_that_contradict_themselves_are_refused(
    compose_run: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"engine.*{re.escape(message)}|^{re.escape(message)}"):
        compose_run(BASE, *overrides)


def test_one_copy_of_the_weights_saves_the_teachers(compose_run: Callable[..., RunConfig]) -> None:
    two, one = (
        plan.make(compose_run(BASE, "engine.dtype=bfloat16", *more), world_size=1).stages[0].memory
        for more in ([], [SHARED])
    )
    assert two["teacher weights"] == 2 * 6_738_415_616
    assert one == {part: size for part, size in two.items() if part != "teacher weights"}


H200 = ACCELERATORS["h200"]


def test_a_dry_run_may_plan_for_another_device(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE, "dry_run=true", "plan_for=h200")
    made = plan.make(run, world_size=1)
    assert made.device == H200
    assert all(stage.seconds_per_step for stage in made.stages)
    with pytest.raises(ConfigError, match=r"plan_for=h200 is for dry runs: add dry_run=true"):
        compose_run(BASE, "plan_for=h200")


def test_an_unknown_gpu_has_a_plan_without_times(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE)
    made = plan.make(run, world_size=1, device=DeviceFacts("some GPU", 24 * 2**30))
    assert [stage.seconds_per_step for stage in made.stages] == [None, None]
    text = io.StringIO()
    show(made, run, Console(file=text))
    assert "does not fit: stage cpt needs" in text.getvalue()
    assert "time: not known" in text.getvalue()
