"""Which runs come next, from the rows that there are. Nothing here runs anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any
from zlib import crc32

import optuna
from optuna.distributions import FloatDistribution

from benchmarks.study.grid import Grid, Job, Method, Params
from benchmarks.study.scores import Row, best, choice, trained, untrained


def ready(grid: Grid, rows: Sequence[Row]) -> Iterator[Job]:
    """Jobs whose results are missing and that can be run now, the most telling ones first."""
    for model in grid.models:
        jobs = _of_model(grid.of(model), model, rows)
        yield from (job for job in jobs if not _row(rows, job))


def _of_model(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[Job]:
    scaled = [Job("untrained", model, scaling) for scaling in grid.tried]
    yield from scaled
    if not all(_row(rows, job) for job in scaled):
        return
    cells = list(_cells(grid, model, rows))
    for scaling, method in cells:
        yield from _searches(grid, model, scaling, method, rows)
    # What a trained model's test is compared with comes first.
    kept = kept_scalings(grid, model, rows)
    yield from (Job("baseline", model, scaling) for scaling in kept)
    searched = [cell for cell, (done, of) in progress(grid, model, rows).items() if done == of]
    wholes = list(_wholes(grid, model, cells, searched, rows))
    yield from wholes
    yield from _untrained_only(grid, model, kept[0], rows)
    yield from _finals(grid, model, cells, searched, wholes, rows)
    # The floor keeps nothing, so that its test tells the least.
    if grid.floor not in kept:
        yield Job("baseline", model, grid.floor)


def kept_scalings(grid: Grid, model: str, rows: Sequence[Row]) -> list[str]:
    """The scalings that all methods are tried on: the best untrained ones, best first."""
    known = [row for row in untrained(rows, model) if row["scaling"] in grid.tried]
    ranked = sorted(known, key=lambda row: _number(rows, row, grid.floor))
    return [row["scaling"] for row in reversed(ranked)][: grid.scalings_kept]


def _number(rows: Sequence[Row], row: Row, floor: str) -> float:
    number = choice(rows, row, floor)
    return -math.inf if number is None else number


def _untrained_only(grid: Grid, model: str, kept: str, rows: Sequence[Row]) -> Iterator[Job]:
    """Scalings that nothing is trained on, and a test of the best one if it beats the kept one."""
    jobs = [Job("untrained", model, scaling) for scaling in grid.untrained_only]
    yield from jobs
    asked = {kept, *grid.untrained_only}
    known = [row for row in untrained(rows, model) if row["scaling"] in asked]
    top = best(rows, known, grid.floor)
    if len(known) == len(asked) and top is not None and top["scaling"] != kept:
        yield Job("baseline", model, top["scaling"])


def _cells(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Scaling and method: all methods on the best scaling, then on the next; then special ones."""
    kept = kept_scalings(grid, model, rows)
    yield from ((scaling, method) for scaling in kept for method in grid.methods)
    for name, method in grid.methods.items():
        yield from ((scaling, name) for scaling in method.scalings if scaling not in kept)


def _searches(
    grid: Grid, model: str, scaling: str, method: str, rows: Sequence[Row]
) -> Iterator[Job]:
    """The jobs of a cell's search that are known: the points, then proposals, one at a time."""
    about = grid.methods[method]
    jobs = [_search(grid, model, scaling, method, params) for params in about.points]
    listed = [job.params for job in jobs]
    earlier = (
        row["params"]
        for row in rows
        if (row["phase"], row["model"], row["scaling"], row["method"])
        == ("search", model, scaling, method)
        and row["params"] not in listed
    )
    for _ in range(grid.proposed):
        done = [row for job in jobs if (row := _row(rows, job))]
        if len(done) < len(jobs):
            break
        # What was proposed once stays, also where another version would propose otherwise.
        proposal = next(earlier, None) or proposed(
            about, [(r["params"], choice(rows, r, grid.floor)) for r in done]
        )
        jobs.append(_search(grid, model, scaling, method, proposal))
    yield from jobs


def _search(grid: Grid, model: str, scaling: str, method: str, params: Params) -> Job:
    return Job("search", model, scaling, method, grid.search_budget, params, grid.seeds[0])


