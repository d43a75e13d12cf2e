"""Write the page that compares all tracked runs.

python -m src.dashboard
python -m src.dashboard serve=true
python -m src.dashboard view=table
python -m src.dashboard compare=RUN,RUN
python -m src.dashboard export=paper
python -m src.dashboard target=wandb
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import hydra
from omegaconf import DictConfig
from pydantic import ConfigDict, Field
from rich.console import Console

from src import command, tracking
from src.assets.cache import UserPath
from src.models.config import PositiveInt
from src.progress import widen
from src.report import paper
from src.report.compare import compare_tables, find_run
from src.report.files import read_results
from src.report.page import write_page
from src.report.panels import PageContext
from src.report.runs import ReportError, Run, count_corrupt, read_runs
from src.report.runs_table import run_notes, runs_table
from src.report.server import LiveReport, serve
from src.report.tables import terminal
from src.settings import loading
from src.settings.strict import STRICT

_FORMATS: tuple[paper.Format, ...] = ("pdf", "svg", "png", "csv")


@dataclass(frozen=True)
class OnlyConfig:
    """Only runs that match are shown; null matches all."""

    experiment: str | None = None
    model: str | None = None
    sweep: str | None = None

    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@dataclass(frozen=True)
class DashboardConfig:
    """`python -m src.dashboard`: where the runs are, and what to write."""

    outputs: Annotated[UserPath, Field(min_length=1)]
    target_path: Annotated[UserPath, Field(min_length=1)]
    view: Literal["page", "table"]
    window: PositiveInt | None = None
    benchmarks: UserPath = "benchmarks/results"
    only: OnlyConfig = OnlyConfig()
    compare: Annotated[tuple[UserPath, ...], Field(min_length=2, max_length=2)] | None = None
    export: Literal["paper"] | None = None
    export_path: Annotated[UserPath, Field(min_length=1)] = "outputs/dashboard/paper"
    export_formats: Annotated[tuple[paper.Format, ...], Field(min_length=1)] = _FORMATS
    serve: bool = False
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    refresh_seconds: PositiveInt = 5
    target: Literal["page", "wandb"] = "page"
    project: Annotated[str, Field(min_length=1)] = "linearard-lab"
    entity: str | None = None

    def __post_init__(self) -> None:
        asked = {
            "serve=true": self.serve,
            "compare": self.compare is not None,
            "export": self.export is not None,
            "view=table": self.view == "table",
            "target=wandb": self.target == "wandb",
        }
        chosen = [name for name, is_chosen in asked.items() if is_chosen]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} do not go together: give one of them")
        if self.serve and self.only != OnlyConfig():
            raise ValueError("only.* does not go with serve=true: use the filters of the page")

    __pydantic_config__: ClassVar[ConfigDict] = STRICT


def show(settings: DashboardConfig) -> None:
    """Write the page or files for a paper, print a table, or serve, as the settings say.

    Raises:
        TrackingError: W&B cannot make the report.
        ReportError: a folder, a file, a run or a port of the settings cannot be used.
    """
    if settings.target == "wandb":
        print(*tracking.publish_report(settings.project, settings.entity), sep="\n")
        return
    benchmarks, outputs = Path(settings.benchmarks), Path(settings.outputs)
    if settings.serve:
        every = settings.refresh_seconds
        report = LiveReport(outputs, benchmarks, refresh_seconds=every, window=settings.window)
        serve(report, settings.port)
        return
    context = PageContext(
        runs=tuple(_chosen(read_runs(outputs), settings.only)),
        window=settings.window,
        results=tuple(read_results(benchmarks)),
        target=Path(settings.target_path),
    )
    runs = context.runs
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}, {count_corrupt(runs)} corrupt"
    if not runs:
        count += f"; no run is below outputs={outputs}: name another, or start a run"
        _refuse_to_write_into(outputs, settings)
    if settings.compare:
        first, second = (find_run(runs, name) for name in settings.compare)
        widen(Console()).print(*compare_tables(first, second), sep="\n")
    elif settings.view == "table":
        table = runs_table(runs, settings.window)
        widen(Console()).print(terminal(table), *run_notes(runs), sep="\n")
        print(count)
    elif settings.export:
        folder = Path(settings.export_path)
        files = paper.export(context, folder, formats=settings.export_formats)
        print(f"{folder}: {len(files)} files from {count}")
    else:
        print(f"{write_page(context)}: {count}")


def _refuse_to_write_into(outputs: Path, settings: DashboardConfig) -> None:
    """A folder without runs may be any folder: only what is named itself is written then."""
    key = "target_path" if settings.export is None else "export_path"
    target = Path(getattr(settings, key))
    writes = settings.compare is None and settings.view == "page"
    if writes and target.parent == outputs / "dashboard":
        raise ReportError(
            f"outputs={outputs}: no run is below this folder, so nothing is written into it; name "
            f"the one that holds the runs, start a run, or give another {key}"
        )


def _chosen(runs: Sequence[Run], only: OnlyConfig) -> list[Run]:
    """The runs that match; those that cannot be read match nothing."""
    filters: dict[str, Callable[[Run], str | None]] = {
        "experiment": lambda run: run.record and run.record.experiment,
        "model": lambda run: run.record and (run.short_model or run.model),
        "sweep": lambda run: run.sweep,
    }
    matching = list(runs)
    for key, of in filters.items():
        if (value := getattr(only, key)) is not None:
            there = ", ".join(sorted({of(run) or "" for run in matching} - {""})) or "none"
            matching = [run for run in matching if of(run) == value]
            if not matching:
                raise ReportError(f"only.{key}={value}: no run has it; there are {there}")
    return matching


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
@command.job
def _app(composed: DictConfig) -> None:
    show(loading.load(DashboardConfig, composed))


def quote_pair(argument: str) -> str:
    """`compare=A,B` as a list. Hydra would take it for a sweep."""
    key, _, value = argument.partition("=")
    if key != "compare" or "," not in value or value[:1] in ("[", "'", '"'):
        return argument
    names = [re.sub(r"(['\\])", r"\\\1", name) for name in value.split(",")]
    return "compare=[" + ",".join(f"'{name}'" for name in names) + "]"


def main() -> None:
    """Entry point."""
    sys.argv[1:] = map(quote_pair, sys.argv[1:])
    command.run(_app, DashboardConfig)


if __name__ == "__main__":
    main()
