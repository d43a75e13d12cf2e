"""Write the page that compares all tracked runs.

python -m src.dashboard
python -m src.dashboard view=table
python -m src.dashboard target=wandb
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import hydra
from omegaconf import DictConfig
from pydantic import ConfigDict, Field
from rich.console import Console

from src import command, config, tracking
from src.models import PositiveInt
from src.report.page import write_page
from src.report.runs import Run, count_corrupt, read_runs
from src.report.table import run_notes, runs_table


@dataclass(frozen=True)
class DashboardConfig:
    """`python -m src.dashboard`: where the runs are and what to make of them."""

    outputs: Annotated[str, Field(min_length=1)]
    target_path: Annotated[str, Field(min_length=1)]
    view: Literal["page", "table"]
    window: PositiveInt | None = None
    target: Literal["page", "wandb"] = "page"
    project: Annotated[str, Field(min_length=1)] = "linearard-lab"
    entity: str | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)


def show(settings: DashboardConfig) -> None:
    """Write the page or print the table, and say how many runs there are.

    Raises:
        TrackingError: W&B cannot make the report.
        ReportError: `outputs` is not a folder, or `target_path` cannot be written.
    """
    if settings.target == "wandb":
        print(*tracking.publish_report(settings.project, settings.entity), sep="\n")
        return
    runs = read_runs(Path(settings.outputs))
    if settings.view == "table":
        Console().print(runs_table(runs, settings.window), *run_notes(runs), sep="\n")
        print(_count(runs))
    else:
        path = write_page(runs, Path(settings.target_path), window=settings.window)
        print(f"{path}: {_count(runs)}")


def _count(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {count_corrupt(runs)} corrupt"


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
@command.job
def _app(composed: DictConfig) -> None:
    show(config.load(DashboardConfig, composed))


def main() -> None:
    """Entry point."""
    command.run(_app, DashboardConfig)


if __name__ == "__main__":
    main()
