"""Whether many inputs are each answered in words, soon: for tests that generate inputs."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from src import command

SECONDS = 10  # of this process's work
_LONGEST = 100  # of waiting, on a machine that may be busy with more
_NO_WORDS = re.compile(r"Traceback|<class|object at 0x|hydra\.cc")


class Hang(Exception):
    """A case took too long."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Hang


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Raise `Hang` inside if it takes too long."""
    before = [(n, signal.signal(n, _stop)) for n in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)


class Answers:
    """Counts what cases came to, and collects those that were not answered in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        self.slowest: tuple[float, str] = (0.0, "")

    def ask(self, work: Callable[[], str], said: Callable[[], str]) -> None:
        """Try a case.

        Args:
            work: returns what it came to, or raises a user's mistake, which is `refused`.
            said: the case, for a report.
        """
        began = time.process_time()
        try:
            with hurried(), contextlib.redirect_stderr(io.StringIO()):
                outcome = work()
        except Exception as error:
            outcome = "refused"
            if not (isinstance(error, ValueError) and command._is_users(error)):
                outcome = "fault"
                self.faults.setdefault(_fault(error), said())
            elif _NO_WORDS.search(str(error)):
                self.faults.setdefault(f"message: {str(error)[:200]}", said())
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, (time.process_time() - began, said()))

    def check(self) -> None:
        """Fail with all cases that were not answered in words."""
        print(dict(self.counts), f"slowest: {self.slowest[0]:.1f} s, {self.slowest[1]}")
        assert not self.faults, "\n".join(f"{f}\n    {line}" for f, line in self.faults.items())


def _fault(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "/src/" in frame.filename and "/tests/" not in frame.filename
    ]
    calls = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in (*frames[-1:], *ours[:-5:-1]))
    return f"{type(error).__name__}: {str(error)[:200]} at {calls}"
