"""The tiny model, as settings and as a saved folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.models.byte_tokenizer import byte_tokenizer
from src.models.config import ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model
from tests.src.models.examples import (
    ComposeRun,
)


@pytest.fixture(scope="session")
def tiny(compose_run: ComposeRun) -> ModelConfig:
    return compose_run("model=tiny").model


@pytest.fixture
def saved(tiny: ModelConfig, tmp_path: Path) -> Path:
    """The tiny model as save_pretrained writes it, with its tokenizer."""
    folder = tmp_path / "saved"
    network = load_model(tiny, native_config(tiny), dtype=torch.float32)
    network.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
