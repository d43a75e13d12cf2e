"""Refusals of a model's folder, before anything is loaded: it may hold things beside a model.

Each refusal names the setting and its value, what is wrong, and what to do. `label` is that
setting, such as `model.path=DIR`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.models.config import ModelError
from src.models.families import FAMILIES
from src.models.shapes import without_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

# How files begin that stand in place of the real ones, and what they are.
_INSTEAD = {
    b"version https://git-lfs.github.com/spec/": "a pointer of git-lfs (fetch it: git lfs pull)",
    b"/annex/objects/": "a pointer of git-annex (fetch it: git annex get)",
    b"# xet version": "a pointer of git-xet (fetch it: git xet checkout)",
    b"<!doctype html": "a web page, saved in place of the file",
    b"<html": "a web page, saved in place of the file",
}
# Complete sets of files that a tokenizer is read from.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Number formats of weights that are not quantized, as safetensors names them.
_PLAIN = ("F64", "F32", "F16", "BF16")
_NAMES = ("auto", "float64", "float32", "float16", "bfloat16")
# Sizes in a config.json.
_SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
_SIZES += ("hidden_size", "intermediate_size", "vocab_size")
# Tensors of older files that models compute by themselves.
_COMPUTED = ("rotary_emb.inv_freq", ".masked_bias")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def check_settings(raw: Mapping[str, Any], label: str) -> None:
    """Refuse the content of a config.json that says that its model cannot be trained here.

    Raises:
        ModelError: it is quantized, has code of its own, is not a text model, or has no type.
    """
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    for key in ("quantization_config", "compression_config"):
        if (quantized := raw.get(key)) is None:
            continue
        how = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(
            f"{label}: its config.json has a {key} ({how or 'unnamed'}): gradients "
            "need weights in float32, float16 or bfloat16; give the model that was quantized, or "
            "save it dequantized"
        )
    if not isinstance(kind, str):
        raise ModelError(
            f"{label}: its config.json has no model_type, so it is not known what it is: give a "
            "folder that save_pretrained wrote"
        )
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    if dtype is not None and dtype not in _NAMES:
        raise ModelError(
            f"{label}: its config.json has dtype={dtype!r}; allowed: {', '.join(_NAMES)}: mend it, "
            "or leave it out"
        )
    if kind not in CONFIG_MAPPING:
        code = ", and its own code (auto_map) is never run" if raw.get("auto_map") else ""
        raise ModelError(
            f"{label} is of type {kind!r}, which this transformers does not know{code}: give a "
            f"model of a known type, such as {', '.join(FAMILIES)}"
        )
    for key in _SIZES:
        size = raw.get(key)
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ModelError(
                f"{label}: its config.json has {key}={str(size)[:40]!r}; allowed: integers from 1: "
                "copy the model's own config.json"
            )
    if isinstance(raw.get("text_config"), dict):
        raise ModelError(
            f"{label} is of type {kind!r}, which holds a text model among others (text_config): "
            "give a text-only model"
        )


def check_config_file(folder: Path, label: str) -> None:
    """Refuse a folder without a config.json that is whole, or with an adapter.

    Raises:
        ModelError: with what the folder is instead, where that can be told.
    """
    _check_place(folder, label)
    if (folder / "adapter_config.json").is_file():
        stated = _read_json(folder / "adapter_config.json", label)
        base = stated.get("base_model_name_or_path") if isinstance(stated, dict) else None
        raise ModelError(
            f"{label} holds an adapter of {base or 'another model'} (adapter_config.json), not a "
            "whole model: merge it into its base model (PEFT's merge_and_unload), and save that"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{label} has no config.json: give a folder written by save_pretrained (config.json, "
            "*.safetensors, tokenizer files)"
        )
    _check_content(folder / "config.json", label)


def check_folder(folder: Path, label: str) -> None:
    """Refuse a folder that does not hold a whole model and its tokenizer, by its small files.

    Raises:
        ModelError: files are missing, cut, or pointers; or the folder holds an adapter.
    """
    check_config_file(folder, label)
    for file in sorted(folder.iterdir()):
        read = (".json", ".safetensors", ".model", ".jinja")
        if file.suffix in read or file.name == "merges.txt":
            _check_content(file, label)
    _check_generation(folder, label)
    _check_tokenizer(folder, label)


def _check_place(folder: Path, label: str) -> None:
    if folder.is_file():
        raise ModelError(f"{label} is a file: give the folder that holds it")
    if not folder.is_dir():
        raise ModelError(
            f"{label} has no config.json: give a folder written by save_pretrained; there is no "
            "folder of that name"
        )
    if (folder / "run.json").is_file() and (folder / "config.yaml").is_file():
        raise ModelError(
            f"{label} has no config.json: give a folder written by save_pretrained; it is a run's "
            f"folder, whose model is in {folder / 'export'}"
        )


def _check_content(file: Path, label: str) -> None:
    if not file.exists():
        raise ModelError(f"{label}: {file.name} is a link to nothing: copy the file itself there")
    if file.is_dir():
        return
    if not file.is_file():
        raise ModelError(f"{label}: {file.name} is not a regular file: copy the file itself there")
    with file.open("rb") as opened:
        start = opened.read(64)
    if not start:
        raise ModelError(f"{label}: {file.name} is empty: copy or download it again")
    for beginning, what in _INSTEAD.items():
        # A link of git-annex is a file with its target where there are no links.
        if start.lower().startswith(beginning) or (beginning in start and b"annex" in beginning):
            raise ModelError(f"{label}: {file.name} is {what}: get the file itself")
    if file.suffix == ".json":
        content = _read_json(file, label)
        if file.name in _OBJECTS and not isinstance(content, dict):
            kind = "null" if content is None else f"a {type(content).__name__}"
            raise ModelError(
                f"{label}: {file.name} holds {kind} instead of a JSON object: copy or "
                "download it again"
            )


# Files of settings and tables, which are JSON objects.
_OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
_OBJECTS += ("special_tokens_map.json", "added_tokens.json", "vocab.json", _INDEX)


def _read_json(file: Path, label: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{label}: {file.name} is not whole JSON ({error}): copy or download it again"
        ) from error


def _check_generation(folder: Path, label: str) -> None:
    """Refuse settings of generation that no model could be loaded with."""
    if not (folder / "generation_config.json").is_file():
        return
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ModelError(
            f"{label}: generation_config.json cannot be used ({' '.join(str(error).split())[:200]})"
            ": copy or download it again, or leave it out"
        ) from error


def _check_tokenizer(folder: Path, label: str) -> None:
    """Refuse a folder without a whole tokenizer; transformers would make an empty one."""
    held = {file.name for file in folder.iterdir()}
    if not any(held.issuperset(files) for files in _TOKENIZERS):
        wanted = " or ".join(" and ".join(files) for files in _TOKENIZERS)
        raise ModelError(
            f"{label} has no whole tokenizer: it needs {wanted}; copy them from the model's "
            "repository, or save them with tokenizer.save_pretrained"
        )
    if "tokenizer.json" not in held:
        return
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises this class itself
        raise ModelError(
            f"{label}: tokenizer.json is not a whole tokenizer ({str(error)[:200]}): copy or "
            "download it again"
        ) from error


@dataclass(frozen=True)
class Held:
    """A tensor in a file of weights."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def held_weights(folder: Path, label: str) -> dict[str, Held]:
    """The tensors of a folder's safetensors files, by name, from the files' headers alone.

    Raises:
        ModelError: there are none, files are missing or damaged, or weights are quantized.
    """
    from safetensors import SafetensorError, safe_open

    held: dict[str, Held] = {}
    for file in weight_files(folder, label):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # not a mapping
                    part = opened.get_slice(name)
                    held[name] = Held(file, tuple(part.get_shape()), part.get_dtype())
        except SafetensorError as error:
            raise ModelError(
                f"{label}: a *.safetensors file is damaged: {file.name} ({error}): copy or "
                "download it again, or give another model"
            ) from error
    odd = {name: tensor.dtype for name, tensor in held.items() if tensor.dtype not in _PLAIN}
    odd = {name: dtype for name, dtype in odd.items() if not name.endswith(_COMPUTED)}
    if odd:
        name, dtype = next(iter(odd.items()))
        raise ModelError(
            f"{label}: {name} is stored as {dtype}, as in quantized models: gradients need weights "
            f"in {', '.join(_PLAIN)}; give the model that was quantized, or save it dequantized"
        )
    return held


