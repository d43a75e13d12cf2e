"""Exports as GGUF files, which llama.cpp and its kin load.

Tensors' names and layouts, and the entries, are llama.cpp's. Its architecture `llama` rotates
neighbouring dimensions where transformers rotates halves, so rows of q and k are interleaved.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.models.config import ModelConfig, ModelError, ModelShape, native_rope
from src.models.exporting.gguf_rope import GgufRope, gguf_rope
from src.models.exporting.gguf_vocabulary import add_vocabulary, vocabulary_of
from src.models.hf_config import resolved_shape
from src.models.rope import RopeScaling

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from torch import Tensor

Quantization = Literal["f16", "q8_0"]
QUANTIZATIONS: tuple[Quantization, ...] = ("f16", "q8_0")
# llama.cpp's architectures by the family's model_type.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
# Numbers that Q8_0 scales together.
_BLOCK = 32


def gguf_name(model: ModelConfig, quantization: Quantization) -> str:
    """The file's name in an export, as llama.cpp names files."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model.name)}-{quantization.upper()}.gguf"


def check_gguf(model: ModelConfig, shape: ModelShape, model_type: str, scaling: RopeScaling) -> str:
    """llama.cpp's architecture for a model, if a GGUF file can hold it with its scaling.

    Raises:
        ValueError: it cannot, with the reason.
    """
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        raise ValueError(
            f"export.gguf=true cannot hold a model of type {model_type!r}: allowed: "
            f"{', '.join(ARCHITECTURES)}; leave export.gguf out"
        )
    if model.sliding_window is not None and architecture != "gemma3":
        raise ValueError(
            f"export.gguf=true cannot hold a model with model.sliding_window="
            f"{model.sliding_window}: llama.cpp's architecture {architecture!r} has no sliding "
            "window, so it would attend to tokens that this model never saw; leave export.gguf out"
        )
    if architecture == "qwen2" and shape.heads * shape.head_dim != shape.hidden:
        raise ValueError(
            f"export.gguf=true cannot hold a qwen2 model whose {shape.heads} heads of "
            f"{shape.head_dim} differ from its hidden size of {shape.hidden}: llama.cpp takes none "
            "such; leave export.gguf out"
        )
    gguf_rope(scaling, native_rope(model, shape), architecture)
    return architecture


def write_gguf(
    folder: Path,
    target: Path,
    *,
    model: ModelConfig,
    scaling: RopeScaling,
    quantization: Quantization,
) -> None:
    """Write an exported folder's model as one GGUF file.

    Matrices are stored in `quantization`, and in f16 where their rows are no whole blocks of it;
    vectors in float32.

    Raises:
        ModelError: llama.cpp has no such model, tokenizer or scaling; or a weight is too large for
            f16.
    """
    from gguf import GGUFWriter, LlamaFileType

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = resolved_shape(model)
    architecture = check_gguf(model, shape, config["model_type"], scaling)
    vocabulary = vocabulary_of(folder, config["vocab_size"])
    rope = gguf_rope(scaling, native_rope(model, shape), architecture)
    writer = GGUFWriter(target, architecture)
    writer.add_name(model.name)
    f16 = quantization == "f16"
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if f16 else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    _add_sizes(writer, config, shape)
    writer.add_context_length(scaling.target_length)
    _add_rope(writer, rope, shape)
    add_vocabulary(writer, folder, vocabulary)
    for name, tensor in _tensors(folder, architecture, shape):
        data, kind = _stored(name, tensor, quantization)
        writer.add_tensor(name, data, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: GGUFWriter, config: dict[str, Any], shape: ModelShape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if writer.arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
        writer.add_sliding_window_pattern(sliding)


def _add_rope(writer: GGUFWriter, rope: GgufRope, shape: ModelShape) -> None:
    import numpy as np
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope.base)
    if shape.sliding_rope_theta is not None:
        writer.add_rope_freq_base_swa(shape.sliding_rope_theta)
    writer.add_rope_scaling_type(RopeScalingType(rope.kind))
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_factor(rope.factor)
    if rope.original is not None:
        writer.add_rope_scaling_orig_ctx_len(rope.original)
    if rope.attention != 1.0:
        writer.add_rope_scaling_attn_factors(rope.attention)
    tables = {
        "rope_freqs.weight": rope.table,
        "rope_factors_short.weight": rope.short,
        "rope_factors_long.weight": rope.long,
    }
    for name, table in tables.items():
        if table is not None:
            writer.add_tensor(name, table.astype(np.float32))


def _tensors(folder: Path, architecture: str, shape: ModelShape) -> Iterator[tuple[str, Tensor]]:
    """All weights in float32, by llama.cpp's names and in its layout."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors import safe_open

    kind = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    names = get_tensor_name_map(kind, shape.layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                named = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if named is None:
                    raise ModelError(
                        f"export.gguf=true: llama.cpp's {architecture!r} has no weight {name}"
                    )
                tensor = tensors.get_tensor(name).float()
                if architecture == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
                    tensor = interleaved(tensor, shape.heads)
                if architecture == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
                    tensor = interleaved(tensor, shape.kv_heads)
                if architecture == "gemma3" and name.endswith("norm.weight"):
                    # llama.cpp multiplies by the weight, transformers by one more.
                    tensor = tensor + 1
                if architecture == "gemma3" and name.endswith("q_norm.weight"):
                    tensor = tensor * gemma_scale(shape)
                yield named, tensor


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, of each head the first half and the second half in turns."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def gemma_scale(shape: ModelShape) -> float:
    """What queries are multiplied by, so that llama.cpp's scale of scores becomes the model's.

    llama.cpp divides scores by the square root of the head size, or of hidden / heads in a model of
    62 layers (27B).
    """
    theirs = shape.hidden / shape.heads if shape.layers == 62 else shape.head_dim
    return math.sqrt(theirs / (shape.query_scalar or shape.head_dim))


def _stored(name: str, tensor: Tensor, quantization: Quantization) -> tuple[np.ndarray, Any]:
    """A tensor's bytes and their kind."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    values = tensor.numpy()
    if values.ndim == 1:
        return values, GGMLQuantizationType.F32
    kind = GGMLQuantizationType.F16
    if quantization == "q8_0" and values.shape[-1] % _BLOCK == 0:
        kind = GGMLQuantizationType.Q8_0
    elif np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise ModelError(
            f"export.gguf=true: the weight {name} has a number of {np.abs(values).max():.3g}, "
            "beyond f16; leave export.gguf out"
        )
    return quants.quantize(values, kind), kind
