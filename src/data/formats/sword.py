"""Compressed SWORD commentary modules (`zCom`, `zCom4`) as plain text, read without SWORD.

`<testament>.?zs` has rows of three little-endian 32-bit integers (offset, size, raw size), one for
each zlib block of `<testament>.?zz`. The middle letter says how much text a block holds. The blocks
in order are the text, marked up in OSIS.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from pathlib import Path

from src.data.documents import DataError

ROW = struct.Struct("<3I")
# Elements that begin or end a paragraph or a line; all others are inline. A milestone such as
# <div sID="gen3" type="x-p"/> is one end of an element.
PARAGRAPH = re.compile(r"</?(?:div|p|title|chapter|lg|list|table|section)\b[^>]*>")
LINE = re.compile(r"</?(?:l|lb|item|row)\b[^>]*>")
CELL = re.compile(r"</?cell\b[^>]*>")
TAG = re.compile(r"<[^>]*>")
# Some modules have C1 control codes in place of letters that were typed on a DOS machine.
DOS_LETTERS = {code: bytes([code]).decode("cp437") for code in range(0x80, 0xA0)}


def read_module(folder: Path) -> str:
    """The text of a module, Old Testament first; raises DataError if it cannot be read."""
    parts = [_testament(folder, name) for name in ("ot", "nt")]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise DataError(f"{folder} holds no compressed SWORD module (ot.?zs, nt.?zs)")
    return text


def plain_text(markup: str) -> str:
    """OSIS markup as paragraphs with an empty line between them."""
    marked = PARAGRAPH.sub("\v", markup.translate({0xFEFF: None} | DOS_LETTERS))
    marked = CELL.sub(" ", LINE.sub("\n", re.sub(r"[^\S\v]+", " ", marked)))
    text = html.unescape(TAG.sub("", marked))
    paragraphs = [
        "\n".join(tidy for line in paragraph.split("\n") if (tidy := " ".join(line.split())))
        for paragraph in text.split("\v")
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _testament(folder: Path, name: str) -> str:
    markup = "".join(
        _blocks(index, index.with_name(index.name[:-1] + "z"))
        for index in sorted(folder.glob(f"{name}.?zs"))
    )
    return plain_text(markup)


def _blocks(index: Path, data: Path) -> str:
    try:
        rows, content = index.read_bytes(), data.read_bytes()
        blocks = [_block(content, *row) for row in ROW.iter_unpack(rows)]
        return b"".join(blocks).decode("utf-8")
    except (OSError, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{index} and {data.name} are not a readable SWORD pair: {error}"
        ) from error


def _block(content: bytes, offset: int, size: int, raw_size: int) -> bytes:
    block = zlib.decompress(content[offset : offset + size])
    if len(block) != raw_size:
        raise DataError(f"SWORD block at byte {offset}: {len(block)} bytes, {raw_size} announced")
    return block
