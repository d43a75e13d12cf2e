"""Generated programs run within limits, do not leave their sandbox, and cannot fake their tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.evals import sandbox
from src.evals.sandbox import Kind, SandboxError, runs
from tests.conftest import ROOT, by_default

# Every kind that works here; the default run tries the one that an evaluation would take.
WORKING = [kind for kind in ("bubblewrap", "namespaces") if sandbox._fault(kind) is None]
NO_SANDBOX = "this machine has neither bubblewrap nor namespaces for users"
KINDS = [
    *(pytest.param(k, marks=[pytest.mark.thorough] * (k != WORKING[0])) for k in WORKING),
    *([] if WORKING else [pytest.param("namespaces", marks=pytest.mark.skip(NO_SANDBOX))]),
]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize(
    ("program", "passes"),
    [
        pytest.param("assert 1 + 1 == 2", True, id="right"),
        pytest.param("assert 1 + 1 == 3", False, id="wrong"),
        pytest.param("this is no program", False, id="syntax"),
        pytest.param("x = bytearray(2 << 30)", False, id="memory"),
        pytest.param("open('big', 'wb').write(b'x' * (8 << 20))", False, id="file-size"),
        pytest.param("import torch", False, id="no-packages"),
        pytest.param("import sys; sys.exit(0)\nassert False", False, id="exit"),
        pytest.param("import os; os._exit(0)\nassert False", False, id="exit-at-once"),
        pytest.param("import unittest; unittest.main()\nassert False", False, id="own-tests"),
        pytest.param("import os; os.write(1, b'x' * 16); os._exit(0)", False, id="prints"),
        pytest.param("os = len = None\nprint('x' * 99_999)", True, id="names-of-its-own"),
        pytest.param(
            "from __future__ import annotations\ndef f(x: y): return x", True, id="future"
        ),
    ],
)
def test_a_program_passes_within_its_limits(kind: Kind, program: str, passes: bool) -> None:
    assert runs(program, kind=kind) is passes


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2"),
        ("def f(x): return x", "v = {1: (2.5, [None, 'a']), 'b': {3}}\nassert f(v) == v"),
        ("def f(): return float('inf'), 1j, b'x', True", "assert f() == (1e999, 1j, b'x', True)"),
        ("def f(n): yield from range(n)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(): raise KeyError", "try:\n    f()\n    assert 0\nexcept KeyError: pass"),
        (
            "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
            "def total(pairs): return sum(p.a + p.b for p in pairs)\ntree = Pair(5, 6)",
            "assert total([Pair(1, 2), tree]) == 14",
        ),
        ("import math", "assert math.sqrt(4) == 2"),
    ],
    ids=["call", "containers", "numbers", "generator", "error", "objects", "module"],
)
@by_default(lambda program, tests: "class Pair" in program or "1j" in tests)
def test_tests_call_the_program(program: str, tests: str) -> None:
    assert runs(program, tests)
    assert not runs(program, f"{tests}\nassert False")


# Each of these programs tries to pass a test that it does not know the answer to.
CHEATS = {
    "early-exit": "import os; os._exit(0)",
    "exit-in-a-call": "import os\ndef f(): os._exit(0)",
    "copied-pipe": """
import os, fcntl
ends = []
for fd in range(64):
    try: ends.append((fd, fcntl.fcntl(fd, fcntl.F_GETFL) & 3))
    except OSError: pass
for reading, mode in ends:
    if mode == 1: continue
    try:
        os.set_blocking(reading, False)
        data = os.read(reading, 65536)
    except OSError: continue
    for writing, mode in ends:
        if mode:
            try: os.write(writing, data)
            except OSError: pass
os._exit(0)
""",
    "forged-answers": """
import os
for fd in range(3, 64):
    for line in (b'"loaded"\\n', b'{"value": true}\\n', b'{"value": null}\\n'):
        try: os.write(fd, line)
        except OSError: pass
os._exit(0)
""",
    "equal-to-anything": """
class Any:
    def __eq__(self, other): return True
def f(): return Any()
""",
    "the-tests-process": """
import os, signal
for number in os.listdir('/proc'):
    if number.isdigit() and int(number) != os.getpid():
        try: os.kill(int(number), signal.SIGKILL)
        except OSError: pass
def f(): return None
""",
}


@every_kind
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_program_cannot_fake_its_tests(kind: Kind, cheat: str) -> None:
    assert not runs(CHEATS[cheat], "assert f() == 'a secret answer'", kind=kind)


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of this machine that somebody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# Each asserts that something is out of reach; numbers in braces are values of the test.
CONTAINED = {
    "network": """
import socket
try:
    socket.create_connection(('127.0.0.1', {1}), timeout=2)
except OSError:
    pass
else:
    raise AssertionError
assert [name for _, name in socket.if_nameindex()] == ['lo']
""",
    "environment": """
import os, glob
assert 'SECRET_TOKEN' not in os.environ
for path in glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline'):
    try: text = open(path, 'rb').read()
    except OSError: continue
    assert b'SECRET' + b'_TOKEN' not in text and b'pyt' + b'est' not in text, path
