"""A job on a node, without what takes seconds to load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from src.multirun import process
from src.multirun.cluster import ClusterJob
from src.multirun.folder import Task
from src.multirun.process import Share
from src.run_folder import RunFolder


class NodeJob(ClusterJob):
    """On its node it starts a program that trains nothing, in the place of `src.train`."""

    def __call__(self) -> int:
        """As the job does, to the exit code of the program."""

        def start(task: Task, share: Share) -> subprocess.Popen[bytes]:
            del share
            task.log.parent.mkdir(parents=True, exist_ok=True)
            refused = any("/none]" in override for override in task.overrides)
            if refused:
                task.log.write_text("error: none' does not exist\n")
            else:
                RunFolder.create(task.run_dir, config={}, record={"run_id": "1"}).end("finished")
            return subprocess.Popen([sys.executable, "-c", f"raise SystemExit({2 * refused})"])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "start", start)
            return super().__call__()
