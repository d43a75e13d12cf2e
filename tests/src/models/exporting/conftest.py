"""Small models with each scaling, exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.config import ModelConfig
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.models.rope import BaseFrequencyScaling, LinearScaling, Scaling
from src.models.rope.dynamic import DynamicScaling
from src.models.rope.llama3 import Llama3Scaling
from src.models.rope.longrope import LongRopeScaling
from src.models.rope.ntk import NtkScaling
from src.models.rope.per_frequency import PerFrequencyScaling
from src.models.rope.yarn import YarnScaling
from src.training.export import Export

WINDOW, TARGET = 64, 256
SCALINGS: dict[str, Scaling] = {
    "linear": LinearScaling("linear", TARGET),
    "abf": BaseFrequencyScaling("abf", TARGET, theta=300_000.0),
    "ntk": NtkScaling("ntk", TARGET),
    "dynamic": DynamicScaling("dynamic", TARGET),
    "yarn": YarnScaling("yarn", TARGET),
    "yarn, given attention": YarnScaling("yarn", TARGET, attention_factor=1.3),
    "longrope": LongRopeScaling("longrope", TARGET),
    "longrope, given tables": LongRopeScaling(
        "longrope",
        TARGET,
        short_factors=(1.0, 1.1, 1.2, 1.5),
        long_factors=(1.0, 2.0, 3.0, 6.0),
        attention_factor=1.2,
    ),
    "llama3": Llama3Scaling("llama3", TARGET),
    "per_frequency": PerFrequencyScaling("per_frequency", TARGET, factors=(1.0, 1.5, 3.0, 5.0)),
}

Exported = Callable[..., tuple[ModelConfig, Path]]


@pytest.fixture
def exported(compose_run: Callable[..., Any], tmp_path: Path) -> Exported:
    """exported("tiny", scaling) -> the model of a window of 64 tokens, and its export's folder."""

    def export(name: str, scaling: Scaling) -> tuple[ModelConfig, Path]:
        model = replace(compose_run(f"model={name}").model, native_window=WINDOW)
        network = load_model(model, scaled_config(model, scaling), dtype=torch.float32)
        target = tmp_path / f"{name}-{sum(1 for _ in tmp_path.iterdir())}"
        Export(target, model, scaling, torch.float32, card="a card").write(network)
        return model, target

    return export
