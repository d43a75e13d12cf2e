"""Command line of the study."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.study
from benchmarks.merging import commit_of
from benchmarks.study import phases, pictures, running, tables
from benchmarks.study.grid import Grid
from benchmarks.study.running import ROOT, Pool, Results

HERE = Path(__file__).resolve().parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "study.md")
IMAGES = ROOT / "docs" / "images"
RESULTS = ROOT / "benchmarks" / "results" / "study"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=benchmarks.study.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    made.add_argument("--grid", type=Path, help="YAML file; default: grid.yaml beside the code")
    made.add_argument("--out", type=Path, help="folder of the results")
    made.add_argument("--work", type=Path, help="folder of the runs")
    made.add_argument("--models", help="only these, separated by commas")
    made.add_argument("--methods", help="only these, separated by commas")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time on each GPU")
    made.add_argument(
        "--time-limit",
        type=float,
        help="seconds after which runs are stopped; what would not end in them is not started",
    )
    made.add_argument("--quick", action="store_true", help="a tiny model, in minutes of a CPU")
    made.add_argument(
        "--docs", action="store_true", help="put tables and pictures into the documents"
    )
    made.add_argument(
        "--prepare",
        action="store_true",
        help="fetch what the models read and stop: for a machine without a network",
    )
    made.add_argument("--plan", action="store_true", help="print what can be run next")
    made.add_argument("--commit", help="commit of the code, where there is no repository")
    return made


def _names(given: str | None) -> list[str] | None:
    return given.split(",") if given else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or print what is next."""
    given = parser().parse_args(arguments)
    name = "quick" if given.quick else "study"
    grid = Grid.load(given.grid or HERE / ("quick.yaml" if given.quick else "grid.yaml"))
    results = Results(
        given.out or (ROOT / "outputs" / name / "results" if given.quick else RESULTS),
        commit_of(given.commit),
    )
    if given.docs:
        regions = tables.regions(grid, results.rows, results.folder)
        for document in DOCUMENTS:
            document.write_text(tables.fill(document, regions), encoding="utf-8")
        pictures.draw(grid, results.rows, IMAGES)
        return
    try:
        grid = grid.only(_names(given.models), _names(given.methods))
    except ValueError as error:
        parser().error(str(error))
    if given.plan:
        for job in phases.ready(grid, results.rows):
            print(job.name, dict(job.params))
        return
    if given.prepare:
        for command in running.preparations(grid):
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
        return
    pool = Pool(grid, results, given.work or ROOT / "outputs" / name, jobs=given.jobs)
    pool.run(given.time_limit)
    if pool.failed:
        raise SystemExit("\n".join(pool.failed.values()))


if __name__ == "__main__":
    main()
