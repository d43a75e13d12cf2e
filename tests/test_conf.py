"""Every experiment and every option of every group composes, passes the boundary and plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.planning import plan
from src.settings.config import RunConfig
from tests.conftest import by_default

CONF = Path(__file__).resolve().parents[1] / "conf"
GOLDEN = Path(__file__).parent / "golden"
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").rglob("*.yaml"))
MODELS = sorted(p.stem for p in (CONF / "model").glob("*.yaml") if p.stem not in ("folder", "hub"))
OPTIONS = sorted(
    f"{p.parent.name}={p.stem}"
    for p in CONF.glob("*/*.yaml")
    if p.parent.name not in ("experiment", "merge", "model", "objective", "parameters")
)
PARAMETERS = sorted(p.stem for p in (CONF / "parameters").glob("*.yaml"))
OPTIONS += [f"parameters@recipe.stages.cpt.parameters={kind}" for kind in PARAMETERS]
OPTIONS += [f"+merge@recipe.stages.merge={p.stem}" for p in sorted((CONF / "merge").glob("*.yaml"))]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@by_default(
    lambda experiment, model: (
        experiment == "linearard_32k"
        or model == "llama2_7b"
        or (experiment == "longred_c_32k" and model.startswith("tiny"))
    )
)
def test_every_experiment_plans_for_every_model(
    compose_run: Callable[..., RunConfig], experiment: str, model: str
) -> None:
    run = compose_run(f"+experiment={experiment}", f"model={model}")
    assert run.experiment == experiment
    made = plan.make(run, world_size=1)
    assert made.tokens == sum(stage.tokens for stage in run.recipe.training.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_passes_the_boundary(
    compose_run: Callable[..., RunConfig], option: str
) -> None:
    needed = {
        "data=files": ["data.sources.files.paths=[text]"],
        "rope=own": [
            "rope.target_length=32768",
            "rope.parameters={rope_type: default, rope_theta: 10000.0}",
        ],
        "rope=per_frequency": ["rope.factors=[1.0,1.0,2.0,4.0]"],
    }
    compose_run("model=tiny", option, *needed.get(option, []))


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("experiment", ["linearard_32k", "quickstart"])
def test_the_first_stage_takes_any_parameters(
    compose_run: Callable[..., RunConfig], experiment: str, kind: str
) -> None:
    chosen = f"parameters@recipe.stages.ard.parameters={kind}"
    made = plan.make(compose_run(f"+experiment={experiment}", chosen), world_size=1)
    assert made.stages[0].trainable_parameters > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_resolved_experiment_is_the_golden_one(
    compose_plain: Callable[..., dict], experiment: str
) -> None:
    """A change of a default changes what users run: regenerate with UPDATE_GOLDEN=1 and say why."""
    import os

    resolved = yaml.safe_dump(compose_plain(f"+experiment={experiment}"), sort_keys=True)
    file = GOLDEN / f"{experiment}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(resolved, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == resolved


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF))
)
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("#")
