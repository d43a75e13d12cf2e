"""Console scripts of an installed checkout: `linearard-train` is `python -m src.train`.

pip installs this folder as the package `linearard_lab` (pyproject.toml). The scripts work from any
folder; paths that a user types, and `outputs/`, are relative to the folder in which they are typed.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def train() -> None:
    """`linearard-train`."""
    _run("src.train")


def evaluate() -> None:
    """`linearard-evaluate`."""
    _run("src.evaluate")


def dashboard() -> None:
    """`linearard-dashboard`."""
    _run("src.dashboard")


def sweep() -> None:
    """`linearard-sweep`."""
    _run("src.sweep")


def doctor() -> None:
    """`linearard-doctor`."""
    _run("src.doctor")


def _run(module: str) -> None:
    """Run a module of the checkout as `python -m` does."""
    if not (_CHECKOUT / "conf" / "train.yaml").is_file():
        sys.exit(
            f"error: {Path(sys.argv[0]).name}: this installation has no checkout beside it, and "
            "the commands need its conf/; install the checkout itself: pip install -e "
            "'.[framework]' -c constraints.txt"
        )
    # Ranks and jobs of sweeps are processes of their own, which read the environment.
    paths = [str(_CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    sys.path.insert(0, str(_CHECKOUT))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
