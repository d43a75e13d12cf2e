"""Names, sizes and hashes of a source's documents: what a corpus's key is made of.

Reading a package means parsing megabytes of markup, in seconds. Its files stay as they were
fetched, so the cache keeps what was found, until the files or the code that reads them change.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from src.assets import fetching
from src.assets.cache import cache_dir
from src.data import files
from src.data.config import PackagedText, Source
from src.data.formats import packaged
from src.data.reading import read_source
from src.run_folder import unsealed, write_sealed


@dataclass(frozen=True)
class Surveyed:
    """A document: its name, its characters, and the SHA-256 of its text."""

    name: str
    characters: int
    sha256: str


def survey(source: Source) -> list[Surveyed]:
    """The documents of a source, in its order; those of a package from the cache if it has them.

    Raises as `read_source`.
    """
    if not isinstance(source, PackagedText):
        return list(_read(source))
    file = cache_dir() / "surveys" / f"{_key(source)}.json"
    # A damaged file is made again.
    with suppress(FileNotFoundError, ValueError):
        content = unsealed(json.loads(file.read_bytes()))
        return [Surveyed(**document) for document in content["documents"]]
    found = list(_read(source))
    try:
        file.parent.mkdir(exist_ok=True)
        write_sealed(file, {"documents": [asdict(document) for document in found]})
    except OSError as error:
        # The cache may be read-only; the package is then read at every start.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    return found


def _read(source: Source) -> Iterator[Surveyed]:
    for document in read_source(source):
        digest = hashlib.sha256(document.text.encode()).hexdigest()
        yield Surveyed(document.name, len(document.text), digest)


def _key(source: PackagedText) -> str:
    """Changes with the source's settings, its files, and the modules that read them."""
    payload = fetching.fetch(source.name)
    code = [Path(files.__file__), *sorted(Path(packaged.__file__).parent.glob("*.py"))]
    held = sorted(payload.rglob("*")) if payload.is_dir() else [payload]
    stats = [(str(path), path.stat()) for path in held]
    parts = [
        [source.name, source.documents],
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
