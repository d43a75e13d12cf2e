"""What is written is what is loaded; damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from src.data.corpus import INDEX_FILE, TOKENS_FILE, DocumentInfo, load_corpus, save_corpus
from src.data.documents import DataError
from src.manifest import MANIFEST, seal_folder

INFOS = [
    DocumentInfo("a", 3, "sha a", "train"),
    DocumentInfo("é", 2, "sha b", "held_out"),
    DocumentInfo("c", 5, "sha c", "train"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_corpus(tmp_path, "key", INFOS, np.arange(10, dtype=np.uint16))
    return tmp_path


def test_a_saved_corpus_is_loaded(folder: Path) -> None:
    corpus = load_corpus("name", folder)
    assert corpus.documents == tuple(INFOS)
    assert corpus.train_tokens == 8
    assert [len(ids) for _, ids in corpus.held_out_documents()] == [2]
    assert [(name, ids.tolist()) for name, ids in corpus.arrays("train")] == [
        ("a", [0, 1, 2]),
        ("c", [5, 6, 7, 8, 9]),
    ]
    assert [(name, ids.tolist()) for name, ids in corpus.held_out_documents()] == [("é", [3, 4])]


def test_a_cache_from_before_sources_were_counted_is_refused(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    del index["sources"]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    (folder / MANIFEST).unlink()
    seal_folder(folder)
    with pytest.raises(DataError, match="is of an earlier version"):
        load_corpus("name", folder)


def test_tokens_are_read_only(folder: Path) -> None:
    corpus = load_corpus("name", folder)
    with pytest.raises(ValueError, match="read-only"):
        corpus.tokens[0] = 1


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param(np.arange(9, dtype=np.uint16), id="fewer"),
        pytest.param(np.zeros(10, dtype=np.uint16), id="zeros"),
        pytest.param(np.array([object()] * 10), id="pickled"),
    ],
)
def test_other_tokens_are_refused(folder: Path, tokens: np.ndarray) -> None:
    np.save(folder / TOKENS_FILE, tokens, allow_pickle=True)
    with pytest.raises(DataError, match=r"is damaged: tokens\.npy"):
        load_corpus("name", folder)


def test_any_flip_and_any_cut_of_a_file_is_noticed(folder: Path) -> None:
    seen = 0
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole) - 1, 7):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            for damaged in (bytes(flipped), whole[:place]):
                file.write_bytes(damaged)
                with pytest.raises(DataError, match="is damaged"):
                    load_corpus("name", folder)
                seen += 1
        file.write_bytes(whole)
    assert load_corpus("name", folder).tokens.tolist() == list(range(10))
    assert seen > 150


def test_the_index_is_plain_json(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    assert index["documents"][1] == ["é", 2, "sha b", "held_out"]
