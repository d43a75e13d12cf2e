"""Watches over a run's record: however the run's process ends, run.json does not say running.

A small process of its own waits until the run's process ends, killed or not. If the record then
still says that the run is running, it writes that the run was interrupted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from src.run_folder import LOCK, RunFolder, RunFolderError

ROOT = Path(__file__).resolve().parents[2]
# Reads until the run's process has closed the pipe, and loads nothing before there is work to do.
_WAIT = """
import json, os, sys
sys.stdin.buffer.read()
try:
    over = json.load(open(sys.argv[1])).get("state") != "running"
except (OSError, ValueError):
    over = True  # resume= restores it
if not over:
    os.chdir(sys.argv[2])
    os.execv(sys.executable, [sys.executable, "-m", "src.training.witness", sys.argv[3]])
"""
# Seconds that a killed process may need to release its folder.
_PATIENCE = 30.0


@contextmanager
def witnessed(folder: Path) -> Iterator[None]:
    """Inside the block, a witness watches; at its end the record is right or made right."""
    paths = (folder.absolute() / "run.json", ROOT, folder.absolute())
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WAIT, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's signals are not for it
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def main(path: Path) -> None:
    """Write the end of a run whose process has ended without a word."""
    try:
        with FileLock(path / LOCK).acquire(timeout=_PATIENCE):
            folder = RunFolder(path)
            if folder.record()["state"] == "running":
                folder.end(
                    "interrupted",
                    "its process ended without a word: it was killed, perhaps for want of memory; "
                    f"go on with resume={path}",
                )
    except (Timeout, RunFolderError):
        return  # somebody goes on with the run already, or resume= has to restore the record


if __name__ == "__main__":
    main(Path(sys.argv[1]))
