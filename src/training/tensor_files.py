"""Trained state on disk: parts of flat tensors in safetensors files, one file a rank.

A rank writes the parts of the weights and moments that it holds. A reader puts any range of any
tensor together from all files, so a run may go on with another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.manifest import FileDigest

# What safetensors calls the formats that state is kept in.
_FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Part:
    """A rank's part of a flat tensor.

    Attributes:
        kind: what of it: `weight`, `exp_avg` or `exp_avg_sq`.
        start: place of the part's first number in the flat tensor.
        values: [n], a view of the engine's memory.
    """

    name: str
    kind: str
    start: int
    values: Tensor

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.values.numel() * self.values.element_size()


def write(path: Path, parts: Iterable[Part]) -> FileDigest:
    """Write parts as a safetensors file, flush it, and return its digest, hashed on the way.

    Tensors leave the device one by one: while one is hashed in a thread, it is written and the next
    one is fetched. So the host needs the memory of the two largest.
    """
    parts = list(parts)
    entries: dict[str, Any] = {}
    end = 0
    for part in parts:
        begin, end = end, end + part.bytes
        entries[f"{part.kind}/{part.start}/{part.name}"] = {
            "dtype": _FORMATS[part.values.dtype],
            "shape": [part.values.numel()],
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as hashing:
        hashed = hashing.submit(digest.update, header)
        file.write(header)
        for part in parts:
            values = part.values.detach().cpu().contiguous()
            piece = values.view(torch.uint8).numpy().data
            hashed.result()
            hashed = hashing.submit(digest.update, piece)
            file.write(piece)
        hashed.result()
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


class SavedState(ExitStack):
    """The tensors in files that `write` wrote, in any number of them, for use in a `with`."""

    def __init__(self, paths: Iterable[Path]) -> None:
        from safetensors import safe_open

        super().__init__()
        self._parts: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        for path in paths:
            file: Any = self.enter_context(safe_open(path, framework="pt"))
            for key in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
                kind, start, name = key.split("/", 2)
                (length,) = file.get_slice(key).get_shape()
                held = self._parts.setdefault((kind, name), [])
                held.append((int(start), int(start) + length, file.get_slice(key)))

    def names(self) -> set[str]:
        """The parameters that are held."""
        return {name for _, name in self._parts}

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Numbers [length] of a flat tensor from `start` on.

        Raises:
            KeyError: the files do not hold them all.
        """
        pieces: list[Tensor] = []
        place = start
        for begin, end, held in sorted(self._parts.get((kind, name), ()), key=lambda p: p[:2]):
            if begin <= place < end and place < start + length:
                until = min(end, start + length)
                pieces.append(held[place - begin : until - begin])
                place = until
        if place != start + length or not pieces:
            raise KeyError(f"{kind} of {name}: numbers {start} to {start + length} are not there")
        return torch.cat(pieces)


def total_bytes(parts: Iterable[Part]) -> int:
    """The size of all parts together."""
    return sum(part.bytes for part in parts)
