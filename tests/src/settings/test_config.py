"""Settings that are composed, and what `evaluate` asks for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from src.settings import strict
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError

BASE = "+experiment=linearard_32k"


def test_recipes_read_a_models_own_tuning(compose_run: Callable[..., RunConfig]) -> None:
    ard = compose_run(BASE, "model=smollm2_135m").recipe.stages["ard"]
    assert (ard.lr, ard.parameters.rank) == (1e-3, 256)


def test_layers_may_be_a_list(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(BASE, "objective.terms.relation.layers=[0,3]")
    assert run.objective.terms["relation"].layers == (0, 3)  # type: ignore[attr-defined]


@pytest.mark.parametrize("both", [True, False])
def test_evaluation_wants_a_run_or_a_model(compose_plain: Callable[..., dict], both: bool) -> None:
    overrides = ["model=tiny", "run=somewhere"] if both else []
    plain = compose_plain(*overrides, name="evaluate")
    with pytest.raises(ConfigError, match=r"give either run=RUN_DIR or model=NAME"):
        strict.load_plain(EvaluateConfig, plain)
