"""The sweep that W&B's agents run is the one that runs here."""

from __future__ import annotations

import itertools

import pytest
import yaml

from src.multirun import composition
from src.multirun.agents import export
from src.tracking import agent_run_id
from tests.conftest import by_default


@pytest.mark.parametrize("name", ["seeds", "layers", "methods"])
@by_default(lambda name: name == "methods")
def test_an_agents_commands_are_the_jobs_of_the_sweep(name: str) -> None:
    """W&B's own code makes each command of the exported grid."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    more = ["model=smollm2_135m", "seed=3" if name != "seeds" else "recipe.stages.ard.lr=0.1"]
    two = "linearard_32k,cpt_long_32k"
    more.append(f"+experiment={two if name == 'methods' else 'linearard_32k'}")
    content = yaml.safe_load(export(name, more))
    assert content["command"][:4] == ["${env}", "${interpreter}", "-m", "src.train"]
    assert content["command"][-1] == "${args_no_hyphens}"
    fixed = content["command"][4:-1]
    assert {"tracking=wandb_online", f"tracking.group={name}"} <= set(fixed)
    keys = list(content["parameters"])
    grid = itertools.product(*(content["parameters"][key]["values"] for key in keys))
    commands = [
        create_sweep_command_args(
            {"args": {k: {"value": v} for k, v in zip(keys, values, strict=True)}}
        )
        for values in grid
    ]
    agents = {
        job.hash
        for command in commands
        for job in composition.expand([*fixed, *command["args_no_hyphens"]]).jobs
    }
    assert agents == {job.hash for job in composition.expand([f"+sweeps={name}", *more]).jobs}


def test_numbers_are_numbers() -> None:
    content = yaml.safe_load(export("learning_rate", ["recipe.stages.ard.lr=1e-3,2"]))
    assert content["parameters"] == {"recipe.stages.ard.lr": {"values": [0.001, 2]}}
    assert content["method"] == "grid"


def test_the_agent_chooses_the_id() -> None:
    assert agent_run_id({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r"}) == "r"
    assert agent_run_id({"WANDB_RUN_ID": "r"}) is None
