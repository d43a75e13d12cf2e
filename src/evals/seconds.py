"""Where the time of an evaluation goes: seconds by part, each second in one part only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Seconds:
    """Seconds by part. A part that begins inside another one stops the other's clock."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Inside the block, time is this part's."""
        self._charge()
        self._open.append(part)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            part = self._open[-1]
            self.parts[part] = self.parts.get(part, 0.0) + now - self._since
        self._since = now


# Of this process: an evaluation's parts lie in many modules.
SECONDS = Seconds()
