"""A progress line for tokenization: a bar with the time left on a terminal, one line elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType


class Progress:
    """Context manager; `total` is in the unit of `update`, or None if it is unknown."""

    def __init__(self, corpus: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._message = f"tokenizing corpus {corpus}"
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._message, total=total)

    def __enter__(self) -> Progress:
        if self._bar.console.is_terminal:
            self._bar.start()
        else:
            print(self._message, file=sys.stderr, flush=True)
        return self

    def update(self, amount: int) -> None:
        self._bar.advance(self._task, amount)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar.live.is_started:
            self._bar.stop()
