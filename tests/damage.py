"""Draws damages of files: bits, cuts, other content, other kinds of files, JSON of other types."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 1.5, 1e300, -1e-300, 10**18, 10**30, "", "abc", "1", "../x"),
    *([], [1], [None], {}, {"a": 1}, [[[]]], "\u0000", "\ud7ff", "x" * 300, "/etc/passwd"),
)
CONTENTS: tuple[bytes, ...] = (
    *(
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"{" * 3000,
        b"\xff\xfe\x00",
        b"\x00" * 99,
    ),
    *(b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"9" * 10_000, b"nan", b"NaN\n"),
    *(
        b'{"a": ' * 2000,
        b"- " * 3000,
        b"&a [*a]",
        b"!!python/object:os.system {}",
        b"\xef\xbb\xbf{}",
    ),
)


def damage(draw: random.Random, file: Path) -> str:
    """Damage a file in one of many ways; returns which."""
    content = file.read_bytes()
    kinds = ["flip", "cut", "zeros", "insert", "other", "kind"]
    if file.suffix in (".json", ".jsonl"):
        kinds += ["json"] * 6
    kind = draw.choice(kinds)
    place = draw.randrange(len(content) + 1)
    if kind == "flip" and content:
        flipped = bytearray(content)
        for _ in range(draw.choice([1, 1, 5])):
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
    elif kind == "zeros":
        file.write_bytes(
            content[:place] + bytes(len(content[place : place + 64])) + content[place + 64 :]
        )
    elif kind == "insert":
        file.write_bytes(content[:place] + draw.randbytes(draw.choice([1, 7])) + content[place:])
    elif kind == "other":
        file.write_bytes(draw.choice(CONTENTS))
    elif kind == "kind":
        return _other_kind(draw, file)
    elif kind == "json":
        return f"{file.name}: {_other_json(draw, file)}"
    else:
        file.write_bytes(content[:place])
    return f"{file.name}: {kind} at {place} of {len(content)}"


def _other_kind(draw: random.Random, file: Path) -> str:
    kind = draw.choice(["missing", "folder", "fifo", "link to nothing", "link to itself", "device"])
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "link to nothing":
        file.symlink_to(file.parent / "nowhere")
    elif kind == "link to itself":
        file.symlink_to(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    return f"{file.name}: {kind}"


def _other_json(draw: random.Random, file: Path) -> str:
    """Another value at a random place of a JSON file, or of a line of one."""
    lines = (
        file.read_text(encoding="utf-8").splitlines()
        if file.suffix == ".jsonl"
        else [file.read_text()]
    )
    chosen = draw.randrange(len(lines))
    value = json.loads(lines[chosen])
    paths = list(_places(value))
    path = draw.choice(paths)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    what = draw.choice(["delete", "add", "change", "change", "change"])
    if not path:
        value, what = draw.choice(VALUES), "change"
    elif what == "delete":
        del holder[path[-1]]
    elif what == "add" and isinstance(holder, dict):
        holder["added"] = draw.choice(VALUES)
    else:
        holder[path[-1]] = draw.choice(VALUES)
    lines[chosen] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{what} {'.'.join(map(str, path))}, line {chosen}: {lines[chosen][:0]}"


def _places(value: Any, path: tuple[Any, ...] = (), most: int = 12) -> Sequence[tuple[Any, ...]]:
    """Paths into JSON; of long lists only the first elements."""
    found = [path]
    inner: Any = ()
    if isinstance(value, dict):
        inner = list(value.items())[: most * 4]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:most]
    for key, below in inner:
        found += _places(below, (*path, key), most)
    return found


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a folder, in place of what an earlier damage has left."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
