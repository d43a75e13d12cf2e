"""Inside a forked command: it, and the Python programs that it starts, as forks.

To be loaded by the server of `tests/forked.py` alone, before all else: what it does to `subprocess`
holds for the whole process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import inspect
import os
import runpy
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NoReturn

from tests.forked import forget_hydra


class Fork(subprocess.Popen):
    """In a forked command: the Python programs that it starts are forks of it."""

    def _execute_child(self, *given: object) -> None:
        started = inspect.signature(super()._execute_child).bind(*given).arguments
        program = _program(started["args"])
        if program is None or started["shell"]:
            super()._execute_child(*given)
            return
        pipes = [started[end] for end in ("p2cread", "c2pwrite", "errwrite")]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            become(program, pipes, started["cwd"], started["env"], started["preexec_fn"])
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(started[end] for end in ends))


def _program(command: object) -> list[str] | None:
    """What follows `python` in a command; None where it is another program."""
    if not isinstance(command, (list, tuple)) or command[0] != sys.executable:
        return None
    program = [part for part in command[1:] if part != "-u"]
    return program if program[0] in ("-m", "-c") else None


def become(
    program: list[str],
    pipes: Sequence[int],
    folder: str | Path | None,
    environment: Mapping[str, str] | None,
    first: Callable[[], None] | None,
) -> NoReturn:
    """What executing a program anew would leave of this process; then the program, and the end."""
    code = 1
    try:
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        # The server of forks ignores it; an interpreter that starts anew takes it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first is not None:
            first()
        for mine, standard in zip(pipes, range(3), strict=True):
            if mine != -1:
                os.dup2(mine, standard)
        _let_go_of_descriptors()
        if folder is not None:
            os.chdir(folder)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        _forget_what_is_due_at_exit()
        forget_hydra()
        # A run looks for garbage several times: not among what it has found loaded.
        gc.freeze()
        code = _run(program)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_go_of_descriptors() -> None:
    """Locks and sockets stay the other process's. Their numbers remain taken: objects that are
    left of it may close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    kept = {0, 1, 2, null, resource_tracker._resource_tracker._fd}
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - kept:
        with contextlib.suppress(OSError):  # the listing's own
            os.fstat(number)
            os.dup2(null, number)


def _forget_what_is_due_at_exit() -> None:
    """Temporary folders and the like are still the other process's."""
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False


def _run(program: list[str]) -> int:
    option, what, *arguments = program
    sys.argv = [option, *arguments]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


subprocess.Popen = Fork
