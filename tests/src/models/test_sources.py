"""Folders and hub models that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.models.config import FolderWeights, HubWeights, ModelConfig, ModelError
from src.models.hf_config import native_config
from src.models.loading import load_model, load_tokenizer
from src.models.sources import check_available
from src.settings.strict import ConfigError
from tests.src.models.examples import (
    ComposeRun,
    at,
)


@pytest.mark.parametrize("made", [True, False], ids=["empty", "missing"])
def test_a_folder_without_a_config_is_refused(
    tiny: ModelConfig, tmp_path: Path, compose_run: ComposeRun, made: bool
) -> None:
    folder = tmp_path / "model"
    if made:
        folder.mkdir()
    message = r"has no config\.json: give a folder written by"
    with pytest.raises(ConfigError, match=message):
        at(folder, compose_run)
    model = replace(tiny, random_weights=False, source=FolderWeights("folder", str(folder)))
    for ask in (check_available, native_config, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            ask(model)


def test_pickled_weights_are_refused(saved: Path, compose_run: ComposeRun) -> None:
    for file in saved.glob("*.safetensors"):
        file.unlink()
    (saved / "pytorch_model.bin").write_bytes(b"never opened")
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=r"no \*\.safetensors .*; pickled weights are not read"):
        check_available(model)
    with pytest.raises(ModelError, match="safetensors"):
        load_model(model, native_config(model), dtype=torch.float32)


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-100], lambda c: b"garbage" * 99], ids=["cut", "garbage"]
)
def test_a_damaged_weights_file_is_one_message(
    saved: Path, compose_run: ComposeRun, damage: Callable[[bytes], bytes]
) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    model = at(saved, compose_run)
    with pytest.raises(ModelError, match=r"a \*\.safetensors file is damaged .* download it again"):
        load_model(model, native_config(model), dtype=torch.float32)


def test_a_hub_model_that_cannot_be_had_is_one_clear_message(
    tiny: ModelConfig, compose_run: ComposeRun
) -> None:
    message = r"model\.repo=nobody/nothing cannot be fetched"
    with pytest.raises(ConfigError, match=message):
        compose_run("model.repo=nobody/nothing")
    model = replace(tiny, random_weights=False, source=HubWeights("hub", "nobody/nothing"))
    for load in (check_available, load_tokenizer, native_config):
        with pytest.raises(ModelError, match=message):
            load(model)
