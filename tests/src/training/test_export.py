"""What is exported is the model that was trained, whatever of it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.models.adapters import (
    AnyParameters,
    FullParameters,
    LoraParameters,
    QkvParameters,
    make_trainable,
)
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.models.rope import LinearScaling
from src.models.rope.yarn import YarnScaling
from src.training.export import Export
from tests.conftest import by_default

CONF = Path(__file__).resolve().parents[3] / "conf" / "model"
# One for each family.
FAMILIES = sorted(p.stem for p in CONF.glob("tiny*.yaml"))
ATTENTION = ("q_proj", "k_proj", "v_proj")
ALL = (*ATTENTION, "o_proj", "gate_proj", "up_proj", "down_proj")
PARAMETERS: dict[str, AnyParameters] = {
    "lora": LoraParameters("lora", 4, 8.0, 0.0, ATTENTION),
    "lora on all projections": LoraParameters("lora", 2, 8.0, 0.0, ALL),
    "lora on one projection": LoraParameters("lora", 3, 6.0, 0.0, ("down_proj",)),
    "dora": LoraParameters("lora", 4, 8.0, 0.0, ATTENTION, use_dora=True),
    "rslora": LoraParameters("lora", 4, 8.0, 0.0, ALL, use_rslora=True),
    "dora and rslora": LoraParameters("lora", 4, 8.0, 0.0, ALL, use_dora=True, use_rslora=True),
    "qkv": QkvParameters("qkv"),
    "full": FullParameters("full"),
}
IDS = torch.arange(60).reshape(2, 30)


def logits(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits


def export(folder: Path, model: Any, scaling: Any, parameters: AnyParameters) -> torch.Tensor:
    """Export a model whose trained parameters have moved; returns its own logits."""
    config = scaled_config(model, scaling)
    base = load_model(model, config, dtype=torch.float32)
    before = logits(base)
    network = make_trainable(base, parameters, seed=3).eval()
    draw = torch.Generator().manual_seed(5)
    trained = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=draw))
            trained[name] = parameter.detach().clone()
    after = logits(network)
    assert (after - before).abs().max() > 1e-2, "training made no difference"
    written = Export(folder, model, scaling, torch.float32, card="a card")
    written.write_trained(trained, parameters, weights=None, seed=3)
    return after


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", PARAMETERS)
@by_default(
    lambda name, kind: (
        name in ("tiny", "tiny_gemma3") or kind in ("lora on all projections", "full")
    )
)
def test_the_export_says_what_the_trained_model_does(
    compose_run: Callable[..., Any], tmp_path: Path, name: str, kind: str
) -> None:
    model = compose_run(f"model={name}").model
    expected = export(tmp_path / "export", model, YarnScaling("yarn", 32_768), PARAMETERS[kind])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-5)
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]


@pytest.mark.parametrize(
    ("name", "length"), [("tiny", 8192), ("tiny_qwen3", 8192), ("tiny_gemma3", None)]
)
def test_what_servers_multiply_is_written_beside_the_target(
    compose_run: Callable[..., Any], tmp_path: Path, name: str, length: int | None
) -> None:
    model = compose_run(f"model={name}").model
    export(tmp_path / "export", model, LinearScaling("linear", 32_768), PARAMETERS["lora"])
    written = json.loads((tmp_path / "export" / "config.json").read_text(encoding="utf-8"))
    assert written["max_position_embeddings"] == 32_768
    assert written.get("max_seq_len") == length
    assert AutoTokenizer.from_pretrained(tmp_path / "export").model_max_length == 32_768


def test_a_small_model_is_exported_by_one_thread(
    tmp_path: Path, compose_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from src.training import export as module

    threads: list[int] = []
    checked = module.check_whole

    def check_whole(folder: Path) -> None:
        threads.append(torch.get_num_threads())
        checked(folder)

    monkeypatch.setattr(module, "check_whole", check_whole)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model = compose_run("model=tiny").model
        export(tmp_path / "export", model, LinearScaling("linear", 32_768), PARAMETERS["lora"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1]
