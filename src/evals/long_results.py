"""What the long suite's values become: evals/long.json, its items, tables and summary.

Values of tasks are shares from 0 to 1; RULER's own scale, 0 to 100, stands beside them as `score`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from src.evals.restoration import (
    MIN_ITEMS,
    Answered,
    Comparison,
    Roles,
    TaskFacts,
    stderr_of_mean,
)
from src.evals.suite import ResultTable
from src.evals.units import PapersUnit, PositionsUnit, Reader, RulerUnit, Unit
from src.run_folder import SCHEMA

Values = Mapping[str, Mapping[str, list[Any]]]

UNKNOWN_ERROR = f"- for a standard error: unknown, of fewer than {MIN_ITEMS} items."


def content(
    readers: Sequence[Reader],
    units: Sequence[Unit],
    values: Values,
    *,
    lengths: Sequence[int],
    limit: int | None,
    seed: int,
    resamples: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of evals/long.json and the lines of evals/long.items.jsonl.

    Args:
        readers: who was asked.
        units: what was asked.
        values: by reader's and unit's name; what failed is not there.
        lengths: of prompts.
        limit: samples at most, where that was set.
        seed: of the samples and of the bootstrap.
        resamples: of the bootstrap.
    """
    answered = [reader for reader in readers if values.get(reader.name)]
    facts = {unit.name: fact for unit in units if (fact := _facts(unit)) is not None}
    compared = Comparison(
        list(facts.values()),
        {
            reader.name: {
                name: _answered(found)
                for name, found in values[reader.name].items()
                if name in facts
            }
            for reader in answered
        },
        _roles(answered),
        resamples=resamples,
        seed=seed,
    )
    found = {
        "schema": SCHEMA,
        "suite": "long",
        "limit": limit,
        "seed": seed,
        "lengths": list(lengths),
        "models": [
            _model(reader, units, values[reader.name], compared, limit) for reader in answered
        ],
        "scores_by_model": compared.scores(),
        "needle_depth": {
            reader.name: grid for reader in answered if (grid := _grid(units, values[reader.name]))
        },
    }
    items = [
        line for reader in answered for line in _items(reader.name, units, values[reader.name])
    ]
    return found, items


def _facts(unit: Unit) -> TaskFacts | None:
    """What scores need to know of a task; None for what is no task."""
    if isinstance(unit, RulerUnit) and unit.samples[0].depth is None:
        metric = f"string_match_{unit.samples[0].match}"
        return TaskFacts(unit.name, f"RULER {unit.length}", metric, chance=0.0)
    if isinstance(unit, PapersUnit):
        golds = Counter(item.gold for item in unit.items)
        # Saying the commoner answer always.
        return TaskFacts(unit.name, "Papers", "acc", chance=max(golds.values()) / len(unit.items))
    return None


def _answered(found: Sequence[Mapping[str, Any]]) -> Answered:
    return Answered(np.array([float(item["score"]) for item in found]), np.ones(len(found)))


def _roles(readers: Sequence[Reader]) -> Roles:
    return Roles.of(
        ((r.name, r.candidate.role) for r in readers if r.retrieval is None),
        further=(r.name for r in readers if r.retrieval is not None),
    )


