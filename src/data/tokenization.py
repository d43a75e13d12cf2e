"""Documents to token ids, by a fast tokenizer, in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from src.data.documents import DataError, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 20
PROBE = "A probe for special tokens."


def tokenize(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, np.ndarray]]:
    """Yield each document with its ids; special tokens such as BOS are added once per document."""
    dtype = token_dtype(tokenizer)
    for batch in _batches(documents):
        encoded = tokenizer(
            [document.text for document in batch],
            add_special_tokens=True,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for document, ids in zip(batch, encoded["input_ids"], strict=True):
            yield document, np.asarray(ids, dtype=dtype)


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides the ids of a text.

    Raises:
        DataError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load it with use_fast=True"
        )
    # Truncation and padding remain from earlier calls and do not affect `tokenize`.
    definition = {
        key: value
        for key, value in json.loads(backend.to_str()).items()
        if key not in ("truncation", "padding")
    }
    probe = tokenizer(PROBE, add_special_tokens=True)["input_ids"]
    return hashlib.sha256(json.dumps([definition, probe], sort_keys=True).encode()).hexdigest()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
