"""A model named by its folder alone: what follows from its config."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoConfig, PreTrainedConfig

from src.models import own
from src.models.config import FolderWeights, ModelError, Tuning
from src.planning import plan
from src.planning.printing import show
from src.settings import loading
from src.settings.strict import ConfigError
from tests.src.models.examples import ComposeRun, saved_config


def test_a_folder_alone_is_a_model(tmp_path: Path, compose_run: ComposeRun) -> None:
    folder = tmp_path / "My model"
    saved_config(folder, "llama", hidden_size=64, max_position_embeddings=1024)
    model = compose_run(f"model.path={folder}").model
    assert (model.name, model.family, model.native_window) == ("My_model", "llama", 1024)
    assert model.source == FolderWeights("folder", str(folder))
    assert model.tuning == Tuning(1e-3, 1e-4, 32, 64)


def test_what_is_typed_wins(tmp_path: Path, compose_run: ComposeRun) -> None:
    saved_config(tmp_path, "llama", max_position_embeddings=1024)
    typed = ["model.native_window=512", "model.tuning.lora_rank=4", "model.name=mine"]
    model = compose_run(f"model.path={tmp_path}", *typed).model
    assert (model.name, model.native_window, model.tuning.lora_rank) == ("mine", 512, 4)
    with pytest.raises(ConfigError, match=r"^model\.native_window: .* than 0 \(got 0\)"):
        compose_run(f"model.path={tmp_path}", "model.native_window=0")


@pytest.mark.parametrize("experiment", ["linearard_32k", "longred_c_32k", "cpt_mix_32k"])
@pytest.mark.parametrize("window", [1024, 1500, 131_072])
def test_lengths_of_an_experiment_follow_from_the_window(
    tmp_path: Path, compose_run: ComposeRun, experiment: str, window: int
) -> None:
    saved_config(tmp_path, "llama", max_position_embeddings=window)
    run = compose_run(f"model.path={tmp_path}", f"+experiment={experiment}")
    assert run.rope.target_length == window * (8 if window < 4096 else 4)
    plan.make(run, world_size=1)
    suite = run.eval.suites()[0]
    assert max(suite.windows) <= min(run.rope.target_length, 32_768)
    assert suite.headline <= window


def test_the_plan_says_where_the_window_is_from(
    tmp_path: Path, compose_run: ComposeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_config(tmp_path, "llama", max_position_embeddings=1024)
    for typed, note in (
        ([], "1,024 tokens, which is max_position_embeddings in its config.json"),
        (["model.native_window=512"], "512 tokens, as set; max_position_embeddings .* is 1,024"),
    ):
        run = compose_run(f"model.path={tmp_path}", "+experiment=linearard_32k", *typed)
        console = Console(width=400)
        show(plan.make(run, world_size=1), run, console)
        assert re.search(note, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model.path=a", "model.repo=b/c"], "exclude each other"),
        (["model=tiny", "model.path=a"], "model=tiny already says which model is meant"),
    ],
)
def test_two_models_at_once_are_refused(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loading.completed(typed)


@pytest.mark.parametrize("group", ["folder", "hub"])
def test_a_model_without_a_place_is_refused(compose_run: ComposeRun, group: str) -> None:
    key = {"folder": "path=DIR", "hub": "repo=ORG/NAME"}[group]
    with pytest.raises(ConfigError, match=rf"model\.{key} is missing"):
        compose_run(f"model={group}")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("some/models--org--Net/snapshots/0123abcd", "Net"),
        ("a b/c (d)/", "c_d"),
        ("..", "model"),
    ],
)
def test_a_name_is_the_last_part_of_the_place(place: str, name: str) -> None:
    assert own.named(place) == name


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
YARN |= {"rope_theta": 1e6}


@pytest.mark.parametrize(
    ("stated", "rope", "window"),
    [
        (4096, {"rope_type": "default", "rope_theta": 1e4}, 4096),
        (131_072, LLAMA3, 131_072),
        (32_768, YARN, 131_072),
        (131_072, YARN, 131_072),
    ],
    ids=["plain", "llama3", "yarn, original length", "yarn, long length"],
)
def test_the_window_is_judged(stated: int, rope: dict[str, Any], window: int) -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=stated, rope_parameters=rope)
    assert own.judged_window(config)[0] == window


def test_a_config_without_a_length_is_refused() -> None:
    config = PreTrainedConfig()
    with pytest.raises(ModelError, match=r"model\.native_window: .* states no max_position"):
        own.judged_window(config)


@pytest.mark.parametrize(
    ("hidden", "listed"),
    [(576, "smollm2_135m"), (896, "qwen2_5_coder_0_5b"), (4096, "llama2_7b"), (8192, "llama2_7b")],
)
def test_tuning_is_that_of_listed_models_of_the_width(
    hidden: int, listed: str, compose_plain: Callable[..., dict[str, Any]]
) -> None:
    known = own.suggested_tuning(AutoConfig.for_model("llama", hidden_size=hidden))
    assert known == compose_plain("+experiment=cpt_long_32k", f"model={listed}")["model"]["tuning"]
