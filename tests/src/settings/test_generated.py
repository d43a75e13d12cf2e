"""Generated settings: each is accepted or refused in words, soon, and leaves nothing behind.

A case is a command line with one to three faults, drawn with a fixed seed: typos in keys and names,
values of wrong types, absurd numbers, syntax errors, and settings that may contradict each other.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from src import command
from src.dashboard import DashboardConfig
from src.planning import checks, plan
from src.planning.printing import show
from src.settings import loading
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError
from tests.answered import Answers
from tests.conftest import ROOT

CONF = ROOT / "conf"
BOUNDARIES = {"train": RunConfig, "evaluate": EvaluateConfig, "dashboard": DashboardConfig}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))

VALUES = [
    *("0", "-1", "1", "2", "3", "7", "1.5", "1e-300", "1e300", "1e400", "nan", "inf", "-inf"),
    *("10**12", str(10**12), str(10**14), str(10**18), str(10**30), "9" * 400, "-" + "9" * 30),
    *("null", "true", "false", "''", "' '", "abc", "[]", "[1]", "[a,b]", "{}", "{a: 1}", "???"),
    *(
        "[[1,[2]]]",
        "{a: {b: [null]}}",
        "'\\'",
        "x" * 300,
        "'a/b'",
        "../../x",
        "/dev/null/x",
        "\u00e9",
    ),
    *("${seed}", "${nope}", "${model}", "${oc.env:HOME}", "${oc.env:NOPE}", "${times:2,3}"),
    *(
        "${every:2,999999999999}",
        "${times:a,b}",
        "auto",
        "cuda",
        "cpu",
        "1,2",
        "'1,2'",
        "1e3M",
        "4.25M",
    ),
    *("0M", "512M", "1000000M", "65536", "131072", "99999", "4096", "32768", "1048576"),
]
PAIRS = [
    *("engine=cpu", "engine=zero3", "engine.device=cuda", "engine.cuda_graphs=true"),
    *("engine.fused_kernels=true", "engine.compile=true", "engine.sequence_parallel=2"),
    *("engine.sequence_parallel=3", "engine.student.zero_stage=3", "engine.teacher.zero_stage=3"),
    *("engine.student.zero_stage=true", "engine.teacher.share_base=true", "engine.dtype=float32"),
    *("engine.teacher.keep=layer_inputs", "engine.student.offload_optimizer=true"),
    *("engine.student.gradient_checkpointing=true", "engine.student.accumulate_in=float32"),
    *(
        "rope=yarn",
        "rope=abf",
        "rope=dynamic",
        "rope=longrope",
        "rope=per_frequency",
        "rope=llama3",
    ),
    *("rope.target_length=4096", "rope.target_length=131072", "rope.target_length=5000"),
    *("+rope.factor=2", "rope.factor=2", "rope.factor=1000", "rope.theta=1"),
    *("budget=1", "budget=2", "budget=1000", "budget=65536", "budget=1M", "budget=4.25M"),
    *(
        "budget=1000000000000",
        "launch.nproc=2",
        "launch.nproc=3",
        "launch=slurm",
        "launch=torchrun",
    ),
    *("launch.nodes=2", "tracking=wandb_online", "tracking=wandb_offline", "tags=['']"),
    *("tracking.project='a/b'", "plan_for=h100", "dry_run=true", "dry_run=false", "run_dir=x"),
    *(
        "run_dir=/dev/null/x",
        "eval=short",
        "eval=long",
        "eval=all",
        "eval=none",
        "sweep_resume=true",
    ),
    *("objective.allow_beyond_native=true", "data=kjv", "data=files", "seed=-1", "resume=x"),
    *("model.shape.vocabulary=10", "model.shape.heads=7", "model.shape.layers=1", "model=hub"),
    *("model=folder", "model.path=nowhere", "model.repo=a/b", "model.native_window=1"),
]
SYNTAX = [
    *("=1", "dry_run", "--experiment", "--experiment=x", "-x", "a=b=c", "run_dir=/x/lr=1e-4", ""),
    *("tags=[a", "tags={a", "run_dir='a", "seed==3", "+", "~", "~seed", "~model", "~nope", "++x=1"),
    *(
        "seed=",
        "model=",
        "model=null",
        "model=3",
        "model=[a]",
        "+experiment=",
        "experiment=quickstart",
    ),
    *("model@x=tiny", "parameters@recipe.stages.nope.parameters=lora", "objective/weights=x"),
    *(
        "a.b.c=1",
        "seed.x=1",
        ".=1",
        "a..b=1",
        "=",
        "==",
        "\n",
        "seed=1,2",
        "seed=range(1,3)",
        "+sweeps=x",
    ),
    *("seed=\x00", "\u202e=1", "hydra.run.dir=x", "hydra=x", "hydra/launcher=nope", "+model=tiny"),
]


def keys_of(config: DictConfig) -> list[str]:
    """The dotted paths of all values."""

    def walk(value: Any, path: str) -> Iterator[str]:
        if path:
            yield path
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else str(key))

    return list(walk(OmegaConf.to_container(config), ""))


composer = functools.cache(loading.Composer)


def work(name: str, overrides: list[str]) -> None:
    """What the command does before it loads anything."""
    boundary = BOUNDARIES[name]
    command.check_arguments(overrides, boundary)
    settings: Any = loading.load(boundary, composer(name)(overrides))
    if name != "train" or settings.resume is not None:
        return
    checks.check_launch(settings.launch, None, dry_run=settings.dry_run)
    checks.check_machine(settings)
    with Path("/dev/null").open("w") as nowhere:
        made = plan.make(settings, world_size=settings.launch.ranks)
        show(made, settings, Console(file=nowhere))


def outcome(name: str, overrides: list[str]) -> str:
    """Whether the command accepts; a refusal is raised."""
    try:
        work(name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(command.explain_hydra(error, BOUNDARIES[name])) from error
    return "accepted"


def typo(draw: random.Random, text: str) -> str:
    at = draw.randrange(len(text))
    letter = draw.choice("abcxyz_1")
    return draw.choice(
        [
            text[:at] + text[at + 1 :],
            text[:at] + letter + text[at:],
            text[:at] + letter + text[at + 1 :],
        ]
    )


def case(draw: random.Random, chosen: Sequence[Sequence[str]]) -> tuple[str, list[str]]:
    """A command's config and its overrides; `chosen` are the choices to begin with."""
    name = draw.choices(list(BOUNDARIES), [8, 1, 1])[0]
    line: list[str] = []
    if name == "train":
        line = list(draw.choice(chosen))
        line += ["dry_run=true"] * (draw.random() < 0.5)
    base = [override for override in line if override.partition("=")[0] != "dry_run"]
    if name == "evaluate":
        line = base = ["model=tiny", f"eval={draw.choice(['short', 'long', 'perplexity'])}"]
    keys = keys_of(composer(name)(base))
    for _ in range(draw.choice([1, 1, 2, 3])):
        kind = draw.choices(["value", "key", "choice", "pair", "syntax"], [10, 2, 1, 5, 1])[0]
        if kind == "value":
            line.append(
                f"{draw.choice(['', '', '', '+', '++'])}{draw.choice(keys)}={draw.choice(VALUES)}"
            )
        elif kind == "key":
            line.append(
                f"{draw.choice(['', '+'])}{typo(draw, draw.choice(keys))}={draw.choice(VALUES)}"
            )
        elif kind == "choice":
            group = draw.choice(["model", "rope", "engine", "data", "eval", "recipe", "objective"])
            names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            line.append(f"{group}={typo(draw, draw.choice(names))}")
        elif kind == "pair":
            line += draw.sample(PAIRS, 2)
        else:
            line.insert(draw.randrange(len(line) + 1), draw.choice(SYNTAX))
    return name, line


def run_cases(count: int, seed: int, folder: Path, chosen: Sequence[Sequence[str]]) -> Counter[str]:
    """Try `count` cases; fails with all that were not answered in words."""
    draw, answers = random.Random(seed), Answers()
    for _ in range(count):
        name, line = case(draw, chosen)
        answers.ask(functools.partial(outcome, name, line), f"{name} {line}".__str__)
    answers.check()
    assert list(folder.iterdir()) == []
    return answers.counts


def test_generated_settings_are_answered_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = run_cases(60, 20, tmp_path, [["+experiment=quickstart"]])
    assert outcomes["refused"] > 10


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_generated_settings_are_answered_in_words(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(seed)
    chosen = [
        [f"+experiment={draw.choice(EXPERIMENTS)}", f"model={draw.choice(MODELS)}"]
        for _ in range(12)
    ]
    outcomes = run_cases(1000, seed, tmp_path, chosen)
    assert outcomes["refused"] > 300
    assert outcomes["accepted"] > 30
