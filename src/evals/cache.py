"""A cache of results under a key of everything that decides them: nothing is evaluated twice.

An entry is one compressed JSON file that holds its whole key. It is written atomically.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.assets.cache import remove
from src.run_folder import write_whole

# Part of every key. Raise it when results are stored or computed in another way.
FORMAT = 4
_DAMAGES = (EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class ResultCache:
    """A folder of results."""

    folder: Path | None  # the folder of the entries; None caches nothing

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """The value under an equal key, or None."""
        path = self._path(key)
        if path is None or not os.path.lexists(path):
            return None
        try:
            if not path.is_file():
                raise ValueError("it is not a regular file")
            entry = json.loads(gzip.decompress(path.read_bytes()))
            return entry["value"] if entry["key"] == _plain(key) else None
        except (*_DAMAGES, OSError) as error:
            # gzip's checksum covers every byte of the entry.
            print(f"{path} is damaged ({error}): it is computed again", file=sys.stderr)
            return None

    def of(self, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The value under a key; made and stored if there is none."""
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def put(self, key: Mapping[str, Any], value: Any) -> None:
        """Store a JSON value."""
        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            remove(path)
        text = json.dumps({"key": _plain(key), "value": value}, allow_nan=False)
        write_whole(path, gzip.compress(text.encode(), compresslevel=3, mtime=0))

    def _path(self, key: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[:32]}.json.gz"


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps({"format": FORMAT, **key}, sort_keys=True))
