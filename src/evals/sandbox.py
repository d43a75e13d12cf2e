"""Runs generated programs in a separate process, with limits on time, memory and files.

The limits stop runaway programs. They do not protect against a hostile program: it runs as the same
user and can reach the network. Run the code of untrusted models inside a container.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

SECONDS = 5.0
MEMORY = 1 << 30
FILE_SIZE = 1 << 20
# Appended to a program: copies the token from one pipe to the other.
_PROOF = "\nimport os as _os\n_os.write({1}, _os.read({0}, {2}))\n"


def runs(program: str, *, seconds: float = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a Python program reaches its last line without an error within the limits.

    It runs in an empty folder, isolated from this project and from the environment's variables and
    packages. A program that exits earlier, for example by `sys.exit(0)`, has not reached its end.

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

    # A random token waits in a pipe, and a line after the program's last line returns it. It is not
    # in the source, so the program cannot print it by chance.
    token = secrets.token_bytes(16)
    with (
        _pipe() as (token_reader, token_writer),
        _pipe() as (proof_reader, proof_writer),
        tempfile.TemporaryDirectory(prefix="sandbox-") as folder,
    ):
        token_writer.write(token)
        token_writer.close()
        passed = (token_reader.fileno(), proof_writer.fileno())
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,
            pass_fds=passed,
            preexec_fn=limit,
        )
        source = program + _PROOF.format(*passed, len(token))
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(source.encode(), timeout=seconds + 1)
        finally:
            # Processes that it has started are killed too.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        # A process that has left its group may still hold the pipe, so only present content counts.
        os.set_blocking(proof_reader.fileno(), False)
        return process.returncode == 0 and proof_reader.read(len(token)) == token


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe's two ends, both closed when the block ends."""
    out, into = os.pipe()
    with FileIO(out, "rb") as reader, FileIO(into, "wb") as writer:
        yield reader, writer
