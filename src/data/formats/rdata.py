"""R's lazy-load databases of character vectors, read without R.

A package's data are in a pair of files. `.rdx` is a gzip-compressed serialized list that says where
each variable is. `.rdb` holds the variables, each as a 4-byte big-endian length and a zlib stream.
Both use R's XDR serialization (R Internals, section 1.8); only the part for text is implemented.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

from src.data.documents import DataError

# Kinds of serialized items: the low byte of an item's flags.
NIL, REFERENCE, SYMBOL, PAIRLIST, CHARACTERS = 254, 255, 1, 2, 9
LOGICALS, INTEGERS, STRINGS, LIST = 10, 13, 16, 19
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
MISSING_STRING = -1
_DAMAGES = (EOFError, LookupError, TypeError, ValueError, struct.error, zlib.error)


def read_lazy_load(stem: Path) -> dict[str, list[str]]:
    """The character vectors in `<stem>.rdb`, by variable, in the index's order.

    Raises DataError if the pair of files is missing or broken, or holds something other than text.
    """
    index_path, data_path = stem.with_suffix(".rdx"), stem.with_suffix(".rdb")
    try:
        places = _Reader(gzip.decompress(index_path.read_bytes())).value()["variables"]
        data = data_path.read_bytes()
        return {name: _strings(data, *place) for name, place in places.items()}
    except DataError:
        raise
    except (*_DAMAGES, OSError) as error:
        raise DataError(f"{stem} is not a readable R lazy-load database: {error!r}") from error


def _strings(data: bytes, offset: int, size: int) -> list[str]:
    (length,) = struct.unpack_from(">I", data, offset)
    record = zlib.decompress(data[offset + 4 : offset + size])
    if len(record) != length:
        raise DataError(f"R record at byte {offset}: {len(record)} bytes, {length} announced")
    value = _Reader(record).value()
    if not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
        raise DataError(f"R record at byte {offset} is not a character vector")
    return value


class _Reader:
    """A cursor over one XDR serialization (format 3): vectors become lists, named lists dicts."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0
        self.references: list[Any] = []

    def value(self) -> Any:
        if self._take(2) != b"X\n":
            raise DataError("R data are not in XDR serialization")
        (version,) = self._integers(1)
        self._take(8)  # the writing R's version and the oldest that can read it
        if version == 3:
            self._take(*self._integers(1))  # name of the native encoding
        return self._item()

    def _item(self) -> Any:
        (flags,) = self._integers(1)
        kind = flags & 0xFF
        if kind == NIL:
            return None
        if kind == REFERENCE:
            return self.references[(flags >> 8) - 1]
        if kind == SYMBOL:
            self.references.append(self._item())
            return self.references[-1]
        if kind == CHARACTERS:
            (length,) = self._integers(1)
            return None if length == MISSING_STRING else self._take(length).decode("utf-8")
        if kind == PAIRLIST:
            return self._pairlist(flags)
        return self._vector(kind, flags)

    def _vector(self, kind: int, flags: int) -> Any:
        (length,) = self._integers(1)
        if kind in (LOGICALS, INTEGERS):
            values: list[Any] = list(self._integers(length))
        elif kind in (STRINGS, LIST):
            values = [self._item() for _ in range(length)]
        else:
            raise DataError(f"R data hold an item of kind {kind}, which is not text")
        attributes = self._item() if flags & HAS_ATTRIBUTES else {}
        if kind == LIST and "names" in attributes:
            return dict(zip(attributes["names"], values, strict=True))
        return values

    def _pairlist(self, flags: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while flags & 0xFF == PAIRLIST:
            if flags & HAS_ATTRIBUTES or not flags & HAS_TAG:
                raise DataError("R data hold a pairlist of a kind that text does not need")
            tag = self._item()
            pairs[tag] = self._item()
            (flags,) = self._integers(1)
        return pairs

    def _integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self._take(4 * count))

    def _take(self, count: int) -> bytes:
        taken = self.content[self.position : self.position + count]
        if len(taken) != count:
            raise EOFError(f"{count} bytes wanted at byte {self.position}")
        self.position += count
        return taken