def _model(
    reader: Reader,
    units: Sequence[Unit],
    values: Mapping[str, list[Any]],
    compared: Comparison,
    limit: int | None,
) -> dict[str, Any]:
    results = {
        task: result | {"limit": limit} for task, result in compared.results(reader.name).items()
    }
    model: dict[str, Any] = {
        "name": reader.name,
        "weights": reader.candidate.fingerprint,
        "window": reader.window,
        "beyond_window": sorted(
            {unit.length for unit in units if isinstance(unit, RulerUnit) and not unit.fits(reader)}
        ),
        "results": results,
        "categories": compared.categories(reader.name),
        "average": compared.average(reader.name),
        "full_average": compared.average(reader.name, full=True),
    }
    for unit in units:
        found = values.get(unit.name)
        if found is None:
            continue
        if isinstance(unit, PositionsUnit):
            model["text"] = found[0]
        elif isinstance(unit, PapersUnit):
            results[unit.name] |= {
                "truncated": sum(1 for item in found if item["cut"]),
                "tokens": sum(item["tokens"] for item in found) / len(found),
            }
        elif isinstance(unit, RulerUnit) and unit.name in results:
            result = results[unit.name]
            result |= {"length": unit.length, "score": 100 * result["value"]}
    model["ruler_by_length"] = _by_length(results)
    model["lm_eval"] = {
        "results": {
            task: {
                "alias": task,
                f"{result['metric']},none": result["value"],
                f"{result['metric']}_stderr,none": result["stderr"],
            }
            for task, result in results.items()
        },
        "n-samples": {task: {"effective": result["n"]} for task, result in results.items()},
    }
    return model


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for too few values."""
    given = _answered([{"score": value} for value in values])
    return given.value, given.stderr


def _by_length(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """RULER's mean over tasks at each length, every task of equal weight."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for result in results.values():
        if "length" in result:
            groups.setdefault(result["length"], []).append(result)
    found = {}
    for length, group in sorted(groups.items()):
        value = sum(result["value"] for result in group) / len(group)
        found[str(length)] = {
            "value": value,
            "stderr": stderr_of_mean([result["stderr"] for result in group]),
            "tasks": len(group),
            "score": 100 * value,
        }
    return found


