"""Manifests: what a folder should hold, so that damage is noticed before it is used.

A manifest lists the files of a folder with sizes and SHA-256, beside facts about them. It carries
the SHA-256 of its own content, so an edited manifest is noticed too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from src.run_folder import sync_folder, unsealed, write_sealed

MANIFEST = "manifest.json"
SCHEMA = 1
# Hashing frees the interpreter, so threads hash files at once: 1.8 GB/s each on one core.
_THREADS = min(8, os.cpu_count() or 1)


class DamageError(ValueError):
    """A folder that does not hold what its manifest says, or has none."""


class FileDigest(TypedDict):
    """A file's size and SHA-256."""

    bytes: int
    sha256: str


def digest_of(path: Path) -> FileDigest:
    """Read a file and hash it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def digests_of(paths: Iterable[Path]) -> list[FileDigest]:
    """The digests of several files, hashed at once."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(digest_of, paths))


def write_manifest(folder: Path, files: Mapping[str, FileDigest], **facts: Any) -> None:
    """Write the manifest of files, by path below the folder, that are on the disk already."""
    write_sealed(folder / MANIFEST, {"schema": SCHEMA, **facts, "files": dict(files)})


def seal_folder(folder: Path, **facts: Any) -> None:
    """Flush all files of a folder to the disk and write their manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    names = [path.relative_to(folder).as_posix() for path in paths]
    write_manifest(folder, dict(zip(names, digests_of(paths), strict=True)), **facts)
    sync_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, if nobody changed it.

    Raises:
        DamageError: it is missing, unreadable, changed, or of another schema.
    """
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a regular file")
        content = unsealed(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise DamageError(f"{MANIFEST} {reason}") from error
    if content.get("schema") != SCHEMA:
        raise DamageError(
            f"{MANIFEST} has schema {content.get('schema')}, and this version reads {SCHEMA}"
        )
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Compare a folder with its manifest, which is returned.

    Files that the manifest does not list are no part of the folder and may be there.

    Raises:
        DamageError: the first file that differs, and how.
    """
    content = read_manifest(folder)
    files: dict[str, FileDigest] = content["files"]
    paths = [folder / name for name in files]
    for (name, expected), path in zip(files.items(), paths, strict=True):
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            how = "is missing" if size is None else f"has {size} bytes"
            raise DamageError(f"{name} {how} instead of {expected['bytes']} bytes")
    try:
        digests = digests_of(paths)
    except OSError as error:
        raise DamageError(f"{error.filename} cannot be read: {error.strerror}") from error
    for (name, expected), digest in zip(files.items(), digests, strict=True):
        if digest != expected:
            raise DamageError(
                f"{name} is damaged: SHA-256 {digest['sha256'][:12]} instead of "
                f"{expected['sha256'][:12]}"
            )
    return content
