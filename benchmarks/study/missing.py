"""What of a model's study was not run yet, in words: prose that was typed would soon be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.study import phases
from benchmarks.study.grid import Grid
from benchmarks.study.scores import Row


def missing(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a list; one that says so if nothing is missing.

    Args:
        grid: the whole study.
        model: its name in the grid.
        rows: of the study.
    """
    own = grid.of(model)
    mine = [row for row in rows if row["model"] == model]
    first, *_ = phases.kept_scalings(own, model, rows)
    scored = {row["scaling"] for row in mine if row["phase"] == "untrained"}
    larger = {row["method"] for row in mine if row["budget"] == own.larger}
    search: dict[str, list[str]] = {"nothing": [], "part": [], "untested": [], "seeds": []}
    for (scaling, method), (done, of) in phases.progress(own, model, rows).items():
        label = own.methods[method].label + (f" on {scaling}" if scaling != first else "")
        cell = ("final", scaling, method)
        seeds = sum((row["phase"], row["scaling"], row["method"]) == cell for row in mine)
        if not done:
            search["nothing"].append(label)
        elif done < of:
            search["part"].append(f"{label} ({done} of {of} settings)")
        elif not seeds:
            search["untested"].append(label)
        elif seeds < len(own.seeds):
            search["seeds"].append(f"{label} ({seeds})")
    measured = (method for method in own.measured if method in own.methods)
    parts = {
        "Scalings that were not scored": [name for name in own.scalings if name not in scored],
        "Not searched": search["nothing"],
        "Searched in part": search["part"],
        "Searched and not tested": search["untested"],
        f"Tested with fewer than {len(own.seeds)} seeds": search["seeds"],
        f"Not run with {own.larger} tokens": [
            own.methods[method].label for method in measured if own.larger and method not in larger
        ],
    }
    lines = [f"- {what}: {'; '.join(names)}." for what, names in parts.items() if names]
    yield from lines or ["Nothing."]
