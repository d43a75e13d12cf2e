"""A merged model is the mean of two, by the shares that were asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from src.models.hf_config import native_config
from src.models.loading import load_model
from src.models.merging import MergeConfig, merge_into
from src.planning import plan
from src.planning.printing import show
from src.settings import strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

LINEAR = MergeConfig("linear", weight=0.25)


def networks(compose_run: Callable[..., Any], name: str) -> tuple[Any, Any]:
    """A model and another one of other weights."""
    model = compose_run(f"model={name}", "model.shape.layers=4").model
    load = load_model(model, native_config(model), dtype=torch.float32)
    other = load_model(model, native_config(model), dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    for weight in other.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=draw))
    return other, load


@pytest.mark.parametrize("name", ["tiny", "tiny_gemma3"])
@pytest.mark.parametrize(
    ("asked", "shares", "first", "last"),
    [
        (LINEAR, [0.25] * 4, 0.25, 0.25),
        (MergeConfig("linear", weight=1.0), [1.0] * 4, 1.0, 1.0),
        (MergeConfig("by_layer", layers=(1.0, 0.4)), [1.0, 0.8, 0.6, 0.4], 1.0, 0.4),
        (MergeConfig("by_layer", layers=(0.0, 1.0, 0.5, 0.2)), [0.0, 1.0, 0.5, 0.2], 0.0, 0.2),
    ],
    ids=["linear", "all of the trained", "ramp", "each layer"],
)
def test_each_weight_is_the_mean(
    compose_run: Callable[..., Any],
    name: str,
    asked: MergeConfig,
    shares: list[float],
    first: float,
    last: float,
) -> None:
    trained, native = networks(compose_run, name)
    before = {n: w.detach().clone() for n, w in trained.named_parameters()}
    merge_into(trained, native, asked)
    for n, w in trained.named_parameters():
        share = first if "embed" in n else last
        if ".layers." in n:
            share = shares[int(n.split(".layers.")[1].split(".")[0])]
        expected = share * before[n] + (1 - share) * dict(native.named_parameters())[n]
        torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=1e-6)


Compose = Callable[..., dict[str, Any]]


def loaded(plain: dict[str, Any], **stages: Any) -> RunConfig:
    """A run's config with more stages; a stage that is None is left out."""
    recipe = plain["recipe"]
    stages = {n: s for n, s in (recipe["stages"] | stages).items() if s is not None}
    return strict.load_plain(RunConfig, plain | {"recipe": recipe | {"stages": stages}})


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"merge": "linear"}, r"merge: merge=linear has no share: give weight alone"),
        ({"merge": "linear", "layers": [1, 0.5]}, r"linear has layers: give weight alone"),
        ({"merge": "by_layer", "weight": 0.5}, r"by_layer has weight: give layers alone"),
        (
            {"merge": "by_layer", "weight": 0.5, "layers": [0.1, 0.2]},
            r"by_layer has layers and weight: give layers alone",
        ),
        (
            {"merge": "linear", "weight": 1.5},
            r"stages\.merge\.weight: .*less than or equal",
        ),
        ({"merge": "by_layer", "layers": [0.5]}, r"recipe\.stages\.merge\.layers: "),
        (
            {"merge": "slerp", "weight": 0.5},
            r"recipe\.stages\.merge\.merge: .*'linear' or 'by_layer'",
        ),
        (
            {"merge": "linear", "weight": 0.5, "tokens": 4},
            r"recipe\.stages\.merge\.tokens: unknown key 'tokens'; .*merge, weight, layers",
        ),
    ],
)
def test_shares_that_say_nothing_are_refused(
    compose_plain: Compose, merge: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        loaded(compose_plain("model=tiny"), merge=merge)


SHARE = {"merge": "linear", "weight": 0.5}


def test_a_fault_of_a_training_stage_is_named_as_before(compose_plain: Compose) -> None:
    plain = compose_plain("model=tiny")
    wrong = plain["recipe"]["stages"]["cpt"] | {"lr": -1.0}
    with pytest.raises(ConfigError, match=r"^recipe\.stages\.cpt\.lr: ") as refused:
        loaded(plain, cpt=wrong, merge=SHARE)
    assert "StageConfig" not in str(refused.value)


def test_the_first_stage_has_nothing_to_merge(compose_plain: Compose) -> None:
    with pytest.raises(ConfigError, match=r"stages\.merge merges .* and is the first"):
        loaded(compose_plain("model=tiny"), ard=None, cpt=None, merge=SHARE)


def test_a_budget_is_for_the_stages_that_train(compose_plain: Compose) -> None:
    config = loaded(compose_plain("model=tiny", "budget=4.25M"), merge=SHARE)
    assert list(config.recipe.stages) == ["ard", "cpt", "merge"]
    assert sum(stage.tokens for stage in config.recipe.training.values()) == 4_456_448


def test_shares_of_more_layers_than_there_are(compose_plain: Compose) -> None:
    merge = {"merge": "by_layer", "layers": [1, 0.5, 0.2]}
    config = loaded(compose_plain("model=tiny"), merge=merge)
    with pytest.raises(ConfigError, match=r"recipe\.stages\.merge\.layers has 3 .*at most 2"):
        plan.make(config, world_size=1)


@pytest.mark.parametrize("group", ["linear", "by_layer"])
def test_the_groups_settings_are_a_stage(compose_plain: Compose, group: str) -> None:
    plain = compose_plain("model=tiny", f"+merge@recipe.stages.merge={group}")
    assert list(plain["recipe"]["stages"]) == ["ard", "cpt", "merge"]
    config = strict.load_plain(RunConfig, plain)
    assert isinstance(config.recipe.stages["merge"], MergeConfig)
    lines = Console(record=True, width=200, file=io.StringIO())
    show(plan.make(config, world_size=1), config, lines)
    assert "merge merges with the native model" in lines.export_text()