assert len([n for n in os.listdir('/proc') if n.isdigit()]) <= 3
""",
    "files": """
import os
for path in ({0}, '/etc/passwd', '/var', '/sys', '/root/.bashrc', {3}):
    assert not os.path.exists(path), path
assert os.listdir() == []
for path in ('/usr/x', '/x', '/dev/x', '/proc/sys/kernel/core_pattern'):
    try: open(path, 'w')
    except OSError: continue
    raise AssertionError(path)
open('mine', 'w').write('x')
""",
    "privileges": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == -1
assert libc.chroot(b'/tmp') == -1
assert libc.ptrace(16, 1, 0, 0) == -1
status = open('/proc/self/status').read()
assert 'CapEff:\\t0000000000000000' in status and 'NoNewPrivs:\\t1' in status
assert {2} == 0 or os.getuid() != 0
""",
}


@every_kind
@pytest.mark.parametrize("place", CONTAINED)
def test_the_machine_is_out_of_reach(
    kind: Kind, place: str, tmp_path: Path, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    kept = tmp_path / "kept"
    kept.write_text("here")
    root = 1 if kind == "namespaces" else 0
    program = CONTAINED[place]
    for number, value in enumerate((str(kept), listening, root, str(ROOT / "src"))):
        program = program.replace(f"{{{number}}}", repr(value))
    assert runs(program, kind=kind)
    assert kept.read_text() == "here"


ENDLESS = {
    "busy": "while True: pass",
    "asleep": "import time; time.sleep(60)",
    "fork-bomb": """
import os, time
for _ in range(200):
    try:
        if os.fork() == 0: time.sleep(77.125)
    except OSError: pass
time.sleep(77.125)
""",
    "memory-of-children": """
import os, time
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(b'x' * (60 << 20))
        time.sleep(77.125)
time.sleep(77.125)
""",
    "full-folder": """
for n in range(10_000): open(str(n), 'wb').write(b'x' * (1 << 20) )
while True: pass
""",
    "ignored-signals": """
import os, signal, time
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
os.setsid() if os.getpid() != os.getsid(0) else None
time.sleep(77.125)
""",
}


@every_kind
@pytest.mark.parametrize("program", ENDLESS)
@by_default(lambda kind, program: program in ("fork-bomb", "memory-of-children"))
def test_a_program_that_does_not_end_is_stopped_with_its_children(kind: Kind, program: str) -> None:
    began = time.monotonic()
    assert not runs(ENDLESS[program], seconds=1, memory=400 << 20, kind=kind)
    assert time.monotonic() - began < 15
    assert sandboxed() == []


@every_kind
def test_children_that_survive_the_program_are_ended(kind: Kind) -> None:
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(77.125)
    os._exit(0)
def f(): return 1
"""
    assert runs(program, "assert f() == 1", kind=kind)
    assert sandboxed() == []


def test_memory_is_counted_over_all_children() -> None:
    """The same children, with room for all of them and without."""
    program = """
import os
for _ in range(4):
    if os.fork() == 0:
        held = bytearray(b'x' * (50 << 20))
        import time; time.sleep(0.3); os._exit(0)
for _ in range(4): os.wait()
"""
    assert runs(program, seconds=3, memory=900 << 20)
    assert not runs(program, seconds=3, memory=200 << 20)


def sandboxed() -> list[str]:
    """Command lines of processes of a sandbox that still run, shortly after it has ended."""
    deadline = time.monotonic() + 2
    while (lines := sandbox_lines()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return lines


def sandbox_lines() -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if "The two sides of a test" in line:
            lines.append(line[:80])
    return lines


def test_without_a_sandbox_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_fault", lambda kind: f"no {kind}")
    sandbox.available.cache_clear()
    with pytest.raises(SandboxError, match=r"no sandbox here \(bubblewrap: no bubblewrap; names"):
        runs("pass")
    sandbox.available.cache_clear()


def test_unsandboxed_programs_keep_their_limits() -> None:
    assert runs("def f(): return 1", "assert f() == 1", kind="none")
    assert not runs("x = bytearray(2 << 30)", kind="none")
    assert not runs("import os; os._exit(0)", kind="none")
    assert runs("import os; assert 'HOME' not in os.environ and os.listdir() == []", kind="none")


@pytest.mark.skipif(os.geteuid() != 0 or not WORKING, reason="becomes another user first")
@pytest.mark.skipif(
    any(not p.stat().st_mode & 1 for p in Path(sys.executable).resolve().parents),
    reason="Python is in a folder that others may not read",
)
@pytest.mark.thorough
def test_users_without_privileges_get_a_sandbox_too() -> None:
    """The kernel's namespaces need no root; the interpreter must be readable to everyone."""
    code = (
        "from src.evals import sandbox\n"
        "assert sandbox._fault('namespaces') is None, sandbox._fault('namespaces')\n"
        "for kind in ('namespaces',):\n"
        "    assert sandbox.runs('def f(): return 1', 'assert f() == 1', kind=kind)\n"
        "    assert not sandbox.runs('open(\"/etc/passwd\")', kind=kind)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
