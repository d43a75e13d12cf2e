"""The first process of a sandbox: makes it where bubblewrap has not, and watches over the rest.

Python runs this file as text, with its settings as JSON in the only argument, and without any
module of the project. It is process 1 of its PID namespace, so nothing inside can stop it, and
everything inside ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import secrets
import signal
import sys
from typing import Any, NoReturn

FILE_SIZE = 1 << 20
FOLDER_SIZE = 64 << 20
PROCESSES = 64
FILES = 64
_LOOK_SECONDS = 0.01
_DEVICES = ("null", "zero", "urandom")
# Linux: sched.h, mount.h, prctl.h.
_NEW_MOUNTS, _NEW_NAMES, _NEW_IPC = 0x20000, 0x4000000, 0x8000000
_NEW_USERS, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXEC = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
_DEATH_SIGNAL, _DUMPABLE, _NO_NEW_PRIVILEGES = 1, 4, 38
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "ppc64le": 203, "s390x": 217, "riscv64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """mount_setattr's argument."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "users"))


def main(settings: dict[str, Any]) -> NoReturn:
    """Enter the sandbox, start the command in it, and end as it does."""
    if settings["kind"] == "namespaces":
        _enter(settings["root"], settings["shown"])
    _call("prctl", _DUMPABLE, 0, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        _start(settings)
    # Without a sandbox this is one process among all of the machine's.
    confined = os.getpid() == 1
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, _LOOK_SECONDS)
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                os._exit(min(255, abs(os.waitstatus_to_exitcode(ended[1]))))
        if confined and _exceeded(settings["memory"]):
            os._exit(1)


def _exceeded(memory: int) -> bool:
    """Whether all processes together use too much memory, or there are too many of them."""
    page = resource.getpagesize()
    numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    used = 0
    for number in numbers:
        try:
            with open(f"/proc/{number}/statm", encoding="ascii") as file:
                used += int(file.read().split()[1]) * page
        except (FileNotFoundError, ProcessLookupError):
            continue
    folder = os.statvfs("/tmp")
    used += (folder.f_blocks - folder.f_bfree) * folder.f_frsize
    return used > memory or len(numbers) > PROCESSES


def _start(settings: dict[str, Any]) -> NoReturn:
    """Become the command, within its limits and without any privilege."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    seconds, memory = settings["seconds"], settings["memory"]
    limits = {"CPU": seconds, "AS": memory, "FSIZE": FILE_SIZE, "CORE": 0, "NOFILE": FILES}
    if settings["kind"] != "none":
        limits["NPROC"] = PROCESSES  # outside of a sandbox it would count all of the user's
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if settings["kind"] == "namespaces" and os.getuid() == 0:
        # An identity of its own: it may not do what root may, and its processes are counted apart.
        nobody = 50_000 + secrets.randbelow(10_000)
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    # The namespace's root keeps its capabilities up to this call, and others lose them in it.
    os.execve(settings["command"][0], settings["command"], {"PATH": os.defpath})


def _enter(root: str, shown: list[str]) -> None:
    """Move into new namespaces, and go on as their process 1."""
    user, group = os.geteuid(), os.getegid()
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    flags = _NEW_MOUNTS | _NEW_NAMES | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    _call("unshare", flags | (_NEW_USERS if user else 0))
    if user:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    first = os.fork()
    if first:
        os._exit(min(255, abs(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))))
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "mode=755,size=1m")
    for path in shown:
        _show(path, root)
    for name in ("proc", "dev", "tmp"):
        os.mkdir(f"{root}/{name}")
    # Read-only: who owns the machine's settings there could change them otherwise.
    hardened = _NO_SUID | _NO_DEVICES | _NO_EXEC
    _mount("proc", f"{root}/proc", "proc", hardened | _READ_ONLY)
    for name in _DEVICES:
        _write(f"{root}/dev/{name}", "")
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    folder = f"mode=1777,size={FOLDER_SIZE}"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, folder)
    _only_read(root, recursive=False)
    os.chdir(root)
    machine = platform.machine()
    if machine not in _PIVOT_ROOT:
        raise OSError(f"pivot_root has no known number on {machine}")
    _call("syscall", _PIVOT_ROOT[machine], b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/tmp")


def _show(path: str, root: str) -> None:
    """Make a path of the machine visible below `root`, to be read only."""
    inside = f"{root}{path}"
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
    elif os.path.lexists(inside):
        return  # inside one that is shown already
    else:
        if os.path.isdir(path):
            os.mkdir(inside)
        else:
            _write(inside, "")
        _mount(path, inside, None, _BIND | _RECURSIVE)
        _only_read(inside, recursive=True)


def _only_read(path: str, *, recursive: bool) -> None:
    attributes = _Attributes(set=_READ_ONLY | _NO_SUID | _NO_DEVICES)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    deep = _AT_RECURSIVE if recursive else 0
    target = ctypes.c_char_p(path.encode())
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, target, deep, ctypes.byref(attributes), size)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data.encode())


def _call(function: str, *arguments: Any) -> None:
    """Call the C library; raises OSError with the function's name."""
    if getattr(_libc, function)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function} {arguments[:2]}: {os.strerror(code)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
