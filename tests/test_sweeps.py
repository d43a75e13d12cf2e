"""Every file of `sweeps/` composes, and every job of it passes the boundary and plans."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from src.multirun import composition
from src.planning import plan
from tests.conftest import by_default

SWEEPS = Path(__file__).resolve().parents[1] / "sweeps"
FILES = sorted(SWEEPS.rglob("*.yaml"))
ASKED_FOR = {
    "layers": 4,
    "learning_rate": 7,
    "lora_rank": 4,
    "methods": 12,
    "qkv_weights": 12,
    "scaling_factor": 12,
    "seeds": 5,
    "token_budget": 7,
}


@functools.cache
def expanded(name: str, model: str, *more: str) -> composition.Sweep:
    varies = any("experiment" in key for key in composition.parameters(name))
    experiment = [] if varies else ["+experiment=linearard_32k"]
    sweep = [*experiment, f"+sweeps={name}", f"model={model}", *more]
    return composition.expand([*sweep, "dry_run=true"])


def test_every_sweep_that_was_asked_for_is_there() -> None:
    assert {path.stem for path in FILES} == set(ASKED_FOR)
    assert all(path.parent == SWEEPS for path in FILES)
    assert composition.names() == sorted(ASKED_FOR)


@pytest.mark.parametrize("model", ["smollm2_135m", "llama2_7b"])
@pytest.mark.parametrize("name", sorted(ASKED_FOR))
@by_default(lambda model: model == "llama2_7b")
def test_every_job_passes_the_boundary_and_plans(name: str, model: str) -> None:
    sweep = expanded(name, model)
    assert len(sweep.jobs) == ASKED_FOR[name]
    for job in sweep.jobs:
        assert job.refusal is None, job
        assert job.settings is not None
        made = plan.make(job.settings, world_size=1)
        assert made.tokens == sum(s.tokens for s in job.settings.recipe.stages.values())
    assert len({job.hash for job in sweep.jobs}) == ASKED_FOR[name]


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_only_existing_keys_are_set(name: str) -> None:
    """A key without + exists, or composing it fails; the experiment is the one that is added."""
    assert [k for k in composition.parameters(name) if k[0] in "+~"] in ([], ["+experiment"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_has_the_command_and_the_question(path: Path) -> None:
    package, command, *_ = path.read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert command.startswith("# python -m src.train -m ")
    assert command.endswith(f"+sweeps={path.stem}")
    assert "?" in composition.question(path.stem)


def test_scaling_factors_are_multiples_of_the_models_own_window() -> None:
    for model, native, kinds in (("llama2_7b", 4096, ()), ("tiny", 8192, ("rope=yarn",))):
        jobs = expanded("scaling_factor", model, *kinds).jobs
        found = {(s.rope.type, s.rope.target_length // native) for j in jobs if (s := j.settings)}
        asked = ("yarn",) if kinds else ("linear", "abf", "yarn")
        assert found == {(kind, k) for kind in asked for k in (2, 4, 8, 16)}


def test_budgets_are_in_units_of_two_to_the_twentieth() -> None:
    jobs = expanded("token_budget", "llama2_7b").jobs
    tokens = [sum(s.tokens for s in j.settings.recipe.stages.values()) for j in jobs if j.settings]
    assert [t / 2**20 for t in tokens] == [0.5, 1, 2.25, 4.25, 16, 64, 256]
