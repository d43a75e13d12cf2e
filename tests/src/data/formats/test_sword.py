"""SWORD modules, written here by hand, and the removal of their markup."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from src.data.documents import DataError
from src.data.formats.sword import plain_text, read_module


def write_testament(folder: Path, name: str, letter: str, blocks: list[str]) -> None:
    rows, data = b"", b""
    for block in blocks:
        raw = block.encode()
        stored = zlib.compress(raw)
        rows += struct.pack("<3I", len(data), len(stored), len(raw))
        data += stored
    (folder / f"{name}.{letter}zs").write_bytes(rows)
    (folder / f"{name}.{letter}zz").write_bytes(data)


@pytest.mark.parametrize("letter", ["b", "c", "v"])
def test_blocks_are_joined_old_testament_first(tmp_path: Path, letter: str) -> None:
    write_testament(tmp_path, "nt", letter, ["<p>third</p>"])
    write_testament(tmp_path, "ot", letter, ["<p>first</p><p>sec", "ond — é</p>"])
    assert read_module(tmp_path) == "first\n\nsecond — é\n\nthird"


def test_an_empty_testament_is_left_out(tmp_path: Path) -> None:
    write_testament(tmp_path, "ot", "c", ["<p>text</p>"])
    write_testament(tmp_path, "nt", "c", [])
    assert read_module(tmp_path) == "text"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ('a <hi type="italic">b</hi>, <reference osisRef="Ps.1">Ps 1</reference>.', "a b, Ps 1."),
        ('<div sID="g1"/> one\n two <div eID="g1"/> three', "one two\n\nthree"),
        ("<title>Psalm 1</title>text", "Psalm 1\n\ntext"),
        ("<list><item>a</item><item>b</item></list>", "a\nb"),
        ('<lg sID="1"/><l sID="2"/>He<l eID="2"/> <l sID="3"/>Nor<l eID="3"/>', "He\nNor"),
        ("<row><cell>Light.</cell><cell>(3-5)</cell></row>", "Light. (3-5)"),
        ("x &amp; y &lt;z&gt; &#233;", "x & y <z> é"),
        ("1\u202fKings\u00a022 \ufeff", "1 Kings 22"),
        ("Thom\x82 de Jesu", "Thomé de Jesu"),
        ('<milestone n="Genesis"/><chapter osisID="Gen.1"/>', ""),
    ],
    ids=[
        "inline", "milestones", "title", "items", "verse lines", "cells", "entities", "spaces",
        "DOS letters", "nothing",
    ],
)  # fmt: skip
def test_markup_becomes_plain_paragraphs(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_a_folder_without_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no compressed SWORD module"):
        read_module(tmp_path)


@pytest.mark.parametrize("suffix", ["czs", "czz"])
def test_broken_blocks_are_refused(tmp_path: Path, suffix: str) -> None:
    write_testament(tmp_path, "ot", "c", ["some text"])
    file = tmp_path / f"ot.{suffix}"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match="not a readable SWORD pair"):
        read_module(tmp_path)


def test_a_wrong_raw_size_is_refused(tmp_path: Path) -> None:
    write_testament(tmp_path, "ot", "c", ["some text"])
    rows = (tmp_path / "ot.czs").read_bytes()
    (tmp_path / "ot.czs").write_bytes(rows[:8] + struct.pack("<I", 5))
    with pytest.raises(DataError, match="9 bytes, 5 announced"):
        read_module(tmp_path)
