"""A byte-level tokenizer with a BOS token, built on the spot, and texts in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from src.data.config import TextFiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS = 0


def make_tokenizer(*, bos: bool = True, extra_words: int = 0) -> PreTrainedTokenizerFast:
    """One id a byte (1 to 256), id 0 in front of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"extra {number}" for number in range(extra_words)]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_factory() -> Callable[..., PreTrainedTokenizerFast]:
    return make_tokenizer


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., TextFiles]:
    """Write `name -> text` as .txt files below `texts` and return a source of them."""

    def write(texts: dict[str, str], folder: str = "texts") -> TextFiles:
        for name, text in texts.items():
            file = tmp_path / folder / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return TextFiles("files", (str(tmp_path / folder),))

    return write
