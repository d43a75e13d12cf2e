"""An export's config says the same to transformers 4 and to transformers 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from benchmarks.readers import PACKAGES, read
from src.models.config import native_rope
from src.models.exporting.legacy import rope_keys, tokenizer_keys
from tests.src.models.exporting.conftest import SCALINGS, TARGET, WINDOW, Exported

FULL = "full_attention"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["tiny", "tiny_qwen3", "tiny_gemma3"])
@pytest.mark.parametrize("case", SCALINGS)
def test_legacy_keys_alone_give_the_same_rope(
    exported: Exported, tmp_path: Path, name: str, case: str
) -> None:
    """transformers 5 reads configs of version 4 too, and turns them into its own."""
    _, folder = exported(name, SCALINGS[case])
    written = config_of(folder)
    expected = written.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(written), encoding="utf-8")
    read_back = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert read_back == expected
    both = AutoConfig.from_pretrained(folder).rope_parameters
    assert both == expected


def test_unscaled_rope_of_another_base_has_no_scaling(exported: Exported) -> None:
    _, folder = exported("tiny", SCALINGS["abf"])
    assert config_of(folder)["rope_scaling"] is None
    assert config_of(folder)["rope_theta"] == 300_000.0


def test_each_kind_of_layer_has_its_legacy_base(exported: Exported) -> None:
    _, folder = exported("tiny_gemma3", SCALINGS["ntk"])
    written = config_of(folder)
    assert written["rope_theta"] == written["rope_parameters"][FULL]["rope_theta"]
    assert written["rope_local_base_freq"] == 1000.0


@pytest.mark.parametrize(
    ("attention", "keys"),
    [(None, {"type", "short_factor", "long_factor"}), (1.7, None)],
    ids=["as it works out", "another"],
)
def test_phi3_takes_three_keys(attention: float | None, keys: set[str] | None) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "short_factor": [1.0],
        "long_factor": [4.0],
        "attention_factor": (1 + np.log(4) / np.log(1024)) ** 0.5 if attention is None else 1.7,
    }
    config = {"model_type": "phi3", "max_position_embeddings": 4096, "rope_parameters": rope}
    written = rope_keys(config)
    assert written["original_max_position_embeddings"] == 1024
    # More keys: version 4 refuses them, where it would otherwise lose the attention factor.
    assert set(written["rope_scaling"]) == (keys or set(rope) - {"rope_theta"})


def test_tokenizers_have_a_class_that_both_know() -> None:
    written = {"tokenizer_class": "TokenizersBackend", "is_local": True, "eos_token": "</s>"}
    written["extra_special_tokens"] = ["<a>"]
    assert tokenizer_keys(written) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "additional_special_tokens": ["<a>"],
    }
    named = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image": "<i>"}}
    assert tokenizer_keys(named) == named


def test_the_tokenizer_is_the_same(exported: Exported) -> None:
    _, folder = exported("tiny", SCALINGS["linear"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("aé\n").input_ids) == "aé\n"
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == 256
    assert tokenizer.model_max_length == TARGET


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["tiny", "tiny_mistral", "tiny_qwen2", "tiny_qwen3", "tiny_gemma3"]
)
def test_transformers_4_computes_the_same(exported: Exported, tmp_path: Path, name: str) -> None:
    """Frequencies, attention factor, window and logits within and beyond the native window."""
    lengths = [WINDOW // 2, TARGET - 3]
    models, folders = zip(*(exported(name, s) for s in SCALINGS.values()), strict=True)
    asked = {"folders": [str(f) for f in folders], "lengths": lengths}
    old = read("transformers_reader.py", PACKAGES["transformers 4.57"], asked, tmp_path / "4.npz")
    new = read("transformers_reader.py", (), asked, tmp_path / "5.npz")
    assert str(old["version"]).startswith("4.57")
    assert str(new["version"]).startswith("5.")
    assert old.keys() == new.keys()
    for key in old.keys() - {"version"}:
        np.testing.assert_allclose(old[key], new[key], rtol=2e-5, atol=2e-5, err_msg=key)
    for number, (model, scaling) in enumerate(zip(models, SCALINGS.values(), strict=True)):
        rope = native_rope(model, model.shape)
        for length in lengths:
            ours = scaling.inverse_frequencies(rope, length)
            np.testing.assert_allclose(old[f"frequencies/{number}/{length}"], ours, rtol=2e-6)
            attention = scaling.resolved_attention_factor(rope)
            assert old[f"attention/{number}/{length}"] == pytest.approx(attention, rel=1e-6)
