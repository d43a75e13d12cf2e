"""Composed settings are those that Hydra itself composes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from src.settings import loading
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def composer() -> loading.Composer:
    return loading.Composer("train")


def by_hydra(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose("train", overrides=overrides)


def outcome(composing: Callable[[list[str]], DictConfig], overrides: list[str]) -> tuple[str, str]:
    """The config before anything is resolved, or the kind and the words of a refusal."""
    try:
        return "composed", OmegaConf.to_yaml(composing(overrides))
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        pytest.param(
            [
                "seed=4",
                "+experiment=linearard_32k",
                "recipe.stages.ard.tokens=4096",
                "parameters@recipe.stages.ard.parameters=full",
                "~recipe.stages.cpt",
                "model={native_window: 512}",
                "rope=ntk",
                "+recipe.stages.ard.streams.more={objective: relation, length: 64}",
                "tags=[a,b]",
            ],
            "composed",
            id="files-and-values",
        ),
        pytest.param(["sed=4"], "ConfigCompositionException", id="key"),
        pytest.param(["seed=4", "rope=nope"], "MissingConfigException", id="file"),
        pytest.param(["seed=1,2"], "ConfigCompositionException", id="several-values"),
        pytest.param(["seed@x=1"], "ConfigCompositionException", id="package"),
        pytest.param(["seed"], "OverrideParseException", id="syntax"),
    ],
)
def test_they_are_those_of_hydra(
    composer: loading.Composer, overrides: list[str], answer: str
) -> None:
    ours = outcome(composer, overrides)
    assert ours == outcome(by_hydra, overrides)
    assert ours[0] == answer


def test_a_value_stays_in_its_own_config(composer: loading.Composer) -> None:
    assert composer(["seed=4", "tags=[a]"]).seed == 4
    assert composer(["tags=[b]"]).seed != 4


def test_what_a_caller_has_composed_stays_in_hydra() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        before = GlobalHydra.instance().hydra
        loading.Composer("train")(["seed=4"])
        assert GlobalHydra.instance().hydra is before


def test_a_scaling_that_is_a_text_is_refused(compose_plain: Callable[..., dict]) -> None:
    with pytest.raises(ConfigError, match=r"^rope: input should be"):
        loading.load(RunConfig, compose_plain("model=tiny") | {"rope": "yarn"})
