"""Documents to token ids, by a fast tokenizer, in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

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


def tokenize_chats(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool
) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
    """Yield each chat with its ids, and which of them are to be learnt, bool [tokens].

    A document's text is a list of messages in JSON. The tokenizer's chat template makes the text,
    special tokens included. With `answers_only` only answers are to be learnt: what the template
    adds after the prompt for one, the assistant's message and what ends it.

    Raises:
        DataError: the tokenizer has no template, the template refuses a chat, or answers cannot be
            told apart from the rest.
    """
    dtype = token_dtype(tokenizer)
    for document in documents:
        messages = json.loads(document.text)
        text = _rendered(document, messages, tokenizer)
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = np.asarray(encoded["input_ids"], dtype=dtype)
        learnt = np.ones(len(ids), dtype=bool)
        if answers_only:
            offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            learnt[:] = False
            for start, end in _answers(document, messages, text, tokenizer):
                learnt |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end)
            learnt &= offsets[:, 1] > offsets[:, 0]
        yield document, ids, learnt


def _answers(
    document: Document, messages: list[Any], text: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, int]]:
    """Where the assistant's messages are in a chat's text."""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(document, messages[:number], tokenizer, prompt=True) if number else ""
        until = _rendered(document, messages[: number + 1], tokenizer)
        if not (until.startswith(before) and text.startswith(until)):
            raise DataError(
                f"{document.name}: the chat template writes a chat's beginning otherwise if it "
                f"goes on, so message {number} cannot be found in the text; use "
                "answers_only=false, or another template"
            )
        yield len(before), len(until)


def _rendered(
    document: Document,
    messages: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt: bool = False,
) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except TemplateError as error:
        raise DataError(f"{document.name}: the chat template refuses it: {error}") from error
    assert isinstance(text, str)
    return text


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template; raises DataError if it has none, or several."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise DataError(
            "messages_field: the model's tokenizer has no chat template (or several); use a model "
            "with one, or write chats as text and give text_field"
        )
    return template


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> np.dtype:
    """The smallest unsigned type that holds every id of the vocabulary."""
    return np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of everything that decides the ids of a text; a slow tokenizer is refused."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load it with use_fast=True"
        )
    # Truncation and padding remain from earlier calls and do not affect `tokenize`.
    whole = json.loads(backend.to_str())
    definition = {k: v for k, v in whole.items() if k not in ("truncation", "padding")}
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
