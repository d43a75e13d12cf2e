"""Runs generated programs in a sandbox, with limits on time, memory, files and processes.

A program runs in namespaces of its own: it has no network, sees no process but its own, and reads
only the system's libraries and Python's. bubblewrap makes these where it is installed; otherwise
`confine.py` asks the kernel for them. Its tests run in a second sandbox and call the program's
functions over a pipe (`calls.py`), so a program can answer its tests but not end them.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

Kind = Literal["bubblewrap", "namespaces", "none"]

NAMES: dict[Kind, str] = {
    "bubblewrap": "a sandbox made by bubblewrap",
    "namespaces": "a sandbox of the kernel's namespaces",
    "none": "no sandbox: it can read your files and use the network",
}
SECONDS = 5.0
MEMORY = 1 << 30
_HERE = Path(__file__).parent
_CONFINE, _CALLS = ((_HERE / name).read_text("utf-8") for name in ("confine.py", "calls.py"))
# What Python needs of the system, beside its own folder. All of it is read-only.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_START_SECONDS = 5.0
"""Allowed for the start of the sandboxes, beside the program's own time."""


class SandboxError(ValueError):
    """There is no sandbox here; the message says why, and what to do."""


def runs(
    program: str,
    tests: str = "",
    *,
    seconds: float = SECONDS,
    memory: int = MEMORY,
    kind: Kind | None = None,
) -> bool:
    """Whether a Python program is loaded to its last line, and then passes its tests.

    Args:
        program: source text. It runs in an empty folder, isolated from this project and from the
            environment's variables and packages.
        tests: source text that must reach its end too. Names that it does not define itself are
            the program's. Arguments and results are copied; those that are not numbers, texts or
            containers of these stay with the program, and the tests hold references to them.
        seconds: of processor time for each process, and of wall-clock time for all.
        memory: bytes of address space of each process, and of memory of all together.
        kind: of the sandbox; None for the best one here.

    Raises:
        SandboxError: there is no sandbox, and `kind` is None.
    """
    chosen = kind or available()
    limits = {"seconds": max(1, round(seconds)), "memory": memory}
    deadline = time.monotonic() + seconds + _START_SECONDS
    with ExitStack() as ends:
        to_program, from_tests = _pipe(ends)
        to_tests, from_program = _pipe(ends)
        with (
            _confined(chosen, "answer", limits, to_program, from_program),
            _confined(chosen, "ask", limits, to_tests, from_tests) as asking,
        ):
            # Held by nobody else from here on, so that each side sees the other's end.
            for end in (to_program, to_tests, from_tests):
                end.close()
            task = json.dumps({"program": program, "tests": tests, "seconds": seconds})
            with suppress(BrokenPipeError):
                from_program.write(task.encode() + b"\n")
            from_program.close()
            with suppress(subprocess.TimeoutExpired):
                return asking.wait(max(0.1, deadline - time.monotonic())) == 0
    return False


@functools.cache
def available() -> Kind:
    """The best kind of sandbox that works here, tried once; raises SandboxError if none does."""
    reasons = []
    for kind in ("bubblewrap", "namespaces"):
        if (reason := _fault(kind)) is None:
            return kind
        reasons.append(f"{kind}: {reason}")
    raise SandboxError(f"there is no sandbox here ({'; '.join(reasons)})")


def _fault(kind: Kind) -> str | None:
    """Why a kind of sandbox does not work here; None if it does."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    limits = {"seconds": 5, "memory": MEMORY}
    nothing = subprocess.DEVNULL
    with _confined(kind, "try", limits, nothing, nothing, errors=subprocess.PIPE) as tried:
        try:
            _, said = tried.communicate(timeout=2 * _START_SECONDS)
        except subprocess.TimeoutExpired:
            return "it did not start"
    lines = said.decode("utf-8", "replace").splitlines()
    return None if tried.returncode == 0 else (lines or ["it failed"])[-1]


@contextmanager
def _confined(
    kind: Kind,
    role: str,
    limits: dict[str, int],
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    errors: int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a sandbox, killed with all that it has started when the block ends."""
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        process = subprocess.Popen(
            _command(kind, role, limits, folder),
            stdin=stdin,
            stdout=stdout,
            stderr=errors,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            # The kernel ends a PID namespace with its first process, which dies with its parent.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _command(kind: Kind, role: str, limits: dict[str, int], folder: str) -> list[str]:
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    shown = [path for path in dict.fromkeys((*_SYSTEM, sys.base_prefix)) if os.path.exists(path)]
    settings = {
        **limits,
        "kind": kind,
        "root": folder,
        "shown": shown,
        "command": [python, "-I", "-S", "-c", _CALLS, role],
    }
    inner = [python, "-I", "-S", "-c", _CONFINE, json.dumps(settings)]
    return [*_bubblewrap(shown), *inner] if kind == "bubblewrap" else inner


def _bubblewrap(shown: Sequence[str]) -> list[str]:
    command = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session"]
    command += ["--clearenv", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    for path in shown:
        link = os.path.islink(path) and path in _SYSTEM
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    command += ["--tmpfs", "/tmp", "--chdir", "/tmp"]
    for path in ("/", "/dev", "/proc"):  # root could change the machine's settings in /proc/sys
        command += ["--remount-ro", path]
    return [*command, "--"]


def _pipe(ends: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """A pipe's two ends, both closed when the stack ends."""
    out, into = os.pipe()
    return (
        ends.enter_context(os.fdopen(out, "rb", buffering=0)),
        ends.enter_context(os.fdopen(into, "wb", buffering=0)),
    )
