"""What a run will cost."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from src.models.adapters import make_trainable
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.planning import plan
from src.planning.devices import ACCELERATORS, DeviceFacts
from src.settings.config import ConfigError, RunConfig
from tests.conftest import by_default

BASE = "+experiment=linearard_32k"
LORA_CPT = ("parameters@recipe.stages.cpt.parameters=lora", "objective.allow_beyond_native=true")


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("model", ["llama2_7b", "llama3_8b", "tiny"])
def test_paper_run_has_its_tokens_and_steps_on_any_ranks(
    compose_run: Callable[..., RunConfig], model: str, world_size: int
) -> None:
    made = plan.make(compose_run(BASE, f"model={model}"), world_size=world_size)
    assert [(s.tokens, s.steps) for s in made.stages] == [(2_359_296, 144), (2_097_152, 64)]
    assert (made.tokens, made.steps) == (4_456_448, 208)


def test_it_is_printed(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE)
    text = io.StringIO()
    plan.show(plan.make(run, world_size=8), run, Console(file=text))
    shown = text.getvalue()
    for expected in (
        "2,359,296 + 2,097,152 = 4,456,448 in 144 + 64 optimizer steps",
        "805,306,368",
        "7,543,721,984",
        "88% of their work repeats others'",
    ):
        assert expected in shown


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


def test_text_that_the_scaling_leaves_as_it_was_is_pointed_out(
    compose_run: Callable[..., RunConfig],
) -> None:
    def printed(*overrides: str) -> str:
        run = compose_run(BASE, "model=tiny", *overrides)
        console = Console(file=io.StringIO(), width=300)
        plan.show(plan.make(run, world_size=1), run, console)
        return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO

    assert "nothing to learn" not in printed("rope=yarn")
    note = printed("rope=dynamic")
    assert "ard: at 4,096 tokens dynamic scaling leaves RoPE as it is" in note
    assert "in stream short" in note


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


def test_more_last_tokens_than_a_block_has_are_refused(
    compose_run: Callable[..., RunConfig],
) -> None:
    last = "objective.terms.logit_distillation.last_tokens"
    run = compose_run("+experiment=logit_kd_32k", "engine=cpu", f"{last}=4097")
    with pytest.raises(ConfigError, match=rf"{last}=4097 is more than a block's 4096: give at"):
        plan.make(run, world_size=1)


def test_triton_is_planned_for_a_gpu(compose_run: Callable[..., RunConfig]) -> None:
    triton = ("objective.terms.relation.backend=triton", "dry_run=true", "plan_for=h100")
    plan.make(compose_run(BASE, *triton), world_size=1)


@pytest.mark.parametrize(("theta", "refused"), [(5000.0, True), (10_000.0, False), (2e7, False)])
def test_a_base_below_the_models_own_is_refused(
    compose_run: Callable[..., RunConfig], theta: float, refused: bool
) -> None:
    run = compose_run(BASE, "rope=abf", f"rope.theta={theta}")
    if refused:
        with pytest.raises(ConfigError, match=r"rope\.theta is 5000, below .* 10000"):
            plan.make(run, world_size=1)
    else:
        plan.make(run, world_size=1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "recipe.stages.ard.streams.short.length=8192",
            r"streams.short.length: 8192 .* 4096.*objective.allow_beyond_native=true",
        ),
        ("recipe.stages.cpt.streams.long.objective=lm", "'lm' is not configured; .* relation"),
        (
            "objective.terms.relation.layers=[3,32]",
            "objective.terms.relation.layers=.* from 0 to 31",
        ),
        ("objective.terms.relation.layers=[3,3]", "objective.terms.relation.layers"),
        (
            "recipe.stages.ard.parameters.projections=[w]",
            "projections: .*'w'.* unknown; allowed: q_proj",
        ),
        (
            "recipe.stages.ard.tokens=2359297",
            "recipe.stages.ard.tokens=2359297 ends on .* single token",
        ),
        ("rope.target_length=16384", "recipe.stages.cpt.streams.long.length: 32768 .*=16384"),
        ("recipe.stages.cpt.streams.long.length=1", r"long\.length: .* greater than 1 \(got 1\)"),
        ("model.shape.head_dim=127", r"shape\.head_dim=127 is odd, .* give 128"),
        (
            "objective.terms.relation.backend=triton",
            r"relation\.backend=triton needs a CUDA device",
        ),
    ],
)
def test_contradictions_are_refused(
    compose_run: Callable[..., RunConfig], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.make(compose_run(BASE, override), world_size=1)


CHECKPOINTING = "engine.student.gradient_checkpointing"
SHARED = "engine.teacher.share_base=true"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["parameters@recipe.stages.ard.parameters=full"],
            r"engine\.teacher\.share_base: true, but recipe\.stages\.ard trains base weights",
        ),
        (
            ["recipe.stages.cpt.streams.long.objective=relation", *LORA_CPT],
            r"engine\.teacher\.share_base: true, but recipe\.stages\.cpt starts from what",
        ),
        (["model.family=gemma"], r"engine\.teacher\.share_base: .* qwen3, not 'gemma'"),
        (["engine.teacher.zero_stage=3"], r"engine\.teacher: share_base=true has no engine"),
        (["engine.teacher.offload_parameters=true"], r"offload_parameters=true needs zero_stage 3"),
    ],
    ids=["full", "later-stage", "family", "zero-3", "offload"],
)
def test_a_base_that_cannot_be_shared_is_refused(
    compose_run: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.make(compose_run(BASE, SHARED, *overrides), world_size=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.compile=true", f"{CHECKPOINTING}=true"], "compile=true and student.gradient_che"),
        (["engine.compile=true", "engine.student.zero_stage=3"], "compile=true needs whole weigh"),
        (["engine.compile=true", "engine.teacher.zero_stage=3"], "compile=true needs whole weigh"),
        (
            ["engine.student.zero_stage=0", "engine.student.accumulate_in=float32"],
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


def test_layer_inputs_of_unknown_layers_are_refused(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE, "model.family=gemma", "engine.teacher.keep=layer_inputs")
    with pytest.raises(
        ConfigError, match=r"engine\.teacher\.keep: layer_inputs .*'gemma'; use qkv"
    ):
        plan.make(run, world_size=1)
    left = plan.make(compose_run(BASE, "model.family=gemma"), world_size=1)
    assert {stage.keep for stage in left.stages} == {"qkv"}


def test_one_copy_of_the_weights_saves_the_teachers(compose_run: Callable[..., RunConfig]) -> None:
    two, one = (
        plan.make(compose_run(BASE, *more), world_size=1).stages[0].memory
        for more in ([], [SHARED])
    )
    assert two["teacher weights"] == 2 * 6_738_415_616
    assert one == {part: size for part, size in two.items() if part != "teacher weights"}


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
    run = compose_run(BASE, *only_ard, *overrides)
    made = plan.make(run, world_size=world_size, device=small(gib))
    with pytest.raises(ConfigError, match=remedy):
        plan.check_fits(made, run)
    plan.check_fits(made, replace(run, allow_oversubscribe=True))


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
    run, device = compose_run(BASE, *overrides), small(gib)
    message = plan.misfit(plan.make(run, world_size=ranks, device=device), run)
    named = re.search(r"it fits with (.*) \(or", message)
    assert named, message
    settings = named[1].split()
    assert len({s.partition("=")[0] for s in settings}) == len(settings), "a key is named once"

    def fits(*more: str) -> bool:
        try:
            changed = compose_run(BASE, *overrides, *more)
        except ConfigError:
            return False
        return plan.make(changed, world_size=ranks, device=device).fits

    assert fits(*settings)
    for one in settings:
        assert not fits(*(s for s in settings if s != one)), f"{one} is needless"


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
    plan.show(made, run, Console(file=text))
    assert "does not fit: stage cpt needs" in text.getvalue()
    assert "hours" not in text.getvalue()


def test_blocks_beyond_the_native_window_when_allowed(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(
        BASE,
        "recipe.stages.ard.streams.short.length=8192",
        "objective.allow_beyond_native=true",
    )
    assert plan.make(run, world_size=1).stages[0].steps == 144
