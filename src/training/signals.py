"""Signals that end a run: SIGTERM, SIGINT and SIGHUP, and SIGUSR1 in a Slurm job.

The first one lets the run save what it has trained and leave its record in order. A second one
ends the process at once. The exit code is 128 and the signal's number.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Set for ranks that this program has started. Their parent hears every signal too and passes it on.
PARENT_VARIABLE = "LINEARARD_LAUNCH_PARENT"

_received: int | None = None
_deferred = False


class Stopped(KeyboardInterrupt):
    """A run was asked to end."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}{advice}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as shells give it."""
        return 128 + self.number


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block, a signal raises `Stopped`, and a second one ends the process.

    Signals that this process was told to ignore (nohup, background jobs) stay ignored.
    """
    global _received
    _received = None
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    if "SLURM_JOB_ID" in os.environ:
        numbers.append(signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def received() -> int:
    """The number of the signal that came since `stoppable` was entered last, or 0.

    What fails after a signal, such as a collective that another rank has left, fails because of it.
    """
    return _received or 0


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Inside the block, the first signal is only noted; it raises `Stopped` at the end.

    Yields:
        a function that gives the number of the signal, 0 before one has come.
    """
    global _deferred
    _deferred = True
    try:
        yield received
    finally:
        _deferred = False
    if _received is not None:
        raise Stopped(_received)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    if _received is not None:
        if PARENT_VARIABLE in os.environ:
            return  # a terminal or Slurm sends to this process what its parent passes on too
        os._exit(128 + number)
    _received = number
    if not _deferred:
        raise Stopped(number)
