"""Engines over divided weights: two ranks, each with its part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src import launch, models, plan, run
from src.adapters import make_trainable
from src.config import RunConfig
from src.devices import DTYPES
from src.launch import World
from tests.src.live_bytes import LiveBytes

ComposeRun = Callable[..., RunConfig]
STAGE = "ard"
# Wide enough for its layers to weigh more than buffers, deep enough for a whole to be many weights.
DEEP = ("model.shape.layers=16", "model.shape.hidden=64", "model.shape.intermediate=128")

# Every rank builds the engines of a stage and leaves what it has found.
RANK = """
import json
from pathlib import Path
from src import config, launch
from src.config import RunConfig
from tests.src.test_engine import built
def work(world):
    with launch.joined(world, cuda=False):
        settings = config.load_plain(RunConfig, json.loads(Path({settings!r}).read_text()))
        found = built(settings, world)
        Path({logs!r}, f"found-{{world.rank}}.json").write_text(json.dumps(found))
        launch.leave(world)
launch.run_rank(work, Path({logs!r}))
"""


def built(settings: RunConfig, world: World) -> dict[str, Any]:
    """A rank's part in bytes, the most that was alive while it came to be, and the weights' hash."""
    planned = plan.make(settings, world_size=world.size).stage(STAGE)
    with LiveBytes() as live:
        engines = run.build(settings, STAGE, planned, settings.objectives(STAGE), world.size)
    # An engine makes buckets and master weights besides; what is asked is how models come.
    teacher = engines.teacher
    return {
        "student": engines.student.weight_bytes(),
        "teacher": teacher.weight_bytes() if teacher else 0,
        "peak": live.peak,
        "frozen": engines.student.frozen_sha256(),
        "taught": teacher.sha256() if teacher else None,
        "trained": {
            name: hash_of(value) for name, value in engines.student.trained_parameters().items()
        },
    }


def hash_of(value: torch.Tensor) -> float:
    """Two tensors' are the same only if their numbers are, by all likelihood."""
    flat = value.detach().double().flatten()
    return float((flat * torch.arange(1, flat.numel() + 1).double().sqrt()).sum())


@pytest.fixture
def on_ranks(compose_plain: Callable[..., dict], tmp_path: Path) -> Callable[..., list[dict]]:
    """on_ranks(2, *overrides) -> what each rank's `built` has found."""

    def start(count: int, *overrides: str) -> list[dict]:
        logs = tmp_path / "-".join(str(len(list(tmp_path.iterdir()))))
        logs.mkdir()
        settings = logs / "settings.json"
        settings.write_text(json.dumps(compose_plain(*overrides)))
        program = ["-c", RANK.format(settings=str(settings), logs=str(logs))]
        launch.spawn(program, nproc=count, logs=logs)
        return [json.loads((logs / f"found-{rank}.json").read_text()) for rank in range(count)]

    return start


SHARDED = ("engine.student.zero_stage=3", "engine.teacher.zero_stage=3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param((), id="lora"),
        pytest.param(("parameters@recipe.stages.ard.parameters=dora",), id="dora"),
        pytest.param(("parameters@recipe.stages.ard.parameters=full",), id="full"),
        pytest.param(("parameters@recipe.stages.ard.parameters=qkv",), id="qkv"),
    ],
)
def test_two_ranks_have_the_weights_of_a_whole_model(
    on_ranks: Callable[..., list[dict]], tiny_overrides: list[str], parameters: tuple[str, ...]
) -> None:
    overrides = [*tiny_overrides, *parameters]
    [whole] = on_ranks(1, *overrides)
    first, second = on_ranks(2, *overrides, *SHARDED)
    for key in ("frozen", "taught", "trained"):
        assert first[key] == whole[key]
    assert second["frozen"] == whole["frozen"]
    assert second["taught"] == whole["taught"]
