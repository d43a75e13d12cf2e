"""Writes the page that compares all runs: `python -m src.dashboard` (see `--help`)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from src.report.page import write_page
from src.report.runs import Run, count_corrupt, read_runs
from src.report.table import run_notes, runs_table


class View(Enum):
    """What to make of the runs."""

    page = "page"
    table = "table"


@dataclass(frozen=True)
class DashboardConfig:
    """The keys of `conf/dashboard.yaml`, which documents them."""

    outputs: str
    target_path: str
    view: View
    window: int | None


def show(config: DashboardConfig) -> None:
    """Write the page or print the table, and say how many runs there are.

    Raises:
        ValueError: `outputs` is not a folder, or `target_path` cannot be written.
    """
    if not config.outputs:
        raise ValueError("outputs is empty; name the folder that holds the runs")
    runs = read_runs(Path(config.outputs))
    if config.view is View.table:
        Console().print(runs_table(runs, config.window), *run_notes(runs), sep="\n")
        print(_count(runs))
    else:
        path = write_page(runs, Path(config.target_path), window=config.window)
        print(f"{path}: {_count(runs)}")


def _count(runs: list[Run]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {count_corrupt(runs)} corrupt"


def _refuse(error: Exception) -> NoReturn:
    """A mistake in the settings: one line on stderr, exit code 2."""
    message = str(error).splitlines()[0].rstrip(".")
    if isinstance(error, HydraException | OmegaConfBaseException):
        key = getattr(error, "full_key", None)
        keys = ", ".join(field.name for field in fields(DashboardConfig))
        message = f"{f'{key}: ' if key else ''}{message}; the keys are {keys} (see --help)"
    print(f"dashboard: {message}", file=sys.stderr)
    sys.exit(2)


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
def main(config: DictConfig) -> None:
    """Hydra's entry: the composed config, typed, then `show`."""
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DashboardConfig), config))
        assert isinstance(typed, DashboardConfig)
        show(typed)
    except (OmegaConfBaseException, ValueError) as error:
        _refuse(error)


def cli() -> None:
    """Run `main`; exits with code 2 on a mistake in the settings."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of exiting with code 1
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(error)


if __name__ == "__main__":
    cli()
