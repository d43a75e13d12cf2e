"""What tells models and tokenizers apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.evals.cache import ResultCache
from src.evals.suite import Candidate, Evaluation
from src.models.byte_tokenizer import byte_tokenizer
from src.models.config import FolderWeights, ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model
from src.settings.config import RunConfig


@pytest.fixture(scope="module")
def saved(
    compose_run: Callable[..., RunConfig],
    tiny_overrides: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ModelConfig, Path]:
    """The tiny model in a folder, weights, config and tokenizer."""
    own = compose_run(*tiny_overrides)
    folder = tmp_path_factory.mktemp("saved") / "model"
    config = native_config(own.model)
    load_model(own.model, config, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    model = replace(
        own.model, random_weights=False, source=FolderWeights("folder", str(folder)), shape=None
    )
    return model, folder


def _at(model: ModelConfig, folder: Path) -> Candidate:
    return Candidate("m", "native", replace(model, source=FolderWeights("folder", str(folder))))


def test_the_same_weights_in_another_folder_are_the_same_model(
    saved: tuple[ModelConfig, Path], tmp_path: Path
) -> None:
    model, folder = saved
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert _at(model, folder).fingerprint == _at(model, copy).fingerprint
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert _at(model, folder).fingerprint != _at(model, copy).fingerprint


def test_what_ends_answers_is_told_apart(saved: tuple[ModelConfig, Path], tmp_path: Path) -> None:
    model, folder = saved
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert _at(model, folder).generation_digest == _at(model, copy).generation_digest
    (copy / "generation_config.json").write_text('{"eos_token_id": [10, 256]}')
    assert _at(model, folder).generation_digest != _at(model, copy).generation_digest
    assert _at(model, folder).fingerprint == _at(model, copy).fingerprint
    (copy / "generation_config.json").unlink()
    assert _at(model, copy).generation_digest is None


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        pytest.param("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, id="texts"),
        pytest.param("tokenizer_config.json", {"eos_token": "a"}, id="end"),
    ],
)
def test_a_changed_tokenizer_is_told_apart(
    saved: tuple[ModelConfig, Path], tmp_path: Path, part: str, changed: dict[str, Any]
) -> None:
    model, folder = saved
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))

    def digest(place: Path) -> str:
        data: Any = None
        about = {"device": "cpu", "dtype": "float32", "cache": ResultCache(None)}
        return Evaluation((_at(model, place),), data, **about).tokenizer_digest

    assert digest(copy) == digest(folder)
    settings = json.loads((copy / part).read_text())
    (copy / part).write_text(json.dumps(settings | changed))
    assert digest(copy) != digest(folder)
