"""What pages say of every model beyond the grid's first: its tables under headings.

The first model's tables stand in the text of README.md and docs/study.md, one by one. A further
model's appear when it has rows, all at once, so that a new entry of the grid needs no new text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.study.grid import Grid

Tables = Mapping[str, Sequence[str]]
_PICTURES = {
    "tokens": "By tokens",
    "rates": "By learning rate",
    "scalings": "By scaling",
    "drift": "Drift by layer",
}
_SECTIONS = {
    "headline": "Test half, in percent with 95% intervals. RULER has all 13 tasks:",
    "comparison": "Test half, in percent with 95% intervals. RULER has all 13 tasks:",
    "gains": "Minus the untrained model, in points; bold is more than noise:",
    "differences": "Minus {rival}, in points; bold is more than noise:",
    "goals": "In percent of the native model:",
    "tasks": "RULER by task, where a scaled model answers anything:",
    "first": "Validation half, each method's best run:",
    "untrained": "Validation half, every scaling without training:",
    "validation tasks": "RULER by task on validation, the largest number first; *copied* is the "
    "share of answers in variable tracking (vt) that are the worked example's:",
    "search": "Every search and whole run:",
    "measures": "LongPPL, and drift from the native model on short text (KL in nats; cosine):",
    "answers": "The mean of five short tasks after five worked examples, needles found at any "
    "depth, questions on papers, and the share of the native model's mistakes that are repeated, "
    "all in percent:",
    "ablations": "With a part left out, validation half:",
    "missing": "Not run yet:",
}


def regions(
    grid: Grid, tables: Tables, pictures: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The regions of further models, by name; empty without rows.

    Args:
        grid: the whole study.
        tables: of all models, by `MODEL TABLE`.
        pictures: kinds that there are, by model.
    """
    _, *later = grid.models
    return {
        "further first": [line for model in grid.further for line in _answer(grid, model, tables)],
        "further models": [
            line for model in later for line in whole(grid, model, tables, pictures[model])
        ],
    }


def _answer(grid: Grid, model: str, tables: Tables) -> Iterator[str]:
    """The table that answers first: what was tested, and before that what was validated."""
    for kind in ("headline", "first"):
        if f"{model} {kind}" in tables:
            yield ""
            yield f"{grid.heading(model)}. {_SECTIONS[kind]}"
            yield ""
            yield from tables[f"{model} {kind}"]
            return


def whole(grid: Grid, model: str, tables: Tables, pictures: Sequence[str]) -> Iterator[str]:
    """All tables and pictures of a model, under a heading; nothing without tables."""
    there = {
        kind: t for kind in _SECTIONS if kind != "headline" and (t := tables.get(f"{model} {kind}"))
    }
    if not there:
        return
    yield f"## {grid.heading(model)}"
    rival = grid.methods[grid.rival].label if grid.rival in grid.methods else grid.rival
    for kind, lines in there.items():
        yield ""
        yield _SECTIONS[kind].format(rival=rival)
        yield ""
        yield from lines
    for kind in pictures:
        yield ""
        yield f"![{_PICTURES[kind]}, {grid.heading(model)}](images/study_{model}_{kind}.png)"
    yield ""
