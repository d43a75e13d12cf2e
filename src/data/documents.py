"""`Document`, which every reader yields, and `DataError`, which every fault in texts raises."""

from __future__ import annotations

from dataclasses import dataclass


class DataError(ValueError):
    """Texts, sources or block settings that cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Document:
    """One text under a name that is unique in its corpus, such as `austen/emma`."""

    name: str
    text: str
