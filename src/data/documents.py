"""`Document`, which every reader yields, `DataError`, which every fault in texts raises, and shell
patterns over the names of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase


class DataError(ValueError):
    """Texts, sources or block settings that cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Document:
    """One text under a name that is unique in its corpus, such as `austen/emma`."""

    name: str
    text: str


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a document's name matches one of the patterns. Case counts."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def refuse_idle_patterns(key: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise DataError, with the nearest names, for a pattern of `key` that matches no name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise DataError(
                f"{key}: pattern {pattern!r} matches none of {len(names)} documents; near it: "
                f"{', '.join(near)}; give a pattern that matches, or leave it out"
            )
