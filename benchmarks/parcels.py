"""Files of the cache for a machine without a network, as parcels that come one at a time."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from src.assets.cache import cache_dir

PARCEL_BYTES = 48 * 2**20


def pack(name: str, paths: Iterable[Path], folder: Path) -> None:
    """Write files and folders of the cache into parcels, and say which.

    Args:
        name: that of the parcels, without a hyphen.
        paths: in the cache.
        folder: gets the parcels; it is made where there is none.
    """
    stream = io.BytesIO()
    root = cache_dir()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=6) as bundle:
        for path in sorted(paths):
            bundle.add(path, arcname=path.relative_to(root).as_posix())
    content = stream.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(0, len(content), PARCEL_BYTES)
    digest = hashlib.sha256(content).hexdigest()[:12]
    for number, start in enumerate(parts):
        target = folder / f"{name}-{digest}-{number}-of-{len(parts)}.parcel"
        target.write_bytes(content[start : start + PARCEL_BYTES])
        print(f"{target}: {target.stat().st_size / 2**20:.1f} MiB")


def unpack(name: str, folder: Path) -> None:
    """Keep a folder's parcels, and when all are there put their files into the cache.

    Raises:
        SystemExit: there are none, or they are of different packings.
    """
    shelf = cache_dir() / "parcels"
    shelf.mkdir(exist_ok=True)
    for parcel in folder.glob(f"{name}-*.parcel"):
        (shelf / parcel.name).write_bytes(parcel.read_bytes())
    kept = sorted(shelf.glob(f"{name}-*.parcel"), key=lambda p: int(p.name.split("-")[2]))
    if not kept:
        sys.exit(f"{folder} holds no parcels")
    wanted = int(kept[0].stem.rpartition("-")[2])
    if len({p.name.split("-")[1] for p in kept}) > 1:
        sys.exit(f"{shelf} holds parcels of different packings: remove the older ones")
    if len(kept) < wanted:
        print(f"{len(kept)} of {wanted} parcels are here")
        return
    content = b"".join(parcel.read_bytes() for parcel in kept)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as bundle:
        bundle.extractall(cache_dir(), filter="data")
    print(f"unpacked into {cache_dir()}")
