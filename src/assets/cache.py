"""The folder for downloads and derived data, and the digests of its files and folders."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AfterValidator

# A path as a user types it; a leading ~ becomes the home folder.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]

APPLICATION = "linearard-lab"
CACHE_VARIABLE = "LINEARARD_CACHE"


class CacheError(ValueError):
    """The folder for downloads and derived data cannot be made."""


def cache_dir() -> Path:
    """The folder for downloads and derived data. It is made on demand, never inside a checkout.

    `LINEARARD_CACHE` names it; otherwise it is the platform's cache folder of the user.

    Raises:
        CacheError: it cannot be made.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = Path(chosen) if chosen else Path(platformdirs.user_cache_dir(APPLICATION))
    folder = folder.expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"the cache {folder} cannot be made ({error.strerror}); {CACHE_VARIABLE}=DIR names "
            "another"
        ) from error
    return folder


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; nothing is no fault."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's sorted relative paths and file digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listing = "".join(f"{name}\0{content_digest(files[name])}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()
