"""Commands that compute nothing start without the libraries that take seconds to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "deepspeed", "lm_eval", "datasets", "triton", "matplotlib")
# Runs a module as `python -m` does, and says at its end which of the libraries it has loaded.
RUN = f"""
import atexit, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
atexit.register(lambda: print("loaded:", *sorted(sys.modules.keys() & {set(HEAVY)})))
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "command",
    [
        "src.train --help",
        "src.train +experiment=linearard_32k dry_run=true",
        "src.train -m +experiment=linearard_32k seed=1,2 dry_run=true",
        "src.dashboard target_path={page} outputs={outputs}",
        "src.evaluate --help",
    ],
    ids=["help", "dry_run", "sweep", "dashboard", "evaluate_help"],
)
def test_what_computes_nothing_loads_no_library_that_does(command: str, tmp_path: Path) -> None:
    arguments = command.format(page=tmp_path / "page", outputs=tmp_path).split()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
