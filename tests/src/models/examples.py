"""Models, scalings and folders that tests of this package share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.models.byte_tokenizer import byte_tokenizer
from src.models.config import ModelConfig
from src.models.rope import BaseFrequencyScaling, LinearScaling
from src.settings.config import RunConfig

ComposeRun = Callable[..., RunConfig]
CONF = Path(__file__).resolve().parents[3] / "conf" / "model"
# One for each family.
TINY = sorted(p.stem for p in CONF.glob("tiny*.yaml"))
LINEAR = LinearScaling("linear", target_length=32_768)
ABF = BaseFrequencyScaling("abf", target_length=32_768, theta=2e7)
IDS = torch.arange(40).reshape(2, 20)
BYTES = byte_tokenizer()


def at(folder: Path, compose_run: ComposeRun) -> ModelConfig:
    """The folder as a user names it."""
    return compose_run(f"model.path={folder}", "model.native_window=8192").model


def saved_config(folder: Path, model_type: str, **more: Any) -> None:
    """A config.json of a small model, without weights."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    AutoConfig.for_model(model_type, **(sizes | more)).save_pretrained(folder)


def saved_as(
    tmp_path: Path, compose_run: ComposeRun, model_type: str, family: str, **more: Any
) -> ModelConfig:
    """A small random model of any type, and how a user would name it."""
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = AutoConfig.for_model(model_type, **(sizes | more))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    BYTES.save_pretrained(tmp_path)
    model = at(tmp_path, compose_run)
    return replace(model, family=family)


def rotations(network: PreTrainedModel) -> np.ndarray:
    """The inverse frequencies a loaded model rotates by."""
    decoder: Any = network.get_decoder()
    return decoder.rotary_emb.inv_freq.double().numpy()


def logits(network: PreTrainedModel, ids_bt: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return network(input_ids=ids_bt).logits
