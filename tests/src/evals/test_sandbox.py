"""Generated programs run within limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from src.evals.sandbox import runs


@pytest.mark.parametrize(
    ("program", "passes"),
    [
        pytest.param("assert 1 + 1 == 2", True, id="right"),
        pytest.param("assert 1 + 1 == 3", False, id="wrong"),
        pytest.param("this is no program", False, id="syntax"),
        pytest.param("x = bytearray(2 << 30)", False, id="memory"),
        pytest.param("open('big', 'wb').write(b'x' * (8 << 20))", False, id="file-size"),
        pytest.param("import torch", False, id="no-packages"),
        pytest.param("import os; assert 'HOME' not in os.environ", True, id="no-environment"),
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
def test_a_program_passes_within_its_limits(program: str, passes: bool) -> None:
    assert runs(program) is passes


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_that_does_not_end_is_stopped(program: str) -> None:
    began = time.monotonic()
    assert not runs(program, seconds=1)
    assert time.monotonic() - began < 10


def test_it_runs_in_a_folder_of_its_own(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("here")
    assert runs("import os; assert os.listdir() == []")
    assert kept.exists()
