"""Shell patterns over document names."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from src.data.documents import DataError


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
                f"{', '.join(near)}"
            )
