"""Progress in a log: a line now and then, with time left at the pace of this run."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from src import progress
from src.progress import LINE_INTERVAL, Meter, meter


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def __iadd__(self, seconds: float) -> Clock:
        self.now += seconds
        return self


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress.time, "monotonic", made.monotonic)
    return made


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What was written to stderr since the last call; stdout stays free for results."""

    def read() -> list[str]:
        written = capsys.readouterr()
        assert written.out == ""
        return written.err.splitlines()

    return read


def test_a_line_now_and_then(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("ard", 100) as shown:
        for _ in range(4):
            clock += LINE_INTERVAL / 4
            shown.advance(note="loss 0.5")
        for _ in range(3):
            clock += LINE_INTERVAL / 4
            shown.advance(5)
        # The first line comes earlier, so that a task of seconds says something too.
        assert lines() == [
            "ard 2/100 | 8 s so far, 368 s left | loss 0.5",
            "ard 14/100 | 22 s so far, 138 s left",
        ]
        clock += LINE_INTERVAL
        shown.advance()
    assert lines() == ["ard 20/100 | 41 s so far, 165 s left"]


def test_the_end_is_always_told(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("cpt", 3) as shown:
        shown.advance(2)
        assert lines() == []
        clock += 1
        shown.advance(note="loss 2")
    assert lines() == ["cpt 3/3 | 1 s so far, 0 s left | loss 2"]


def test_a_resumed_run_counts_its_own_pace(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("ard", 100, done=90) as shown:
        clock += 20
        shown.advance(2)
    assert lines() == ["ard 92/100 | 20 s so far, 80 s left"]


def test_quiet_says_nothing(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("ard", 1, quiet=True) as shown:
        clock += 60
        shown.advance(note="loss 1")
    assert lines() == []


def test_a_total_may_be_unknown(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("corpus", None) as shown:
        shown.advance(4)
        clock += LINE_INTERVAL
        shown.advance(6)
    assert lines() == ["corpus 10 | 15 s so far"]


def test_the_end_is_told_once(clock: Clock, lines: Callable[[], list[str]]) -> None:
    with meter("corpus", 3) as shown:
        shown.advance(4)
        shown.advance(4)
    assert lines() == ["corpus 4/3 | 0 s so far, 0 s left"]


def test_nothing_to_do(lines: Callable[[], list[str]]) -> None:
    with meter("ard", 0):
        pass
    assert lines() == []


def interrupted_work(shown: list[Meter], error: type[BaseException]) -> None:
    with meter("ard", 3) as bar:
        shown.append(bar)
        assert bar._bar is not None
        assert bar._bar.live.is_started
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_errors_pass_through_a_bar_that_is_taken_down(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown: list[Meter] = []
    with pytest.raises(error):
        interrupted_work(shown, error)
    assert shown[0]._bar is not None
    assert not shown[0]._bar.live.is_started


def test_a_terminal_gets_a_bar_and_no_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with meter("ard", 3, done=1) as shown:
        clock += 60
        shown.advance(note="loss 0.5")
        assert shown._bar is not None
        (task,) = shown._bar.tasks
        assert (task.completed, task.total, task.fields["note"]) == (2, 3, "loss 0.5")
    assert "s so far" not in capsys.readouterr().err
