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
said = sys.stdin.buffer.read()
try:
    over = json.load(open(sys.argv[1])).get("state") != "running"
except (OSError, ValueError):
    over = True  # resume= restores it
if not over:
    os.chdir(sys.argv[2])
    os.execv(sys.executable, [sys.executable, "-m", "src.training.witness", sys.argv[3], said])
"""
# Seconds that a killed process may need to release its folder.
_PATIENCE = 5.0
# Bytes of an error that are handed on: what a pipe takes at once.
_MOST = 4000


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
    assert process.stdin is not None
    try:
        yield
    except Exception as error:
        # For a run that could not write its end itself.
        process.stdin.write(f"{type(error).__name__}: {error}"[:_MOST].encode())
        raise
    finally:
        process.stdin.close()
        process.wait()


def main(path: Path, said: str) -> None:
    """Write the end of a run whose process has not written it.

    Args:
        said: what the process has failed with; empty if it has ended without a word.
    """
    try:
        with FileLock(path / LOCK).acquire(timeout=_PATIENCE):
            folder = RunFolder(path)
            if folder.record()["state"] == "running":
                killed = (
                    "its process ended without a word: it was killed, perhaps for want of memory"
                )
                state = "failed" if said else "interrupted"
                folder.end(state, f"{said or killed}; go on with resume={path}")
    except (Timeout, RunFolderError):
        return  # somebody goes on with the run already, or resume= has to restore the record


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
