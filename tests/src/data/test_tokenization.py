"""Token ids, their type, and what identifies a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from src.data import tokenization as module
from src.data.documents import DataError, Document
from src.data.tokenization import token_dtype, tokenize, tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Factory = Callable[..., "PreTrainedTokenizerFast"]


def test_documents_come_with_their_ids_and_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [Document("a", "héllo\nworld"), Document("b", "x" * 5000)]
    pairs = list(tokenize(documents, tokenizer))
    assert [document for document, _ in pairs] == documents
    for document, ids in pairs:
        assert ids.dtype == np.uint16
        assert ids[0] == 0
        assert np.count_nonzero(ids == 0) == 1
        assert tokenizer.decode(ids[1:].tolist()) == document.text


def test_no_bos_where_the_tokenizer_adds_none(tokenizer_factory: Factory) -> None:
    ((_, ids),) = tokenize([Document("a", "text")], tokenizer_factory(bos=False))
    assert len(ids) == 4


@pytest.mark.parametrize("size", [1, 2, 100])
def test_batches_do_not_change_the_result(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    documents = [Document(str(i), "word " * i) for i in range(1, 8)]
    expected = [ids.tolist() for _, ids in tokenize(documents, tokenizer)]
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", size)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 20)
    assert [ids.tolist() for _, ids in tokenize(documents, tokenizer)] == expected


def test_a_large_vocabulary_takes_four_bytes(tokenizer_factory: Factory) -> None:
    assert token_dtype(tokenizer_factory()) == np.uint16
    assert token_dtype(tokenizer_factory(extra_words=2**16 - 257)) == np.uint16
    assert token_dtype(tokenizer_factory(extra_words=2**16 - 256)) == np.uint32


def test_identity_follows_vocabulary_and_special_tokens(tokenizer_factory: Factory) -> None:
    first = tokenizer_identity(tokenizer_factory())
    assert tokenizer_identity(tokenizer_factory()) == first
    assert tokenizer_identity(tokenizer_factory(bos=False)) != first
    assert tokenizer_identity(tokenizer_factory(extra_words=1)) != first


def test_identity_survives_padding_and_truncation(tokenizer_factory: Factory) -> None:
    tokenizer = tokenizer_factory()
    before = tokenizer_identity(tokenizer)
    tokenizer.pad_token = tokenizer.bos_token
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_identity(tokenizer) == before
    ((_, ids),) = tokenize([Document("a", "long text")], tokenizer)
    assert len(ids) == 10


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="SimpleNamespace is not a fast tokenizer"):
        tokenizer_identity(SimpleNamespace())
