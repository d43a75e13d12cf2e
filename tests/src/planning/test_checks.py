"""Settings that contradict each other, the model or the ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from src.planning import plan
from src.planning.checks import check_machine
from src.planning.devices import ACCELERATORS
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

BASE = "+experiment=linearard_32k"

LORA_CPT = ("parameters@recipe.stages.cpt.parameters=lora", "objective.allow_beyond_native=true")


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
        (
            "recipe.stages.cpt={tokens_per_step: 65536, streams: {long: {length: 65536}}}",
            "recipe.stages.cpt.streams.long.length: 65536 .*=32768",
        ),
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
        (["model.family=gemma"], r"engine\.teacher\.share_base: .* qwen3, .*, not 'gemma'"),
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


def test_layer_inputs_of_unknown_layers_are_refused(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE, "model.family=gemma", "engine.teacher.keep=layer_inputs")
    with pytest.raises(
        ConfigError, match=r"engine\.teacher\.keep: layer_inputs .*'gemma'; use qkv"
    ):
        plan.make(run, world_size=1)
    left = plan.make(compose_run(BASE, "model.family=gemma"), world_size=1)
    assert {stage.keep for stage in left.stages} == {"qkv"}


def test_blocks_beyond_the_native_window_that_the_teacher_reads_in_chunks(
    compose_run: Callable[..., RunConfig],
) -> None:
    long = ("recipe.stages.ard.streams.short.length=8192", "objective.terms.relation.teacher_chunk")
    made = plan.make(compose_run(BASE, long[0], f"{long[1]}=4096"), world_size=1)
    assert made.stages[0].steps == 144
    with pytest.raises(ConfigError, match=r"streams\.short\.length: 6000 tokens exceed .* 4096"):
        plan.make(compose_run(BASE, long[0], f"{long[1]}=6000"), world_size=1)
    both = "recipe.stages.ard.streams.short.objective={relation:1.0,logit_distillation:1.0}"
    terms = "objective=[relation,language_modeling,logit_distillation]"
    with pytest.raises(ConfigError, match=r"streams\.short\.objective=relation, logit_dist.* 4096"):
        plan.make(compose_run(BASE, terms, both, f"{long[1]}=4096"), world_size=1)


def test_blocks_beyond_the_native_window_when_allowed(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(
        BASE,
        "recipe.stages.ard.streams.short.length=8192",
        "objective.allow_beyond_native=true",
    )
    assert plan.make(run, world_size=1).stages[0].steps == 144


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.cuda_graphs=true"], r"engine\.cuda_graphs: true, but this is a CPU"),
        (["engine.fused_kernels=true"], r"engine\.fused_kernels: true, but this is a CPU"),
        (["+rope.factor=2"], r"rope\.factor: 2 extends 4096 tokens to 8192, .*at least 8"),
        (["recipe.stages.ard.warmup_steps=145"], r"warmup_steps: 145 .* 144 steps; give at most"),
        (["engine.student.zero_stage=true"], r"zero_stage: a whole number is expected, not True"),
        (["recipe.stages.ard.lr=1e-300"], r"lr: input should be greater than or equal to"),
        (["model.name="], r"model\.name: string should have at least 1 character"),
        (["rope.target_length=100000000000000"], r"rope\.target_length: .* less than or equal"),
        (["budget=1000000000000000000"], r"budget='1000000000000000000': give tokens"),
        (["model=tiny", "model.shape.vocabulary=100"], r"vocabulary=100 is below the 257 of"),
        (["tracking=wandb_offline", "tags=['']"], r"tags: '': W&B takes 1 to 64 characters"),
        (["tracking=wandb_offline", "tracking.project='a/b'"], r"project='a/b': W&B takes 1 to"),
        (["recipe.name='../x'"], r"recipe\.name: string should match pattern"),
    ],
)
def test_what_a_plan_can_know_is_refused_at_once(
    compose_run: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan.make(compose_run(BASE, "engine=cpu", *overrides), world_size=1)


def test_repeats_leave_questions_and_answers_in_their_places(
    compose_run: Callable[..., RunConfig],
) -> None:
    chats = ["data=files", "data.paths=[chats/]", "data.sources.files.messages_field=messages"]
    asked = ["+experiment=restore_32k", "model=tiny", "engine=cpu", *chats]
    plan.make(compose_run(*asked), world_size=1)
    with pytest.raises(ConfigError, match=r"streams\.long\.repeats: repeats move text between"):
        plan.make(compose_run(*asked, "data.sources.files.answers_only=true"), world_size=1)


def test_kernels_that_a_gpu_cannot_run_are_refused(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE, "engine.cuda_graphs=true", "engine.student.gradient_checkpointing=true")
    with pytest.raises(ConfigError, match=r"cuda_graphs: true, but layers are checkpointed"):
        plan.make(run, world_size=1, device=ACCELERATORS["h200"])
    gemma = compose_run(BASE, "model=tiny_gemma3", "engine.fused_kernels=true")
    with pytest.raises(ConfigError, match=r"fused_kernels: true, but models of family gemma3"):
        plan.make(gemma, world_size=1, device=ACCELERATORS["h200"])


def test_a_stream_without_tokens_is_refused(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run("+experiment=longred_c_32k", "model=tiny", "budget=32768")
    with pytest.raises(ConfigError, match=r"recipe\.stages\.mix\.tokens=32768 leaves none for"):
        plan.make(run, world_size=1)


def test_tokens_beyond_counting_are_planned_by_arithmetic(
    compose_run: Callable[..., RunConfig],
) -> None:
    made = plan.make(compose_run(BASE, "budget=1000000000000"), world_size=1)
    assert made.tokens == 10**12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["run_dir=/dev/null/x"],
            "run_dir=/dev/null/x: it cannot be made, because /dev/null is no",
        ),
        (["run_dir=''"], "run_dir: an empty name"),
        (["tracking=wandb_online"], "tracking.mode: online needs a login"),
        (["engine.device=cuda"], "engine.device: cuda is asked for, but the driver shows no GPU"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_in_dry_runs_too(
    compose_run: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("src.planning.checks.uses_cuda", lambda name: False)
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=message):
        check_machine(compose_run(BASE, "dry_run=true", *overrides))
