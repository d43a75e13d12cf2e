"""GGUF files hold the exported model, as llama.cpp reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file

from benchmarks.readers import PACKAGES, read
from src.models.config import ModelConfig, ModelError, native_rope
from src.models.exporting.gguf import check_gguf, gemma_scale, write_gguf
from src.models.exporting.gguf_rope import GgufRope, gguf_rope
from src.models.exporting.gguf_vocabulary import vocabulary_of
from src.models.rope import NativeRope
from src.models.rope.yarn import YarnScaling
from src.training.export import check_tokenizer
from tests.src.models.exporting.conftest import SCALINGS, TARGET, WINDOW, Exported

LLAMA_ONLY = ("longrope", "longrope, given tables", "llama3", "per_frequency")


def written(
    exported: Exported, name: str, case: str, quantization: Any = "f16"
) -> tuple[ModelConfig, Path, Path]:
    model, folder = exported(name, SCALINGS[case])
    target = folder / f"{quantization}.gguf"
    shape = model.shape
    assert shape is not None
    write_gguf(
        folder,
        target,
        model=model,
        scaling=SCALINGS[case],
        quantization=quantization,
    )
    return model, folder, target


def fields_of(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Entries and tensors in float32."""
    reader = GGUFReader(file)
    entries = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: np.array(dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return entries, tensors


def rope_of(entries: dict[str, Any], tensors: dict[str, np.ndarray]) -> GgufRope:
    """RoPE by what the file itself says."""
    entry = {
        key.split(".", 1)[1]: value
        for key, value in entries.items()
        if key.startswith(entries["general.architecture"])
    }
    return GgufRope(
        base=entry["rope.freq_base"],
        kind=entry["rope.scaling.type"],
        factor=entry.get("rope.scaling.factor", 1.0),
        original=entry.get("rope.scaling.original_context_length"),
        attention=entry.get("rope.scaling.attn_factor", 1.0),
        table=tensors.get("rope_freqs.weight"),
        short=tensors.get("rope_factors_short.weight"),
        long=tensors.get("rope_factors_long.weight"),
    )


@pytest.mark.parametrize("name", ["tiny", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"])
@pytest.mark.parametrize("case", SCALINGS)
def test_frequencies_and_window(exported: Exported, name: str, case: str) -> None:
    """Read back by llama.cpp's rules, or refused where they cannot say it."""
    refused = case == "dynamic" or (name != "tiny" and case in LLAMA_ONLY)
    if refused or (name == "tiny_gemma3" and case == "yarn, given attention"):
        with pytest.raises(ValueError, match=r"export\.gguf=true cannot hold rope\.type="):
            written(exported, name, case)
        return
    model, _, file = written(exported, name, case)
    entries, tensors = fields_of(file)
    assert entries[f"{entries['general.architecture']}.context_length"] == TARGET
    rope, shape = rope_of(entries, tensors), model.shape
    assert shape is not None
    native = native_rope(model, shape)
    for length in (WINDOW, TARGET):
        ours = SCALINGS[case].inverse_frequencies(native, length)
        np.testing.assert_allclose(rope.frequencies(shape.head_dim, length), ours, rtol=1e-6)
    attention = SCALINGS[case].resolved_attention_factor(native)
    assert rope.attention_factor() == pytest.approx(attention, rel=1e-6)


# Half of a step: of 11 bits in f16, and of 127 steps up to a block's largest number in q8_0. The
# step itself is stored in f16.
BOUNDS = {"f16": 2.0**-11, "q8_0": 1 / 127}


@pytest.mark.parametrize("quantization", BOUNDS)
@pytest.mark.parametrize("name", ["tiny", "tiny_qwen3", "tiny_gemma3"])
def test_weights_up_to_half_a_step(exported: Exported, name: str, quantization: str) -> None:
    model, folder, file = written(exported, name, "linear", quantization)
    _, tensors = fields_of(file)
    weights = load_file(folder / "model.safetensors")
    shape = model.shape
    assert shape is not None
    embedding = tensors["token_embd.weight"]
    error = np.abs(embedding - weights["model.embed_tokens.weight"].numpy())
    largest = np.abs(embedding).reshape(-1, 32).max(axis=1, keepdims=True)
    assert (error.reshape(-1, 32) <= BOUNDS[quantization] * largest + 1e-7).all()
    q = weights["model.layers.0.self_attn.q_proj.weight"].numpy()
    stored = tensors["blk.0.attn_q.weight"]
    if name == "tiny":
        # llama.cpp rotates rows 2 i and 2 i + 1 of a head; transformers i and i + head_dim / 2.
        head = shape.head_dim
        q = np.stack(
            [q[h * head + i % 2 * (head // 2) + i // 2] for h in range(4) for i in range(head)]
        )
    np.testing.assert_allclose(stored, q, atol=BOUNDS[quantization] * np.abs(q).max() * 1.01)


def test_gemmas_norms_and_scale_are_folded(exported: Exported) -> None:
    model, folder, file = written(exported, "tiny_gemma3", "linear")
    entries, tensors = fields_of(file)
    weights = load_file(folder / "model.safetensors")
    shape = model.shape
    assert shape is not None
    scale = (8 / 12) ** 0.5
    assert gemma_scale(shape) == pytest.approx(scale)
    theirs = {"attn_q_norm": ("self_attn.q_norm", scale), "attn_norm": ("input_layernorm", 1.0)}
    for stored, (name, factor) in theirs.items():
        ours = weights[f"model.layers.1.{name}.weight"].numpy()
        np.testing.assert_allclose(
            tensors[f"blk.1.{stored}.weight"], (ours + 1) * factor, rtol=1e-6
        )
    assert entries["gemma3.attention.sliding_window_pattern"] == [True, False]
    assert entries["gemma3.attention.sliding_window"] == 48
    assert entries["gemma3.rope.freq_base_swa"] == 1000.0


def test_a_yarn_of_other_bounds_becomes_a_table() -> None:
    native = NativeRope(64, 10_000.0, 4096)
    plain = gguf_rope(YarnScaling("yarn", 32_768), native, "llama")
    assert (plain.kind, plain.table) == ("yarn", None)
    other = YarnScaling("yarn", 32_768, beta_fast=16.0, truncate=False, attention_factor=1.2)
    table = gguf_rope(other, native, "llama")
    assert (table.kind, table.attention) == ("none", 1.2)
    assert table.table is not None
    with pytest.raises(ValueError, match="'qwen2' reads no table of factors"):
        gguf_rope(other, native, "qwen2")


def test_models_that_llama_cpp_would_read_wrongly(compose_run: Callable[..., Any]) -> None:
    model, scaling = compose_run("model=tiny_mistral").model, SCALINGS["linear"]
    model = replace(model, native_window=WINDOW)
    with pytest.raises(ValueError, match=r"model\.sliding_window=.* has no sliding window"):
        check_gguf(model, model.shape, "mistral", scaling)
    with pytest.raises(ValueError, match="type 'olmo2': allowed: llama, mistral"):
        check_gguf(model, model.shape, "olmo2", scaling)


def test_a_tokenizer_that_llama_cpp_does_not_know(exported: Exported) -> None:
    _, folder = exported("tiny", SCALINGS["linear"])
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text(encoding="utf-8"))
    plain["model"]["merges"] = [["a", "b"]]
    file.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(ModelError, match=r"whose text is split by bytes: .*convert_hf_to_gguf"):
        vocabulary_of(folder, 272)
    with pytest.raises(ModelError, match="has the id 256, and the model's embedding 100 rows"):
        vocabulary_of(folder, 100)


def test_a_weight_beyond_f16(exported: Exported, compose_run: Callable[..., Any]) -> None:
    model, folder = exported("tiny", SCALINGS["linear"])
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, folder / "model.safetensors")
    check_tokenizer(model, compose_run("model=tiny").model.shape)
    with pytest.raises(ModelError, match=r"output\.weight has a number of 1e\+05, beyond f16"):
        write_gguf(
            folder,
            folder / "x.gguf",
            model=model,
            scaling=SCALINGS["linear"],
            quantization="f16",
        )
    assert not (folder / "x.gguf").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["tiny", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"])
def test_llama_cpp_computes_the_same(exported: Exported, tmp_path: Path, name: str) -> None:
    """llama.cpp's own library, beyond the native window: logits up to what f16 weights change."""
    cases = [c for c in SCALINGS if c != "dynamic" and (name == "tiny" or c not in LLAMA_ONLY)]
    cases = [c for c in cases if name != "tiny_gemma3" or c != "yarn, given attention"]
    files = [written(exported, name, case) for case in cases]
    ids = [(7 * i + 3) % 250 for i in range(TARGET - 3)]
    asked = {"files": [str(f) for *_, f in files], "ids": [ids], "texts": ["Hi é\n!! 12"]}
    theirs = read("llama_cpp_reader.py", PACKAGES["llama.cpp"], asked, tmp_path / "cpp.npz")
    asked = {"folders": [str(folder) for _, folder, _ in files], "lengths": [len(ids)]}
    ours = read("transformers_reader.py", (), asked, tmp_path / "5.npz")
    for number, case in enumerate(cases):
        assert theirs[f"window/{number}"] == TARGET
        logits = ours[f"logits/{number}/{len(ids)}"]
        np.testing.assert_allclose(theirs[f"logits/{number}/0"], logits, atol=0.03, err_msg=case)
        assert len(theirs[f"ids/{number}/0"]) == len("Hi é\n!! 12".encode())
