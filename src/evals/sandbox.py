"""Runs generated programs in a process of their own, with limits on time, memory and files.

The limits stop runaway programs. They are no protection against a hostile one: it runs as the same
user and can reach the network, so run untrusted models' code inside a container.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

SECONDS = 5.0
MEMORY = 1 << 30
FILE_SIZE = 1 << 20


def runs(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a Python program ends without an error within the limits.

    It runs in an empty folder, isolated from this project and from the environment's variables and
    packages.

    Args:
        program: source text.
        seconds: of processor time, and one more of wall-clock time.
        memory: bytes of address space.
    """

    def limit() -> None:
        whole = max(1, round(seconds))
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,
            preexec_fn=limit,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(program.encode(), timeout=seconds + 1)
        finally:
            # Whatever it has started goes with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode == 0
