"""A run in which one write fails, and then what goes on with it; test_disk.py starts this program.

`python -m tests.src.training.failing_run SETTINGS FOLDER CASES`: SETTINGS is the JSON of overrides,
each case `number:errno:lasting`. Case 0 counts the writes of an undisturbed run. Prints a line of
JSON for each case.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from src.run_folder import RunFolder, whole_checkpoints
from src.settings import loading
from src.settings.config import RunConfig
from src.training import stage, start
from tests import fakes
from tests.conftest import losses

FAULTS = ctypes.CDLL(None)


def case(overrides: list[str], folder: Path, number: int, code: int, lasting: int) -> dict:
    settings = loading.compose(RunConfig, "train", [*overrides, f"run_dir={folder}"])
    FAULTS.arm_fault(str(folder).encode(), number, code, lasting)
    failure = None
    try:
        start.train(settings, None)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    writes = FAULTS.counted_writes()
    FAULTS.arm_fault(b"", 0, 0, 0)
    begun = (folder / "run.json").is_file()
    state = RunFolder(folder).record()["state"] if begun else "not begun"
    before = [path.name for path in whole_checkpoints(RunFolder(folder))]
    if state in ("failed", "interrupted"):
        start.resume(folder, None)
    elif state == "not begun":
        start.train(settings, None)
    return {
        "writes": writes,
        "failure": failure,
        "state": state,
        "checkpoints": before,
        "end": RunFolder(folder).record()["state"],
        "losses": losses(folder),
        "left": [path.name for path in folder.rglob("*.partial")],
    }


def main(overrides: list[str], folder: Path, cases: list[str]) -> None:
    """Run the cases in turn."""
    stage.build_engines = fakes.build_engines
    for each in cases:
        number, code, lasting = map(int, each.split(":"))
        done = case(overrides, folder / each.replace(":", "-"), number, code, lasting)
        print("CASE " + json.dumps(done), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
