"""Progress and the time left: a live bar on a terminal, an occasional line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# The shortest time between two lines in a log file, and before the first one, in seconds.
LINE_INTERVAL = 15.0
FIRST_LINE = 5.0


def duration(seconds: float) -> str:
    """`253.1` -> `4 min 13 s`; days, hours and minutes where it takes them."""
    rounded = round(seconds)
    hours, minutes = rounded // 3600, rounded % 3600 // 60
    if hours >= 48:
        return f"{hours // 24:,} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rounded % 60:02d} s" if minutes else f"{seconds:.1f} s"


def widen(console: Console, columns: int = 160) -> Console:
    """Make a console whose output is not a terminal wide enough for every column of a table."""
    if not console.is_terminal:
        console.width = max(console.width, columns)
    return console


class Laps:
    """Seconds of parts that follow each other, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        """End a part; the next one begins."""
        now = time.perf_counter()
        self.seconds[part] = round(now - self._since, 3)
        self._since = now


class Meter:
    """The progress of a piece of work. `advance` may carry a note, such as the latest loss."""

    def __init__(self, name: str, total: int | None, *, done: int = 0, quiet: bool = False) -> None:
        self._name = name
        self._total = total
        self._done = done
        self._started_at_unit = done
        self._started = time.monotonic()
        self._last_line = self._started - max(0.0, LINE_INTERVAL - FIRST_LINE)
        self._quiet = quiet
        self._bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count finished units."""
        self._done += amount
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=note)
            return
        now = time.monotonic()
        finished = self._total is not None and self._done - amount < self._total <= self._done
        if now - self._last_line >= LINE_INTERVAL or finished:
            self._last_line = now
            print(self._line(now, note), file=sys.stderr, flush=True)

    def _line(self, now: float, note: str) -> str:
        elapsed = now - self._started
        line = f"{self._name} {self._done}"
        if self._total is None:
            line += f" | {elapsed:.0f} s so far"
        else:
            pace = elapsed / max(1, self._done - self._started_at_unit)
            left = pace * max(0, self._total - self._done)
            line += f"/{self._total} | {elapsed:.0f} s so far, {left:.0f} s left"
        return f"{line} | {note}" if note else line


@contextmanager
def meter(name: str, total: int | None, *, done: int = 0, quiet: bool = False) -> Iterator[Meter]:
    """A meter that is shown inside the block."""
    shown = Meter(name, total, done=done, quiet=quiet)
    with shown._bar or nullcontext():
        yield shown
