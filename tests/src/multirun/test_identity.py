"""What makes two jobs one, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from src.multirun.identity import identity
from src.settings.config import RunConfig

Compose = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "dry_run=true",
        "tracking=none",
        "tracking.group=g",
        "tags=[a]",
        "allow_oversubscribe=true",
        "seed=0",
        "recipe.stages.ard.lr=0.001",
        "budget=4.25M",
    ],
)
def test_the_same_run_has_the_same_hash(compose_run: Compose, override: str) -> None:
    one, other = (compose_run("model=tiny", *more) for more in ((), (override,)))
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    "override",
    ["seed=1", "recipe.stages.ard.lr=2e-3", "budget=1M", "rope=abf", "eval=perplexity_32k"],
)
def test_another_run_has_another(compose_run: Compose, override: str) -> None:
    assert identity(compose_run("model=tiny")) != identity(compose_run("model=tiny", override))


def test_what_a_run_folder_keeps_has_the_same_hash(compose_run: Compose) -> None:
    import yaml

    from src.settings import strict
    from src.training.start import _plain

    settings = compose_run("model=tiny", "budget=1M")
    kept = strict.load_plain(RunConfig, yaml.safe_load(yaml.safe_dump(_plain(settings))))
    assert identity(kept) == identity(settings)