def weight_files(folder: Path, label: str) -> list[Path]:
    """The files that transformers reads the weights from, in the order of their names.

    Raises:
        ModelError: there are none, or some are missing.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (index := folder / _INDEX).is_file():
        content = _read_json(index, label)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        plain = isinstance(listed, dict) and isinstance(content.get("metadata", {}), dict)
        # A file's name, never a way out of the folder.
        names = listed.values() if isinstance(listed, dict) else ()
        plain = plain and all(Path(str(name)).name == name for name in names)
        if not plain or not names:
            raise ModelError(
                f"{label}: {_INDEX} is not an index of weights: copy or download it again"
            )
        files = sorted({folder / str(name) for name in names})
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelError(
                f"{label} is not whole: {', '.join(missing[:3])} of {len(files)} files of weights "
                "are missing, damaged or not downloaded yet: download them again"
            )
        return files
    others = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix in (".bin", ".pt", ".pth", ".gguf", ".safetensors", ".h5", ".msgpack")
    )
    has = f" (it has {', '.join(others[:3])})" if others else ""
    raise ModelError(
        f"{label} has no *.safetensors that save_pretrained wrote ({_SINGLE} or {_INDEX}){has}; "
        "pickled weights are not read: save the model again with save_pretrained"
    )


def check_weights(folder: Path, config: PretrainedConfig, label: str) -> None:
    """Refuse weights that are not those of the config's model, or that are not finite.

    Raises:
        ModelError: tensors are missing, left over, of other shapes or not finite.
    """
    held = held_weights(folder, label)
    _check_layers(held, config, label)
    if any(family.model_type == config.model_type for family in FAMILIES.values()):
        _check_names(held, config, label)
    for name, tensor in _tensors(held):
        least, most = tensor.aminmax() if tensor.numel() else (tensor.new_zeros(()),) * 2
        # A NaN is carried through both.
        if not (least.isfinite() and most.isfinite()):
            raise ModelError(
                f"{label}: {name} in {held[name].file.name} holds values that are not finite "
                f"(least {float(least)}, largest {float(most)}): the model has diverged or its "
                "file is damaged; give another checkpoint"
            )


def _check_layers(held: Mapping[str, Held], config: PretrainedConfig, label: str) -> None:
    numbers = [int(match[1]) for name in held if (match := _LAYER.search(name))]
    stated = getattr(config, "num_hidden_layers", None)
    if numbers and stated is not None and max(numbers) + 1 != stated:
        raise ModelError(
            f"{label}: its files hold {max(numbers) + 1} layers, and its config.json says "
            f"num_hidden_layers={stated}: give the config that belongs to these weights"
        )


def _check_names(held: Mapping[str, Held], config: PretrainedConfig, label: str) -> None:
    """Refuse names or shapes that differ from the model's; transformers would draw or drop them."""
    network = without_weights(config)
    wanted = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    tied = set(network._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    # A base model without its output head has names without the head's prefix.
    prefix = "" if any(name.startswith("model.") for name in held) else "model."
    names = {name if name in wanted else f"{prefix}{name}": each for name, each in held.items()}
    faults = [f"{n} is missing" for n in wanted if n not in names and n not in tied]
    faults += [
        f"{n} has shape {list(each.shape)}, the model {list(wanted[n])}"
        for n, each in names.items()
        if n in wanted and each.shape != wanted[n]
    ]
    faults += [
        f"the model has no {n}"
        for n in names
        if n not in wanted and not n.endswith(_COMPUTED) and n != "lm_head.weight"
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ModelError(
            f"{label} does not hold the weights of the model in its config.json: "
            f"{'; '.join(faults[:3])}{more}; copy or save the model again, or give the config that "
            "belongs to these weights"
        )


def _tensors(held: Mapping[str, Held]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, read one at a time."""
    from safetensors import safe_open

    for file in dict.fromkeys(each.file for each in held.values()):
        with safe_open(file, framework="pt") as opened:
            for name, each in held.items():
                if each.file == file:
                    yield name, opened.get_tensor(name)
