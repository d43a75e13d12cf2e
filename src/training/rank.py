"""One rank of a run that `src.train` has started.

`python -m src.training.rank RUN_DIR`, not typed by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from src import environment
from src.run_folder import RunFolder
from src.settings import strict
from src.settings.config import RunConfig
from src.training import launch


def main(run_dir: Path) -> None:
    """Join the other ranks and do this one's part of the run."""
    with launch.uncollected(freezes=True):
        from src.training import run
    folder = RunFolder.open(run_dir)
    settings = strict.load_plain(RunConfig, folder.config())
    with environment.redacting_output():
        launch.run_rank(lambda world: run.execute(settings, folder, world), folder.logs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
