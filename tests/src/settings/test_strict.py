"""What is accepted of plain data, and how the rest is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from src.models.adapters import LoraParameters
from src.settings import loading, strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

BASE = "+experiment=linearard_32k"


def test_lists_become_tuples_and_numbers_keep_their_types(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run(BASE)
    ard = run.recipe.stages["ard"]
    assert isinstance(ard.parameters, LoraParameters)
    assert ard.parameters.projections == ("q_proj", "k_proj", "v_proj")
    assert isinstance(ard.parameters.alpha, float)
    assert ard.tokens == 2_359_296
    assert ard.lr == 2e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"run_dir=runs/{'x' * 300}",
            r"run_dir: x{40}\.\.\. has 300 characters; a name has at most",
        ),
        ("+optim.lr=1", "optim.lr: unknown key 'lr'; allowed: beta1, beta2"),
        (
            "+recipe.stages.ard.tokns=1",
            "recipe.stages.ard.tokns: unknown key 'tokns'; did you mean",
        ),
        ("recipe.stages.ard.tokens=-1", r"recipe.stages.ard.tokens: .* greater than 0 \(got -1\)"),
        ("recipe.stages.ard.tokens=oops", "recipe.stages.ard.tokens: .* valid integer"),
        ("recipe.stages.ard.tokens=1.5", "recipe.stages.ard.tokens: .* valid integer"),
        ("recipe.stages.ard.lr=.inf", "recipe.stages.ard.lr: "),
        ("engine.dtype=fp16", r"engine.dtype: .* 'float32' or 'bfloat16' \(got 'fp16'\)"),
        ("engine.student.zero_stage=4", "engine.student.zero_stage: .* 0, 1, 2 or 3"),
        ("engine.teacher.zero_stage=1", "engine.teacher.zero_stage: .* 0 or 3"),
        (
            "engine.teacher={offload_parameters: true, zero_stage: 0}",
            "engine.teacher: .* zero_stage 3 and share_base=false, not zero_stage=0",
        ),
        (
            "recipe.stages.ard.parameters.type=adapter",
            "recipe.stages.ard.parameters.type: 'adapter' is not one of 'lora', 'qkv', 'full'",
        ),
        (
            "recipe.stages.ard.parameters.dropout=1",
            "recipe.stages.ard.parameters.dropout: .* less than 1",
        ),
        ("rope.target_length=1024", "rope.target_length is 1024, below .* 4096"),
        ("rope.type=yarnish", "rope.type: 'yarnish' is not one of"),
        ("model=folder", r"model\.path=DIR is missing"),
        ("seed=null", "seed: .* valid integer"),
        ("recipe.stages.ard.streams=null", "recipe.stages.ard.streams: "),
        (
            "objective.terms.relation.weights={qq: 0, kk: 0, vv: 0}",
            "objective.terms.relation.weights: weights qq, kk, vv, qk and av are all 0",
        ),
        (
            "objective.terms.relation.weights.qq=-1",
            "objective.terms.relation.weights.qq: .* or equal to 0",
        ),
        ("eval.perplexity.headline=7", "eval.perplexity: headline=7 is not among windows"),
        (
            "+recipe.stages.ard.step_sizes="
            "[{from_tokens: 1, tokens_per_step: 16384, slot_token: 32768}]",
            r"step_sizes.0.slot_token: unknown key 'slot_token'; did you mean 'slot_tokens'",
        ),
        (
            "recipe.stages.ard.streams.short.objective={relation: 0}",
            r"^recipe.stages.ard.streams.short.objective.relation: .* greater than 0 \(got 0\)$",
        ),
        ("objective.terms.relation.layers=first", r"relation.layers: .*list of indices.*'first'"),
        ("objective.terms.relation.layers=[-1]", r"relation.layers: .*list of indices.*\[-1\]"),
        ("model.shape.kv_heads=5", "model.shape|model: .*not a multiple of kv_heads=5"),
    ],
)
def test_refused_with_path_and_remedy(
    compose_run: Callable[..., RunConfig], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run(BASE, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "model.native_window=abc",
            "model.native_window: input should be a valid integer (got 'abc')",
            id="by-a-function",
        ),
        pytest.param(
            "model.tuning.lora_rank=abc",
            "model.tuning.lora_rank: input should be a valid integer (got 'abc')",
            id="as-it-is",
        ),
        pytest.param(
            "rope.target_length=0",
            "rope.target_length: input should be greater than 0 (got 0)",
            id="no-logarithm",
        ),
        pytest.param(
            "data.packing=maybe",
            "data.packing: input should be 'auto' or a valid boolean (got 'maybe')",
            id="of-several-kinds",
        ),
        pytest.param(
            "tags=x", "tags: input should be a list; write tags=[x] (got 'x')", id="no-list"
        ),
        pytest.param(
            "+eval.ruler.lengths=[]",
            "eval.ruler.lengths: at least 1 is needed (got [])",
            id="empty",
        ),
        pytest.param(
            "rope=per_frequency",
            "rope.factors: a value is missing; give rope.factors=VALUE",
            id="missing",
        ),
    ],
)
def test_one_mistake_is_one_line_about_the_key_that_was_typed(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loading.compose(RunConfig, "train", [BASE, "model=tiny", override])
    assert str(refused.value) == message


def test_every_fault_is_named_at_once(compose_run: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(BASE, "recipe.stages.ard.tokens=-1", "engine.dtype=fp16")
    assert "recipe.stages.ard.tokens" in str(caught.value)
    assert "engine.dtype" in str(caught.value)


def test_a_run_folders_config_is_accepted_again(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE)
    assert strict.load_plain(RunConfig, strict.to_containers(run)) == run


def test_keys_at_names_what_is_allowed() -> None:
    assert "zero_stage" in strict.keys_at(RunConfig, ["engine", "student"])
    assert strict.keys_at(RunConfig, ["recipe", "stages", "any"])[:2] == [
        "tokens",
        "tokens_per_step",
    ]
    assert {"target_length", "factor", "theta"} <= set(strict.keys_at(RunConfig, ["rope"]))


def test_thousands_of_faults_are_a_short_message(compose_plain: Callable[..., dict]) -> None:
    plain = compose_plain("model=tiny") | {"tags": list(range(20_000))}
    with pytest.raises(ConfigError, match="and 19950 more faults") as refused:
        strict.load_plain(RunConfig, plain)
    assert len(str(refused.value).splitlines()) == 51


def test_binary_data_is_refused(compose_plain: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match=r"^tags\.0: binary data; give a number or a text"):
        strict.load_plain(RunConfig, compose_plain("model=tiny") | {"tags": [b"x"]})


def test_a_class_with_a_field_that_yaml_cannot_hold_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine:
        text: io.StringIO

    with pytest.raises(ConfigError, match=r"_io\.StringIO'>; use bool, int, float"):
        strict.load_plain(Mine, {})
