"""Random numbers that are a function of a key, so that a resumed run and every rank draw the same.

No library's random stream is used: those may change between versions.
"""

from __future__ import annotations

import hashlib


class Draw:
    """Numbers from SHA-256 of a key and a counter: the same on every platform and version."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._count = 0

    def unit(self) -> float:
        """A number in (0, 1) with 53 bits."""
        return ((self._bits() >> 11) + 0.5) / 2**53

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included, with a bias below 2**-64 * (high - low)."""
        return low + self._bits() * (high - low + 1) // 2**64

    def _bits(self) -> int:
        digest = hashlib.sha256(f"{self._key}/{self._count}".encode()).digest()
        self._count += 1
        return int.from_bytes(digest[:8], "little")
