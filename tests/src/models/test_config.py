"""What settings of a model are refused, and what its shape counts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.models.config import ModelConfig, ModelShape
from src.models.hf_config import native_config
from src.models.loading import load_model
from tests.src.models.examples import (
    TINY,
    ComposeRun,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "random_weights=true needs a shape"),
        ({"family": "gpt2"}, "families gemma3, granite, .*, smollm3, not 'gpt2'"),
        ({"full_attention_every": 2}, "full_attention_every needs a sliding_window"),
        ({"family": "qwen2"}, "shape.qkv_bias=False, but qwen2 models have True"),
        ({"family": "qwen3"}, "shape.qk_norm=False, but qwen3 models have True"),
        ({"family": "gemma3"}, "shape.norms=2, but gemma3 models have 4"),
        ({"random_weights": False}, "give model.source or set model.random_weights=true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_contradictions_are_refused(tiny: ModelConfig, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny, **change)


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_counted_as_torch_counts_them(compose_run: ComposeRun, name: str) -> None:
    tiny = compose_run(f"model={name}").model
    assert tiny.shape is not None
    for tied in (False, True):
        shape: ModelShape = replace(tiny.shape, tied_embeddings=tied)
        model = replace(tiny, shape=shape)
        network = load_model(model, native_config(model), dtype=torch.float32)
        assert sum(p.numel() for p in network.parameters()) == shape.parameters


def test_settings_and_facts_of_models_are_read_without_torch() -> None:
    light = (
        "src.models.hf_config, src.models.rope, src.data, src.settings.loading, "
        "src.settings.budget, src.training.schedule, src.planning.devices"
    )
    heavy = "('torch', 'transformers', 'datasets', 'deepspeed')"
    code = f"import sys, {light}; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
