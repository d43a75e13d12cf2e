"""The number that the study chooses by: a run's validation beside that of untrained models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from src import results
from src.evals.suites.inheritance import InheritanceResults
from src.evals.suites.longppl import LongPplResults
from src.results import (
    DriftResults,
    FewShotResults,
    NeedleCell,
    NeedleDepthResults,
    PapersResults,
    Role,
    RulerResults,
    ShortResults,
    SuiteResults,
    TaskModel,
)

Row = Mapping[str, Any]
Split = Literal["validation", "test"]
# In RULER's variable tracking, the worked example's variables have three letters, those asked five.
EXAMPLE_VARIABLE = re.compile(r"\b(?!VAR\b)[A-Z]{3}\b")


def evaluated(folder: Path, role: Role, split: Split) -> dict[str, Any] | None:
    """Values of the model of a role: short tasks, RULER's mean by length, and RULER's tasks.

    Args:
        folder: with the results of both suites.
        role: `native`, `scaled` or `final`.
        split: the half of the items.

    Returns:
        `short` by task, `ruler` by length in tokens as text, `tasks` of RULER by name and length,
        and `copied` by length (`example_copied`); None where an evaluation is missing.

    Raises:
        ResultsError: a file cannot be read.
        ValueError: something was not evaluated.
    """
    short = results.read(folder, ShortResults, split=split)
    ruler = results.read(folder, RulerResults, split=split)
    if short is None or ruler is None:
        return None
    _complete(folder, short, ruler)
    one, other = _of(short, role), _of(ruler, role)
    return {
        "short": {name: task.value for name, task in one.results.items()},
        "ruler": {str(length): mean.value for length, mean in other.by_length.items()},
        "tasks": {name: task.value for name, task in other.results.items()},
        "copied": example_copied(folder / f"ruler.{split}.items.jsonl", other.name),
    }


def example_copied(file: Path, model: str) -> dict[str, float]:
    """The share of answers in variable tracking that are the worked example's, by length.

    An answer is the example's if its first line names three or more of the example's five
    variables.

    Args:
        file: items of RULER.
        model: its name in them.
    """
    copied: dict[str, list[bool]] = {}
    for line in _lines(file):
        task, _, length = line["task"].rpartition("_")
        if line["model"] == model and task == "ruler_vt":
            first, *_ = line["answer"].strip().splitlines() or [""]
            copied.setdefault(length, []).append(len(EXAMPLE_VARIABLE.findall(first)) >= 3)
    return {length: fmean(shares) for length, shares in copied.items()}


def measured(folder: Path) -> dict[str, Any] | None:
    """What `eval=measures` found, by role.

    Args:
        folder: with the results of the suites.

    Returns:
        `longppl` by length, `keys` (key tokens by length), `drift`, `few_shot` by task,
        `needle_depth` (the share of needles found, by length), `papers` (accuracy) and
        `inheritance` (of the native model's mistakes, the share repeated with the same answer);
        None where a suite is missing. Drift is from the native model and in nats: `attention_kl`
        and `relation_kl` by layer, `logit_kl`; `hidden_cosine` is by layer.

    Raises:
        ResultsError: a file cannot be read.
        ValueError: something was not evaluated.
    """
    longppl, drift = results.read(folder, LongPplResults), results.read(folder, DriftResults)
    few_shot = results.read(folder, FewShotResults, split="test")
    inheritance = results.read(folder, InheritanceResults, split="test")
    needles = results.read(folder, NeedleDepthResults)
    papers = results.read(folder, PapersResults)
    if longppl is None or drift is None or few_shot is None:
        return None
    if inheritance is None or needles is None or papers is None:
        return None
    _complete(folder, longppl, drift, few_shot, inheritance, needles, papers)
    return {
        "longppl": {
            str(model.role): {str(n): score.longppl for n, score in model.by_length.items()}
            for model in longppl.models
        },
        "keys": {str(n): count for n, count in longppl.keys.items()},
        "drift": {
            str(model.role): {
                "attention_kl": model.attention_kl,
                "hidden_cosine": model.hidden_cosine,
                "relation_kl": model.relation_kl,
                "logit_kl": model.logit_kl,
            }
            for model in drift.models
        },
        "few_shot": {
            str(model.role): {name: task.value for name, task in model.results.items()}
            for model in few_shot.models
        },
        "inheritance": {str(model.role): model.all.same for model in inheritance.models},
        "needle_depth": {str(model.role): _found(model.cells) for model in needles.models},
        "papers": {
            str(model.role): fmean(task.value for task in model.results.values())
            for model in papers.models
        },
    }


def _found(cells: Sequence[NeedleCell]) -> dict[str, float]:
    """The share of needles found at any depth, by length."""
    lengths = sorted({cell.length for cell in cells})
    return {str(n): fmean(cell.value for cell in cells if cell.length == n) for n in lengths}


def _complete(folder: Path, *records: SuiteResults[Any]) -> None:
    for record in records:
        if record.failures:
            raise ValueError(f"{folder}: {record.suite} lacks {dict(record.failures)}")


def _of(record: SuiteResults[TaskModel], role: Role) -> TaskModel:
    return record.of_role(role)[-1]


def items(folder: Path, role: Role) -> dict[str, list[float]]:
    """Scores of every test item by task, of tasks whose items count equally, more being better."""
    found: dict[str, list[float]] = {}
    short = results.read(folder, ShortResults, split="test")
    ruler = results.read(folder, RulerResults, split="test")
    assert short is not None
    assert ruler is not None
    name = _of(short, role).name
    better = {task for task, r in _of(short, role).results.items() if r.higher_is_better}
    for line in _lines(folder / "short.test.items.jsonl"):
        if line["model"] == name and line["task"] in better:
            found[line["task"]] = line["score"]
    name = _of(ruler, role).name
    for line in _lines(folder / "ruler.test.items.jsonl"):
        if line["model"] == name:
            found.setdefault(line["task"], []).append(line["score"])
    return found


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def choice(rows: Iterable[Row], row: Row, floor: str) -> float | None:
    """The number of a row; None where the run diverged.

    Args:
        rows: all rows; those of the native model and of the floor are looked up.
        row: a row with `validation`.
        floor: the floor's scaling.

    Raises:
        KeyError: the native model or the floor was not evaluated yet.
    """
    if row["validation"] is None:
        return None
    defined = [part for part in parts_of(rows, row, floor) if part is not None]
    return fmean(defined) if defined else 0.0


def parts_of(rows: Iterable[Row], row: Row, floor: str) -> tuple[float | None, float | None]:
    """The short and the RULER part of a row's number; None for a part that is not defined."""
    known = {known["scaling"]: known for known in untrained(rows, row["model"])}
    native, floored = known[floor]["native"], known[floor]["validation"]
    return short_part(row["validation"], native, floored), ruler_part(row["validation"], native)


def short_part(student: Row, native: Row, floor: Row) -> float | None:
    """The gap closed on the mean of the short tasks, as a share; None where there is no gap."""
    mine, top, bottom = (fmean(values["short"].values()) for values in (student, native, floor))
    return (mine - bottom) / (top - bottom) if top > bottom else None


def ruler_part(student: Row, native: Row) -> float | None:
    """The mean over lengths of RULER relative to the native model, as a share.

    Beyond its window the native model has no value; its value at its longest length stands for it.
    Lengths at which it finds nothing are left out; None where these are all.
    """
    longest = native["ruler"][max(native["ruler"], key=int)]
    values = [(v, native["ruler"].get(length, longest)) for length, v in student["ruler"].items()]
    shares = [value / reference for value, reference in values if reference > 0]
    return fmean(shares) if shares else None


def untrained(rows: Iterable[Row], model: str) -> list[Row]:
    """The rows of a model's scalings without training."""
    return [row for row in rows if (row["phase"], row["model"]) == ("untrained", model)]


def trained(rows: Iterable[Row], model: str) -> list[Row]:
    """The runs of a model that a method's settings and budget are chosen from."""
    return [row for row in rows if row["model"] == model and row["phase"] in ("search", "whole")]


def pictured(rows: Sequence[Row], model: str) -> list[str]:
    """The pictures that a model's rows give: of budgets, rates, scalings and drift."""
    runs = trained(rows, model)
    made = {
        "tokens": len({row["budget"] for row in runs}) > 1,
        "rates": len({rate(row) for row in runs}) > 1,
        "scalings": len({row["scaling"] for row in runs}) > 1,
        "drift": any((row["phase"], row["model"]) == ("measure", model) for row in rows),
    }
    return [name for name, there in made.items() if there]


def rate(row: Row) -> float:
    """The learning rate of the last stage that was searched: stages are searched in their order."""
    return [value for key, value in row["params"].items() if key.endswith(".lr")][-1]


def best(rows: Sequence[Row], among: Iterable[Row], floor: str) -> Row | None:
    """The row with the largest number; None where all diverged."""
    numbers = [(choice(rows, row, floor), row) for row in among]
    finite = [(number, row) for number, row in numbers if number is not None]
    return max(finite, key=lambda pair: pair[0])[1] if finite else None
