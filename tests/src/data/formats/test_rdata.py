"""R's lazy-load databases, written here by hand."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import pytest

from src.data.documents import DataError
from src.data.formats.rdata import read_lazy_load

HEADER = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
NIL = struct.pack(">i", 254)


def integers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def characters(text: str | None) -> bytes:
    if text is None:
        return integers(9, -1)
    content = text.encode()
    return integers(0x40009, len(content)) + content


def strings(*texts: str | None) -> bytes:
    return integers(16, len(texts)) + b"".join(map(characters, texts))


def named_list(symbol: bytes, **items: bytes) -> bytes:
    """A list with names; `symbol` is the tag `names`, or a reference to it."""
    attributes = integers(0x402) + symbol + strings(*items) + NIL
    return integers(0x213, len(items)) + b"".join(items.values()) + attributes


def write_database(stem: Path, variables: dict[str, bytes]) -> None:
    """The pair of files that R's makeLazyLoadDB leaves."""
    data, places = b"", {}
    for name, value in variables.items():
        record = HEADER + value
        stored = struct.pack(">I", len(record)) + zlib.compress(record)
        places[name] = integers(13, 2, len(data), len(stored))
        data += stored
    stem.with_suffix(".rdb").write_bytes(data)
    new_symbol = integers(1) + characters("names")
    reference = integers((1 << 8) | 255)
    index = named_list(
        reference, variables=named_list(new_symbol, **places), compressed=integers(10, 1, 1)
    )
    stem.with_suffix(".rdx").write_bytes(gzip.compress(HEADER + index))


def test_vectors_come_by_name_and_in_order(tmp_path: Path) -> None:
    novels = {"zeta": strings("CHAPTER I", "", "Café—“yes”"), "alpha": strings()}
    write_database(tmp_path / "Rdata", novels)
    texts = read_lazy_load(tmp_path / "Rdata")
    assert texts == {"zeta": ["CHAPTER I", "", "Café—“yes”"], "alpha": []}
    assert list(texts) == ["zeta", "alpha"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (integers(13, 1, 7), "is not a character vector"),
        (strings("a", None), "is not a character vector"),
        (integers(14, 1, 0, 0), "item of kind 14"),
        (integers(16, 5) + characters("only one"), "wanted at byte"),
    ],
    ids=["integers", "a missing string", "doubles", "cut short"],
)
def test_what_is_not_text_is_refused(tmp_path: Path, value: bytes, message: str) -> None:
    write_database(tmp_path / "Rdata", {"x": value})
    with pytest.raises(DataError, match=message):
        read_lazy_load(tmp_path / "Rdata")


@pytest.mark.parametrize("suffix", [".rdx", ".rdb"])
def test_broken_or_missing_files_are_refused(tmp_path: Path, suffix: str) -> None:
    write_database(tmp_path / "Rdata", {"x": strings("a")})
    file = (tmp_path / "Rdata").with_suffix(suffix)
    content = file.read_bytes()
    for damaged in (content[:12], b"", bytes(len(content))):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable R lazy-load database"):
            read_lazy_load(tmp_path / "Rdata")
    file.unlink()
    with pytest.raises(DataError, match="not a readable R lazy-load database"):
        read_lazy_load(tmp_path / "Rdata")


def test_a_wrong_length_is_refused(tmp_path: Path) -> None:
    write_database(tmp_path / "Rdata", {"x": strings("a")})
    file = tmp_path / "Rdata.rdb"
    file.write_bytes(struct.pack(">I", 7) + file.read_bytes()[4:])
    with pytest.raises(DataError, match="7 announced"):
        read_lazy_load(tmp_path / "Rdata")