def _grid(units: Sequence[Unit], values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Cells of the needle-depth grid."""
    cells = []
    for unit in units:
        if not isinstance(unit, RulerUnit) or unit.name not in values:
            continue
        if unit.samples[0].depth is None:
            continue
        by_depth: dict[float, list[float]] = {}
        for sample, item in zip(unit.samples, values[unit.name], strict=True):
            assert sample.depth is not None
            by_depth.setdefault(sample.depth, []).append(item["score"])
        for depth, scores in by_depth.items():
            value, stderr = _mean(scores)
            cells.append(
                {
                    "length": unit.length,
                    "depth": depth,
                    "value": value,
                    "stderr": stderr,
                    "n": len(scores),
                }
            )
    return cells


def _items(
    name: str, units: Sequence[Unit], values: Mapping[str, list[Any]]
) -> list[dict[str, Any]]:
    """A line for each answer."""
    lines = []
    for unit in units:
        if isinstance(unit, PositionsUnit):
            continue
        for number, item in enumerate(values.get(unit.name, ())):
            line = {"model": name, "task": unit.name, "item": number, **item}
            if isinstance(unit, RulerUnit):
                sample = unit.samples[number]
                line |= {"outputs": list(sample.outputs), "depth": sample.depth}
            lines.append(line)
    return lines


def tables(content: Mapping[str, Any]) -> list[ResultTable]:
    """RULER by length and by task, the depth grid, papers, and perplexities."""
    limited = "" if content["limit"] is None else f", limit={content['limit']}: a quick look"
    found = [
        _ruler_by_length(content, limited),
        *_ruler_tasks(content, limited),
        _depth_table(content, limited),
        _papers_table(content, limited),
        _text_table(content, limited),
    ]
    mark = "" if content["limit"] is None else f"_limit_{content['limit']}"
    return [replace(table, name=table.name + mark) for table in found if table.rows]


def _ruler_by_length(content: Mapping[str, Any], limited: str) -> ResultTable:
    lengths = [str(length) for length in content["lengths"]]
    rows = []
    for model in content["models"]:
        scored = model["ruler_by_length"]
        if scored:
            cells = [scored[n]["score"] if n in scored else None for n in lengths]
            errors = [scored[n]["stderr"] for n in lengths if n in scored]
            largest = None if None in errors else 100 * max(errors)
            rows.append((model["name"], *cells, largest))
    return ResultTable(
        name="ruler",
        title=f"RULER, mean over tasks by length (0 to 100{limited})",
        columns=("model", *lengths, "largest stderr"),
        rows=tuple(rows),
        formats=("", *(".1f" for _ in lengths), ".1f"),
        notes=("- where a length is beyond the model's window.", UNKNOWN_ERROR),
    )


def _ruler_tasks(content: Mapping[str, Any], limited: str) -> list[ResultTable]:
    """A table for each length: a task a row, a model a column."""
    made = []
    for length in content["lengths"]:
        models = [m for m in content["models"] if str(length) in m["ruler_by_length"]]
        names = [
            task
            for model in models[:1]
            for task, result in model["results"].items()
            if result.get("length") == length
        ]
        rows = []
        for task in names:
            cells = [model["results"].get(task, {}).get("score") for model in models]
            rows.append((task.removeprefix("ruler_").removesuffix(f"_{length}"), *cells))
        made.append(
            ResultTable(
                name=f"ruler_{length}",
                title=f"RULER at {length} tokens (0 to 100{limited})",
                columns=("task", *(model["name"] for model in models)),
                rows=tuple(rows),
                formats=("", *(".1f" for _ in models)),
            )
        )
    return made


def _depth_table(content: Mapping[str, Any], limited: str) -> ResultTable:
    grids = content["needle_depth"]
    depths = sorted({cell["depth"] for grid in grids.values() for cell in grid})
    rows = []
    for name, grid in grids.items():
        cells = {(cell["length"], cell["depth"]): 100 * cell["value"] for cell in grid}
        for length in sorted({cell["length"] for cell in grid}):
            rows.append((name, str(length), *(cells.get((length, d)) for d in depths)))
    return ResultTable(
        name="needle_depth",
        title=f"One needle by its depth in percent (found, 0 to 100{limited})",
        columns=("model", "length", *(f"{depth:g}" for depth in depths)),
        rows=tuple(rows),
        formats=("", "", *(".0f" for _ in depths)),
    )


def _papers_table(content: Mapping[str, Any], limited: str) -> ResultTable:
    rows = []
    chance = 0.0
    for model in content["models"]:
        if result := model["results"].get("qasper_yesno"):
            chance = result["chance"]
            cut = f"{result['truncated']} of {result['n']}"
            rows.append((model["name"], result["value"], result["stderr"], cut))
    return ResultTable(
        name="qasper_yesno",
        title=f"Yes-or-no questions on whole papers (accuracy{limited})",
        columns=("model", "acc", "stderr", "papers cut"),
        rows=tuple(rows),
        formats=("", ".3f", ".3f", ""),
        notes=(f"the commoner answer alone: {chance:.3f}", UNKNOWN_ERROR),
    )


def _text_table(content: Mapping[str, Any], limited: str) -> ResultTable:
    lengths = [str(length) for length in content["lengths"]]
    rows = []
    for model in content["models"]:
        if text := model.get("text"):
            for kind in ("last_k", "sliding"):
                figures = text[kind]
                cells = [figures[n]["perplexity"] if n in figures else None for n in lengths]
                rows.append((model["name"], kind.replace("_", "-"), *cells))
    return ResultTable(
        name="long_perplexity",
        title=f"Perplexity of the same tokens after longer contexts (lower is better{limited})",
        columns=("model", "scored", *lengths),
        rows=tuple(rows),
        formats=("", "", *(".2f" for _ in lengths)),
    )


def summary(content: Mapping[str, Any]) -> dict[str, float]:
    """Every task's value, RULER's mean by length and perplexities of the last tokens, by model.

    Limited ones say so in their names.
    """
    suite = "long" if content["limit"] is None else f"long@limit{content['limit']}"
    figures: dict[str, float] = {}
    for model in content["models"]:
        start = f"eval/{model['name']}/{suite}"
        for task, result in model["results"].items():
            figures[f"{start}/{task}"] = result["value"]
        for length, scored in model["ruler_by_length"].items():
            figures[f"{start}/ruler/{length}"] = scored["value"]
        for length, scored in model.get("text", {}).get("last_k", {}).items():
            figures[f"{start}/perplexity_last/{length}"] = scored["perplexity"]
    return figures
