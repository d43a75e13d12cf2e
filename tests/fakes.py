"""Stand-ins for what takes a process, a model or a cluster."""

from __future__ import annotations

from collections.abc import Callable

from src import train
from src.multirun import process
from src.multirun.folder import Task
from src.multirun.process import Share
from src.settings.config import RunConfig


class JobsHere:
    """In the place of `process.start`: a sweep's job runs here, and has ended when it returns."""

    def __init__(self, compose_run: Callable[..., RunConfig]) -> None:
        self._compose_run = compose_run

    def __call__(self, task: Task, share: Share) -> EndedJob:
        """What `python -m src.train` would do with the job's arguments, and how it would end."""
        del share
        given = process.arguments(task)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            if given[0].startswith("resume="):
                train.resume(task.run_dir, None)
            else:
                train.train(self._compose_run(*given), None)
        except ValueError as error:
            task.log.write_text(f"error: {error}\n")
            return EndedJob(2)
        return EndedJob(0)


class EndedJob:
    """As much of `subprocess.Popen` as a sweep asks of a job that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        """Its exit code."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code."""
        del timeout
        return self.returncode
