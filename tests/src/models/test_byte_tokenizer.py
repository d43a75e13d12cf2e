"""One token a byte."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from src.models.config import ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_tokenizer
from tests.src.models.examples import (
    BYTES,
)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_byte_tokenizer(text: str) -> None:
    ids = BYTES(text).input_ids
    assert len(ids) == len(text.encode("utf-8")), "one token a byte, and no BOS"
    assert all(0 <= i < 256 for i in ids)
    assert BYTES.decode(ids) == text


def test_byte_tokenizer_fits_the_tiny_model_and_survives_saving(
    tiny: ModelConfig, tmp_path: Path
) -> None:
    assert tiny.shape is not None
    tokenizer = load_tokenizer(tiny)
    assert len(tokenizer) == 257 <= tiny.shape.vocabulary
    assert tokenizer.eos_token_id == 256 == native_config(tiny).eos_token_id
    assert tokenizer.bos_token_id is None
    tokenizer.save_pretrained(tmp_path)
    text = "Zürich,\n\n  naïve \t 東京 🌍"
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.decode(loaded(text).input_ids) == text
