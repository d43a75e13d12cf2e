"""Every experiment trains: two real steps of the tiny model, every stream read, finite losses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from src.settings.config import RunConfig
from src.training import start
from tests.conftest import ROOT

EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf" / "experiment").rglob("*.yaml"))

# Blocks a thirty-second as long, two steps a stage.
SHORT = ["model.native_window=256", "rope.target_length=1024"]
MIXTURE = [
    *SHORT,
    "budget=8192",
    "recipe.stages.mix.tokens_per_step=4096",
    "recipe.stages.mix.slot_tokens=1024",
    "recipe.stages.mix.streams.long.length=1024",
    "recipe.stages.mix.streams.short.length=32",
]
ONE_OF_EACH = [
    *SHORT,
    "budget=4096",
    "recipe.stages.mix.tokens_per_step=2048",
    "recipe.stages.mix.streams.short.length=128",
]
CPT = ["recipe.stages.cpt.tokens_per_step=1024", "recipe.stages.cpt.streams.long.length=1024"]


def first_stage(name: str) -> list[str]:
    stage = f"recipe.stages.{name}"
    return [
        f"{stage}.tokens=1024",
        f"{stage}.tokens_per_step=512",
        f"{stage}.streams.short.length=128",
    ]


SHORTER = {
    "cpt_long_32k": [*SHORT, *CPT, "budget=2048"],
    "cpt_mix_32k": MIXTURE,
    "linearard_32k": [*SHORT, *first_stage("ard"), *CPT, "recipe.stages.cpt.tokens=2048"],
    "logit_kd_32k": [
        *SHORT,
        *first_stage("kd"),
        *CPT,
        "recipe.stages.cpt.tokens=2048",
        "budget=3072",
    ],
    "longred_c_32k": MIXTURE,
    "longred_u_32k": MIXTURE,
    "restore_32k": [*SHORT, "budget=2048"],
    "restore_after_cpt": [
        *SHORT,
        "budget=3072",
        "recipe.stages.cpt.tokens=2048",
        *first_stage("restore"),
    ],
    "restore_copy": [
        *SHORT,
        "budget=3072",
        "recipe.stages.mix.streams.short.length=128",
        "recipe.stages.mix.streams.skip.length=128",
        "recipe.stages.mix.streams.skip.repeats.longest=64",
    ],
    "restore_gentle": [
        *SHORT,
        *first_stage("ard"),
        *CPT,
        "budget=3072",
        "recipe.stages.cpt.tokens=2048",
    ],
    "restore_longce": [*SHORT, "budget=2048", "objective.terms.longce.short_context=256"],
    "restore_mix": ONE_OF_EACH,
    "restore_replay": [
        *SHORT,
        "budget=2560",
        "recipe.stages.mix.tokens_per_step=1280",
        "recipe.stages.mix.streams.short.length=128",
    ],
    "restore_window": [*SHORT, "budget=2048"],
    "restore_short": [
        *SHORT,
        "budget=1024",
        "recipe.stages.mix.streams.short.length=128",
        "recipe.stages.mix.streams.skip.length=128",
        "recipe.stages.mix.streams.skip.repeats.longest=64",
    ],
    "restore_skip": [*ONE_OF_EACH, "recipe.stages.mix.streams.skip.length=128"],
    "quickstart": [*SHORT, *first_stage("ard")],
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_steps_of_the_tiny_model(
    compose_run: Callable[..., RunConfig], prose: Path, tmp_path: Path, experiment: str
) -> None:
    settings = compose_run(
        f"+experiment={experiment}",
        "model=tiny",
        "data=files",
        f"data.sources.files.paths=[{prose}]",
        "data.held_out=[held-*]",
        "engine=cpu",
        "tracking=none",
        "eval=none",
        f"run_dir={tmp_path / 'run'}",
        *SHORTER[experiment],
    )
    folder = start.train(settings, None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(settings.recipe.stages)
    for line in lines:
        losses = [value for key, value in line.items() if key.startswith("loss/")]
        flat = [x for value in losses for x in (value if isinstance(value, list) else [value])]
        assert all(math.isfinite(x) for x in [*flat, line["grad_norm"]])
        assert line["grad_norm"] > 0
    for stage in settings.recipe.stages:
        own = [line for line in lines if line["stage"] == stage]
        assert len(own) == 2
    assert (folder / "export" / "config.json").is_file()
