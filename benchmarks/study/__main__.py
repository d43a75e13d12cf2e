"""Command line of the study."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import benchmarks.study
from benchmarks.merging import commit_of
from benchmarks.study import own, phases, pictures, running, tables
from benchmarks.study.grid import Grid
from benchmarks.study.running import ROOT, Pool, Results
from src import command
from src.run_folder import RunFolderError, check_writable
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training.signals import Stopped, stoppable

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
    made.add_argument(
        "--own",
        nargs="+",
        metavar="SETTING",
        help="your own model and text: settings of src.train, such as model.path=DIR data=files",
    )
    made.add_argument(
        "--lengths",
        type=_numbers,
        metavar="N,N",
        help="with --own: of RULER's prompts in tests, in tokens",
    )
    made.add_argument("--out", type=Path, help="folder of the results")
    made.add_argument("--work", type=Path, help="folder of the runs")
    made.add_argument("--models", help="only these, separated by commas")
    made.add_argument("--methods", help="only these, separated by commas")
    made.add_argument("--jobs", type=_number, default=1, help="runs at a time on each GPU")
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


def _number(given: str) -> int:
    if not (given.isdecimal() and int(given)):
        raise argparse.ArgumentTypeError(f"{given}: give a number of at least 1")
    return int(given)


def _numbers(given: str) -> list[int]:
    numbers = given.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{given}: give numbers of tokens, separated by commas")
    return [int(number) for number in numbers]


def _names(given: str | None) -> list[str] | None:
    return None if given is None else given.split(",")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or print what is next."""
    given = parser().parse_args(arguments)
    try:
        with stoppable():
            _own(given) if given.own else _ours(given)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        raise SystemExit(stopped.code) from stopped
    except (HydraException, OmegaConfBaseException) as error:
        parser().error(command.explain_hydra(error, RunConfig))
    except (ConfigError, RunFolderError) as error:
        parser().error(str(error))


def _ours(given: argparse.Namespace) -> None:
    """The project's own study."""
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
    grid = grid.only(_names(given.models), _names(given.methods))
    if given.plan:
        for job in phases.ready(grid, results.rows):
            print(job.name, dict(job.params))
        return
    if given.prepare:
        _prepare(grid)
        return
    pool = Pool(grid, results, given.work or ROOT / "outputs" / name, jobs=given.jobs)
    pool.run(given.time_limit)
    if pool.failed:
        raise SystemExit("\n".join(pool.failed.values()))


def _prepare(grid: Grid, *, quiet: bool = False) -> None:
    for words in running.preparations(grid):
        said = subprocess.DEVNULL if quiet else None
        done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, stdout=said)
        code = done.returncode
        if code:
            raise SystemExit(code)


def _own(given: argparse.Namespace) -> None:
    """The study of a model and a text of the user's own."""
    if given.quick or given.docs or given.models:
        parser().error("--own is a study of its own: leave out --quick, --docs and --models")
    whole = own.own(given.own, given.lengths, given.grid or own.TEMPLATE)
    grid = whole.only(None, _names(given.methods))
    print(own.cost(grid), flush=True)
    [model] = grid.models
    results = Results(given.out or ROOT / "outputs" / "study_own" / model, commit_of(given.commit))
    if given.plan:
        for job in phases.ready(grid, results.rows):
            print(job.name, dict(job.params))
        return
    check_writable(results.folder, f"--out={results.folder}")
    # What is refused is refused here, and not by several processes in their logs.
    _prepare(grid, quiet=not given.prepare)
    if given.prepare:
        return
    own.begin(whole, results)
    pool = Pool(grid, results, given.work or results.folder / "work", jobs=given.jobs)
    try:
        pool.run(given.time_limit)
    finally:
        if results.rows:
            # Earlier calls may have asked for other methods.
            there = grid.methods.keys() | {row["method"] for row in results.rows}
            shown = whole.only(None, [name for name in whole.methods if name in there])
            print(f"report: {own.report(shown, results)}", flush=True)
    if pool.failed:
        raise SystemExit("\n".join(pool.failed.values()))


if __name__ == "__main__":
    main()
