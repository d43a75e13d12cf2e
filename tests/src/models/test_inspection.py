"""What a model's folder may hold in place of a model: refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.models.config import ModelConfig, ModelError
from src.models.loading import check_ids
from src.models.sources import check_available, identity, read_config
from src.settings.strict import ConfigError
from tests.src.models.examples import ComposeRun, at

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


def states(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return change


def holds(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def lacks(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return rewrite


def cut(name: str, bytes_kept: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:bytes_kept])

    return change


def with_value(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["model.norm.weight"][3] = value
        return tensors

    return weights(change)


def with_layer(number: int) -> Callable[[Path], None]:
    name = "model.layers.{}.mlp.up_proj.weight"
    return weights(lambda t: t | {name.format(number): t[name.format(0)].clone()})


NORM = "model.norm.weight"
INDEX = json.dumps({"weight_map": {NORM: "model-00001-of-00002.safetensors"}}).encode()


def shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    holds("model.safetensors.index.json", INDEX)(folder)


# By the kind of what the folder holds: how it comes to it, and the message.
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bitsandbytes": (
        states(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"quantization_config \(bitsandbytes\): gradients need .* give the model that was",
    ),
    "gptq": (states(quantization_config={"quant_method": "gptq", "bits": 4}), r"\(gptq\)"),
    "awq": (states(quantization_config={"quant_method": "awq"}), r"\(awq\)"),
    "fp8": (states(quantization_config={"quant_method": "fp8"}), r"\(fp8\)"),
    "quantized in the file": (
        weights(lambda t: t | {NORM: t[NORM].to(torch.float8_e4m3fn)}),
        r"model\.norm\.weight is stored as F8_E4M3, as in quantized models",
    ),
    "packed integers": (
        weights(lambda t: t | {"model.layers.0.mlp.up_proj.qweight": torch.ones(2).int()}),
        r"qweight is stored as I32, as in quantized models",
    ),
    "adapter": (
        holds("adapter_config.json", b'{"base_model_name_or_path": "org/base"}'),
        r"holds an adapter of org/base .*: merge it into its base model",
    ),
    "own code": (
        states(model_type="mine", auto_map={"AutoConfig": "configuration_mine.MineConfig"}),
        r"type 'mine', which this transformers does not know, and its own code .* never run",
    ),
    "no type": (states(model_type=None), r"config\.json has no model_type"),
    "multimodal": (
        states(model_type="llava", text_config={"model_type": "llama"}),
        r"holds a text model among others",
    ),
    "wrong value": (states(rms_norm_eps="two"), r"is not one of a model of type 'llama'"),
    "wrong size": (states(num_hidden_layers="two"), r"has num_hidden_layers='two'; allowed: int"),
    "cut config": (cut("config.json", 40), r"config\.json.* not .*JSON"),
    "config is a pointer": (holds("config.json", POINTER), r"config\.json is a pointer of git-lfs"),
    "no tokenizer": (
        lacks("tokenizer.json", "tokenizer_config.json"),
        r"has no whole tokenizer: it needs tokenizer\.json or tokenizer\.model or vocab\.json and",
    ),
    "cut tokenizer": (cut("tokenizer.json", 200), r"tokenizer\.json is not whole JSON"),
    "tokenizer of nothing": (
        holds("tokenizer.json", b'{"version": "1.0"}'),
        r"tokenizer\.json is not a whole tokenizer",
    ),
    "tokenizer is a pointer": (
        holds("tokenizer.json", POINTER),
        r"tokenizer\.json is a pointer of git-lfs \(fetch it: git lfs pull\)",
    ),
    "weights are a pointer": (
        holds("model.safetensors", POINTER),
        r"model\.safetensors is a pointer of git-lfs",
    ),
    "annex": (holds("model.safetensors", b"/annex/objects/x"), r"is a pointer of git-annex"),
    "web page": (holds("model.safetensors", b"<!DOCTYPE html><html>"), r"is a web page"),
    "empty": (holds("model.safetensors", b""), r"model\.safetensors is empty"),
    "garbage": (holds("model.safetensors", b"garbage" * 99), r"file is damaged"),
    "shard missing": (shards, r"is not whole: model-00001-of-00002\.safetensors of 1 files"),
    "pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None,
        r"no \*\.safetensors .*pytorch_model\.bin.*; pickled weights are not read",
    ),
    "more layers": (with_layer(2), r"hold 3 layers, and .* says num_hidden_layers=2"),
    "fewer layers": (
        weights(lambda t: {n: v for n, v in t.items() if ".layers.1." not in n}),
        r"hold 1 layers, and .* says num_hidden_layers=2",
    ),
    "left over": (
        weights(lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}),
        r"the model has no model\.layers\.0\.self_attn\.q_proj\.bias; copy or save",
    ),
    "missing": (
        weights(lambda t: {n: v for n, v in t.items() if n != NORM}),
        r"model\.norm\.weight is missing",
    ),
    "other shape": (
        weights(lambda t: t | {NORM: t[NORM][:-1].clone()}),
        r"model\.norm\.weight has shape \[31\], the model \[32\]",
    ),
    "not a number": (with_value(float("nan")), r"model\.norm\.weight .* not finite \(least nan"),
    "infinite": (with_value(float("-inf")), r"model\.norm\.weight .* not finite \(least -inf"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_model_is_refused_by_name(
    saved: Path, compose_run: ComposeRun, case: str
) -> None:
    change, message = CASES[case]
    model = at(saved, compose_run)
    change(saved)
    before = sorted(saved.iterdir())
    with pytest.raises(ModelError, match=message) as refused:
        check_available(model)
    assert str(refused.value).startswith(f"model.path={saved}")
    assert sorted(saved.iterdir()) == before, "something is left behind"


def test_a_link_to_nothing_is_named(saved: Path, compose_run: ComposeRun) -> None:
    model = at(saved, compose_run)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").symlink_to(saved / "gone")
    with pytest.raises(ModelError, match=r"model\.safetensors is a link to nothing"):
        check_available(model)


@pytest.mark.parametrize("kind", ["file", "run"])
def test_what_is_no_folder_of_a_model_is_named(
    tmp_path: Path, compose_run: ComposeRun, kind: str
) -> None:
    place = tmp_path / "it"
    if kind == "file":
        place.write_text("x")
        message = "is a file: give the folder that holds it"
    else:
        place.mkdir()
        for name in ("run.json", "config.yaml"):
            (place / name).write_text("{}")
        message = r"it is a run's folder, whose model is in .*export"
    with pytest.raises(ConfigError, match=message):
        compose_run(f"model.path={place}")


def test_code_of_a_known_type_is_neither_run_nor_passed_on(
    saved: Path, compose_run: ComposeRun
) -> None:
    model = at(saved, compose_run)
    states(auto_map={"AutoConfig": "configuration_mine.MineConfig"})(saved)
    (saved / "configuration_mine.py").write_text("raise SystemExit('run')")
    assert "auto_map" not in read_config(model.source).to_dict()
    check_available(model)


def test_names_without_the_heads_prefix_are_the_models(
    saved: Path, compose_run: ComposeRun
) -> None:
    check_available(at(saved, compose_run))
    weights(lambda t: {n.removeprefix("model."): v for n, v in t.items()})(saved)
    check_available(at(saved, compose_run))


def test_ids_that_occur_are_compared_with_the_embedding(tiny: ModelConfig) -> None:
    check_ids(tiny, 271)
    with pytest.raises(ModelError, match=r"data: token id 272 .* ids up to 271: give the token"):
        check_ids(tiny, 272)


def test_two_models_of_one_name_have_two_identities(
    tiny: ModelConfig, saved: Path, compose_run: ComposeRun
) -> None:
    assert identity(tiny) == "tiny"
    model = at(saved, compose_run)
    first = identity(model)
    assert first.startswith("saved@")
    assert identity(model) == first
    with_value(0.5)(saved)
    assert identity(model) != first
