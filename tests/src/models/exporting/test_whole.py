"""An export that is not a whole model is refused, and nothing of it is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.models.exporting.whole import ExportError, check_whole
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.training.export import Export
from tests.src.models.exporting.conftest import SCALINGS, Exported

WEIGHTS = "model.safetensors"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


NORM = "model.layers.1.input_layernorm.weight"


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM][3] = torch.nan


def overflowing(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"].fill_(3e38)


def shorter(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM] = tensors[NORM][:5].clone()


def extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.odd.weight"] = tensors[NORM].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_nan, rf"weight {NORM} holds numbers that are not finite"),
        (overflowing, "its logits holds numbers that are not finite"),
        (lambda tensors: tensors.pop(NORM), f"has missing keys: {NORM}"),
        (shorter, "has mismatched keys"),
        (extra, "has unexpected keys: model.layers.1.odd.weight"),
    ],
)
def test_weights_that_are_no_model(exported: Exported, change: Any, message: str) -> None:
    _, folder = exported("tiny", SCALINGS["yarn"])
    check_whole(folder)
    rewrite(folder, change)
    with pytest.raises(ExportError, match=message):
        check_whole(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (WEIGHTS, None),
        (WEIGHTS, "cut"),
        ("config.json", None),
        ("config.json", "cut"),
        ("tokenizer.json", None),
        ("tokenizer.json", "cut"),
    ],
)
def test_files_that_are_missing_or_cut(exported: Exported, file: str, content: str | None) -> None:
    _, folder = exported("tiny", SCALINGS["yarn"])
    if content is None:
        (folder / file).unlink()
    else:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExportError, match=r"the export .* cannot be loaded"):
        check_whole(folder)


def test_a_model_that_diverged_is_not_exported(
    compose_run: Callable[..., Any], tmp_path: Path
) -> None:
    scaling = SCALINGS["linear"]
    model = compose_run("model=tiny", "model.native_window=64").model
    network = load_model(model, scaled_config(model, scaling), dtype=torch.float32)
    network.model.norm.weight.data[0] = torch.inf
    earlier = tmp_path / "export" / "config.json"
    earlier.parent.mkdir()
    earlier.write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(ExportError, match=r"nothing was exported; .* metrics\.jsonl"):
        Export(tmp_path / "export", model, scaling, torch.float32, card="").write(network)
    # What was there before stays.
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert earlier.read_text(encoding="utf-8") == "{}"