def proposed(method: Method, known: Sequence[tuple[Params, float | None]]) -> dict[str, float]:
    """Settings that Optuna's TPE proposes after these; a run that diverged has no value.

    The same rows give the same proposal.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = {k: FloatDistribution(*ends, log=True) for k, ends in method.range.items()}
    seed = crc32(f"{method.label} {len(known)}".encode())
    sampler = optuna.samplers.TPESampler(n_startup_trials=1, seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, value in known:
        worst = min((v for _, v in known if v is not None), default=0.0)
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(params),
                distributions=dict(where),
                value=worst if value is None else value,
            )
        )
    return {key: float(f"{value:.2g}") for key, value in study.ask(dict(where)).params.items()}


def progress(grid: Grid, model: str, rows: Sequence[Row]) -> dict[tuple[str, str], tuple[int, int]]:
    """By scaling and method: how many settings were searched, and of how many."""

    def of_cell(scaling: str, method: str) -> tuple[int, int]:
        jobs = _searches(grid, model, scaling, method, rows)
        done = sum(_row(rows, job) is not None for job in jobs)
        return done, len(grid.methods[method].points) + grid.proposed

    return {cell: of_cell(*cell) for cell in _cells(grid, model, rows)}


def _wholes(
    grid: Grid,
    model: str,
    cells: Sequence[tuple[str, str]],
    searched: Sequence[tuple[str, str]],
    rows: Sequence[Row],
) -> Iterator[Job]:
    """Best settings at the whole budget: each method's best cell, the floor's, and the upper half.

    A method goes on when all its cells are searched, so that no GPU waits for the slowest search.
    Searches at the whole budget are whole runs already. If the study is halved, the upper half
    alone goes on.
    """
    if grid.budget == grid.search_budget:
        return
    bests = {cell: _best_search(grid, model, cell, rows) for cell in searched}
    numbers = {
        cell: number
        for cell, row in bests.items()
        if row is not None and (number := choice(rows, row, grid.floor)) is not None
    }
    middle = median(numbers.values()) if len(searched) == len(cells) and numbers else math.inf
    tops = [
        max((c for c in numbers if c[1] == method), key=lambda c: numbers[c], default=None)
        for method in grid.methods
        if all(cell in searched for cell in cells if cell[1] == method)
    ]
    for cell, number in sorted(numbers.items(), key=lambda pair: -pair[1]):
        # The floor's cells are those of the paper, whatever they give.
        anyway = not grid.halved and (cell in tops or cell[0] == grid.floor)
        if number >= middle or anyway:
            row = bests[cell]
            assert row is not None
            yield Job("whole", model, *cell, grid.budget, row["params"], grid.seeds[0])
            if grid.larger and cell[0] != grid.floor and cell[1] in grid.measured:
                yield Job("whole", model, *cell, grid.larger, row["params"], grid.seeds[0])


def _best_search(grid: Grid, model: str, cell: tuple[str, str], rows: Sequence[Row]) -> Row | None:
    jobs = _searches(grid, model, *cell, rows)
    return best(rows, [row for job in jobs if (row := _row(rows, job))], grid.floor)


def _finals(
    grid: Grid,
    model: str,
    cells: Sequence[tuple[str, str]],
    searched: Sequence[tuple[str, str]],
    wholes: Sequence[Job],
    rows: Sequence[Row],
) -> Iterator[Job]:
    """Each method's best settings, and the floor's, with all seeds: all methods at the first seed.

    The budget is one of the settings: a method's whole run stands beside its searches.
    """
    runs = [row for row in trained(rows, model) if row["budget"] != grid.larger]
    chosen: dict[tuple[str, str], Row] = {}
    for method in grid.methods:
        mine = [row for row in runs if row["method"] == method]
        whole = {row["scaling"] for row in mine if row["phase"] == "whole"}
        if grid.budget == grid.search_budget:
            whole = {scaling for scaling, of in searched if of == method}
        elif grid.halved and len(searched) == len(cells):
            going = {job.scaling for job in wholes if job.method == method}
            whole |= {scaling for scaling, of in searched if of == method} - going
        for group in (mine, [row for row in mine if row["scaling"] == grid.floor]):
            row = best(rows, group, grid.floor)
            # Until its whole run has ended, a smaller budget is not known to be better.
            if row is not None and row["scaling"] in whole:
                chosen[row["scaling"], method] = row
    # The methods of the first table come first.
    ranked = sorted(chosen.items(), key=lambda item: item[0][1] not in grid.headline)
    first, *others = grid.seeds
    for seed in (first, *others):
        for (scaling, method), row in ranked:
            yield Job("final", model, scaling, method, row["budget"], row["params"], seed)
        if seed == first:
            yield from _ablations(grid, model, rows, chosen)
    for (scaling, method), row in chosen.items():
        if method in grid.measured and scaling != grid.floor:
            yield Job("measure", model, scaling, method, row["budget"], row["params"], first)


def _ablations(
    grid: Grid, model: str, rows: Sequence[Row], chosen: Mapping[tuple[str, str], Row]
) -> Iterator[Job]:
    """Ablations of methods whose best settings are known; nothing is searched or tested."""
    for name, about in grid.ablations.items():
        of = [row for (_, method), row in chosen.items() if method == about.of]
        row = best(rows, of, grid.floor)
        if row is None:
            continue
        params = {key: value for key, value in row["params"].items() if key not in about.without}
        scaling = about.scaling or row["scaling"]
        yield Job("ablation", model, scaling, name, row["budget"], params, grid.seeds[0])


def _row(rows: Sequence[Row], job: Job) -> Row | None:
    """A job's row."""
    about: dict[str, Any] = job.about
    return next((row for row in rows if about.items() <= row.items()), None)
