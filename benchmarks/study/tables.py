"""Tables of the study from its results, between marks of README.md and docs/study.md."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study import further
from benchmarks.study.grid import Grid
from benchmarks.study.intervals import Items, Scored, difference, mean, relative
from benchmarks.study.missing import missing
from benchmarks.study.scores import Row, best, choice, parts_of, pictured, trained, untrained
from src.evals.restoration import Answers
from src.evals.tasks import definitions

_HEAD = 2  # lines of a table that say nothing yet
RULER = re.compile(r"ruler_(?P<task>.+)_(?P<length>\d+)")


@dataclass(frozen=True)
class Line:
    """A line of the comparison.

    Attributes:
        method: name of the grid; `native` and `untrained` are none.
        label, scaling: as tables name them.
        tested: its items.
        tokens, minutes: of training, the mean over seeds; 0 without training.
    """

    method: str
    label: str
    scaling: str
    tested: Scored
    tokens: int = 0
    minutes: float = 0.0

    def able(self, tasks: Sequence[str]) -> bool:
        """Whether all of these tasks were asked; a native model reads no more than its window."""
        return all(task in self.tested.seeds[0] for task in tasks)


class Comparison:
    """What was tested of one model."""

    def __init__(self, grid: Grid, model: str, rows: Sequence[Row], folder: Path) -> None:
        """Args:
        grid: names of methods.
        model: its name in the grid.
        rows: of the study.
        folder: with `items/`.
        """
        self.model = model
        self.native = Scored("native", (_items(folder, f"{model}-native"),))
        self.lines = [Line("native", "native", "", self.native)]
        cells: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in rows:
            if row["model"] != model or not row.get("test"):
                continue
            if row["method"] != "untrained":
                cells[row["scaling"], row["method"], row["budget"]].append(row)
                continue
            items = (_items(folder, f"{model}-{row['scaling']}-untrained"),)
            tested = Scored(f"untrained {row['scaling']}", items)
            self.lines.append(Line("untrained", "untrained", row["scaling"], tested))
        times = Counter((scaling, method) for scaling, method, _ in cells)
        for (scaling, method, budget), runs in cells.items():
            names = [next(iter(run["test"])) for run in runs]
            label, drawn = grid.methods[method].label, f"{method} {scaling}"
            if times[scaling, method] > 1:
                label, drawn = f"{label}, {budget}", f"{drawn} {budget}"
            tested = Scored(drawn, tuple(_items(folder, n) for n in names))
            self.lines.append(
                Line(
                    method,
                    label,
                    scaling,
                    tested,
                    runs[0]["tokens"],
                    fmean(run["seconds"] for run in runs) / 60,
                )
            )

    @property
    def short_tasks(self) -> list[str]:
        """Tasks on which the native model is above chance by two standard errors."""
        kept = []
        for task, facts in definitions().items():
            scores = self.native.seeds[0].get(task)
            if scores is None or facts.chance is None:
                continue
            answers = Answers(scores, [1.0] * len(scores))
            if answers.stderr is not None and answers.value > facts.chance + 2 * answers.stderr:
                kept.append(task)
        return kept

    @property
    def lengths(self) -> list[int]:
        """Of RULER's prompts, in tokens."""
        names = {name for line in self.lines for items in line.tested.seeds for name in items}
        found = [RULER.fullmatch(name) for name in names]
        return sorted({int(match["length"]) for match in found if match})

    def ruler_tasks(self, length: int) -> list[str]:
        """Names of RULER's tasks at a length."""
        names = {name for line in self.lines for items in line.tested.seeds for name in items}
        return sorted(n for n in names if (m := RULER.fullmatch(n)) and int(m["length"]) == length)

    @property
    def parts(self) -> dict[str, list[str]]:
        """What is compared: heads of columns, with the tasks that are averaged there."""
        short = {"short average": self.short_tasks} if self.short_tasks else {}
        return short | {f"RULER {thousands(n)}": self.ruler_tasks(n) for n in self.lengths}

    def headline(self, grid: Grid) -> list[Line]:
        """Of the first table: native, scalings untrained but the floor, the headline methods."""
        shown = ["native", "untrained", *grid.of(self.model).headline]
        return sorted(
            (
                line
                for line in self.lines
                if line.method in shown and (line.method, line.scaling) != ("untrained", grid.floor)
            ),
            key=lambda line: shown.index(line.method),
        )

    def table(self, lines: Sequence[Line]) -> Iterator[str]:
        """Short average, RULER by length, tokens and minutes, with intervals."""
        parts = self.parts
        yield f"| method | scaling | {' | '.join([*parts, 'tokens', 'minutes', 'seeds'])} |"
        yield "|---|---|" + "--:|" * (len(parts) + 3)
        for line in lines:
            cells = [
                str(mean(line.tested, tasks)) if line.able(tasks) else "-"
                for tasks in parts.values()
            ]
            cost = [f"{line.tokens:,}", f"{line.minutes:.1f}"] if line.tokens else ["0", "-"]
            cells += [*cost, str(len(line.tested.seeds))]
            yield f"| {line.label} | {line.scaling or '-'} | {' | '.join(cells)} |"

    def against(self, base: Line) -> Iterator[str]:
        """Every other line minus this one, in percentage points; bold is more than noise."""
        yield f"| method | scaling | {' | '.join(self.parts)} |"
        yield "|---|---|" + "--:|" * len(self.parts)
        for line in self.lines:
            if line is base:
                continue
            cells: list[str] = []
            for tasks in self.parts.values():
                if not line.able(tasks):
                    cells.append("-")
                    continue
                value = difference(line.tested, base.tested, tasks)
                cells.append(f"**{value}**" if value.certain else str(value))
            yield f"| {line.label} | {line.scaling or '-'} | {' | '.join(cells)} |"

    def by_task(self) -> Iterator[str]:
        """RULER's tasks by length, in percent; a column for each line.

        A task that no scaled model answers at a length is left out.
        """
        heads = [f"{line.label} {line.scaling}".strip() for line in self.lines]
        yield f"| task | tokens | {' | '.join(heads)} |"
        yield "|---|--:|" + "--:|" * len(heads)
        scaled = self.lines[1:]
        for length in self.lengths:
            for task in self.ruler_tasks(length):
                if not any(line.tested.mean([task])[0] for line in scaled if line.able([task])):
                    continue
                match = RULER.fullmatch(task)
                assert match is not None
                cells = [
                    f"{100 * line.tested.mean([task])[0]:.0f}" if line.able([task]) else "-"
                    for line in self.lines
                ]
                yield f"| {match['task']} | {thousands(length)} | {' | '.join(cells)} |"

    def goals(self, native_window: int) -> Iterator[str]:
        """Every line in percent of the native model: short, and RULER within the native window."""
        within = [task for n in self.lengths if n <= native_window for task in self.ruler_tasks(n)]
        parts = {"RULER within the window": within}
        if self.short_tasks:
            parts = {"short average": self.short_tasks} | parts
        # A native model that finds nothing is no measure.
        parts = {part: tasks for part, tasks in parts.items() if self.native.mean(tasks)[0]}
        if not parts:
            return
        yield f"| method | scaling | {' | '.join(f'{part}, % of native' for part in parts)} |"
        yield "|---|---|" + "--:|" * len(parts)
        for line in self.lines[1:]:
            shares = [
                str(relative(line.tested, self.native, t, t)) if line.able(t) else "-"
                for t in parts.values()
            ]
            yield f"| {line.label} | {line.scaling} | {' | '.join(shares)} |"


def untrained_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """The validation of the native model and of every scaling without training."""
    known = untrained(rows, model)
    tasks, lengths, heads = _columns(known[0])
    yield f"| scaling | {' | '.join(heads)} | number |"
    yield "|---|" + "--:|" * (len(heads) + 1)
    yield f"| native | {_values(known[0]['native'], tasks, lengths)} | |"
    for row in known:
        number = choice(rows, row, grid.floor)
        yield f"| {row['scaling']} | {_values(row['validation'], tasks, lengths)} | {number:.3f} |"


def first_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """The validation of the native model, untrained scalings, and the best run of some methods."""
    known = untrained(rows, model)
    tasks, lengths, heads = _columns(known[0])
    yield f"| scaling | trained with | tokens | {' | '.join(heads)} |"
    yield "|---|---|--:|" + "--:|" * len(heads)
    yield f"| native | - | 0 | {_values(known[0]['native'], tasks, lengths)} |"
    top = best(rows, known, grid.floor)
    shown = [r for r in known if r is top or r["scaling"] == grid.floor]
    for method in grid.of(model).headline:
        mine = [row for row in trained(rows, model) if row["method"] == method]
        of_floor = [row for row in mine if row["scaling"] == grid.floor]
        for row in (best(rows, of_floor, grid.floor), best(rows, mine, grid.floor)):
            if row is not None and row not in shown:
                shown.append(row)
    for row in shown:
        label = "-" if row["method"] == "untrained" else grid.methods[row["method"]].label
        values = _values(row["validation"], tasks, lengths)
        yield f"| {row['scaling']} | {label} | {row.get('tokens', 0):,} | {values} |"


def _columns(row: Row) -> tuple[list[str], list[str], list[str]]:
    """What the validation of a row has: short tasks, RULER's lengths, and the heads of both."""
    tasks, lengths = list(row["validation"]["short"]), list(row["validation"]["ruler"])
    return tasks, lengths, [*tasks, *(f"RULER {thousands(int(length))}" for length in lengths)]


def _values(values: Mapping[str, Any], tasks: Any, lengths: Any) -> str:
    cells = [values["short"].get(task) for task in tasks]
    cells += [values["ruler"].get(length) for length in lengths]
    return " | ".join("-" if cell is None else f"{100 * cell:.1f}" for cell in cells)


def search_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """Every searched setting with its number, and the whole runs'."""
    yield "| method | scaling | settings | budget | short | RULER | number | seconds | GiB |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for row in trained(rows, model):
        peak = max((stage.get("peak_gib", 0) for stage in row["stages"]), default=0)
        shown = "diverged | | "
        if (number := choice(rows, row, grid.floor)) is not None:
            parts = (
                "-" if part is None else f"{part:.3f}" for part in parts_of(rows, row, grid.floor)
            )
            shown = f"{' | '.join(parts)} | {number:.3f}"
        yield (
            f"| {grid.methods[row['method']].label} | {row['scaling']} | {_settings(row)} "
            f"| {row['budget']} | {shown} | {row['seconds']:.0f} | {peak:.1f} |"
        )


def ablation_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """A method's best run on validation, and the runs with a part left out."""
    ablated = [row for row in rows if (row["phase"], row["model"]) == ("ablation", model)]
    methods = dict.fromkeys(grid.ablations[row["method"]].of for row in ablated)
    bests = [
        best(rows, [row for row in trained(rows, model) if row["method"] == method], grid.floor)
        for method in methods
    ]
    shown = [row for row in (*bests, *ablated) if row is not None]
    tasks, lengths, heads = _columns(shown[0])
    yield f"| run | scaling | tokens | {' | '.join(heads)} | number |"
    yield "|---|---|--:|" + "--:|" * (len(heads) + 1)
    for row in shown:
        label = f"| {grid.trained(row['method']).label} | {row['scaling']} | {row['tokens']:,} |"
        number = choice(rows, row, grid.floor)
        if number is None:
            yield f"{label}{' |' * len(heads)} diverged |"
        else:
            yield f"{label} {_values(row['validation'], tasks, lengths)} | {number:.3f} |"


def measured_models(
    grid: Grid, model: str, rows: Sequence[Row]
) -> Iterator[tuple[str, str, str, Row]]:
    """Label, scaling, role and measures of every model that was measured, each once."""
    known = [row for row in rows if (row["phase"], row["model"]) == ("measure", model)]
    if known:
        yield "native", "-", "native", known[0]["measures"]
    for scaling, row in {row["scaling"]: row for row in known}.items():
        if "scaled" in row["measures"]["longppl"]:
            yield "untrained", scaling, "scaled", row["measures"]
    for row in known:
        yield grid.trained(row["method"]).label, row["scaling"], "final", row["measures"]


def measures_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """LongPPL by length, with the number of key tokens, and drift from the native model.

    Drift is KL in nats, of the attention as a mean over layers, and the last layer's cosine.
    """
    measured = list(measured_models(grid, model, rows))
    lengths = sorted({n for _, _, role, of in measured for n in of["longppl"][role]}, key=int)
    keys = measured[0][3]["keys"]
    heads = [f"LongPPL {thousands(int(n))}, {keys[n]} keys" for n in lengths]
    heads += ["logits", "attention", "hidden states"]
    yield f"| method | scaling | {' | '.join(heads)} |"
    yield "|---|---|" + "--:|" * len(heads)
    for label, scaling, role, of in measured:
        scores, drift = of["longppl"][role], of["drift"].get(role)
        cells = [f"{scores[n]:.2f}" if n in scores else "-" for n in lengths]
        cells += (
            ["-"] * 3
            if drift is None
            else [
                f"{drift['logit_kl']:.3f}",
                f"{fmean(drift['attention_kl']):.3f}",
                f"{drift['hidden_cosine'][-1]:.3f}",
            ]
        )
        yield f"| {label} | {scaling} | {' | '.join(cells)} |"


def answers_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """Short tasks after worked examples, needles at any depth, papers, mistakes repeated."""
    measured = list(measured_models(grid, model, rows))
    found = [of["needle_depth"].get(role, {}) for _, _, role, of in measured]
    lengths = sorted({n for values in found for n in values}, key=int)
    needles = (f"needles {thousands(int(n))}" for n in lengths)
    heads = ["after examples", *needles, "papers", "native mistakes repeated"]
    yield f"| method | scaling | {' | '.join(heads)} |"
    yield "|---|---|" + "--:|" * len(heads)
    for (label, scaling, role, of), values in zip(measured, found, strict=True):
        few_shot = of["few_shot"].get(role)
        shares = [fmean(few_shot.values()) if few_shot else None]
        shares += [values.get(n) for n in lengths]
        shares += [of["papers"].get(role), of["inheritance"].get(role)]
        cells = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
        yield f"| {label} | {scaling} | {' | '.join(cells)} |"


def validation_tasks_table(grid: Grid, model: str, rows: Sequence[Row]) -> Iterator[str]:
    """RULER's tasks of validation, of all runs that have them, the largest number first.

    The last columns are the shares of answers that are the worked example's.
    """
    mine = [r for r in rows if r["model"] == model and (r["validation"] or {}).get("tasks")]
    ranked = sorted(mine, key=lambda row: -(choice(rows, row, grid.floor) or 0.0))
    tasks = sorted(ranked[0]["validation"]["tasks"], key=_by_length)
    lengths = sorted({n for row in ranked for n in row["validation"].get("copied", {})}, key=int)
    heads = [*map(_short_name, tasks), *(f"copied {thousands(int(n))}" for n in lengths)]
    yield f"| method | settings | tokens | {' | '.join(heads)} |"
    yield "|---|---|--:|" + "--:|" * len(heads)

    def cells(values: Mapping[str, Any]) -> str:
        shares = [values["tasks"].get(task) for task in tasks]
        shares += [values.get("copied", {}).get(length) for length in lengths]
        return " | ".join("-" if share is None else f"{100 * share:.0f}" for share in shares)

    if native := next((row["native"] for row in ranked if row.get("native")), None):
        yield f"| native | | 0 | {cells(native)} |"
    for row in ranked:
        label = "untrained" if row["method"] == "untrained" else grid.trained(row["method"]).label
        yield (
            f"| {label} {row['scaling']} | {_settings(row)} | {row['budget'] or 0} "
            f"| {cells(row['validation'])} |"
        )


def _by_length(task: str) -> tuple[int, str]:
    match = RULER.fullmatch(task)
    assert match is not None
    return int(match["length"]), match["task"]


def _short_name(task: str) -> str:
    length, name = _by_length(task)
    return f"{name.removeprefix('niah_')} {thousands(length)}"


def thousands(tokens: int) -> str:
    """A length as tables have it: `4K`, or in full where that would not be exact."""
    return f"{tokens:,}" if tokens % 1024 else f"{tokens // 1024}K"


def _settings(row: Row) -> str:
    return ", ".join(
        f"{key.removeprefix('+').removeprefix('recipe.stages.')} {value:g}"
        for key, value in row["params"].items()
    )


def regions(grid: Grid, rows: Sequence[Row], folder: Path) -> dict[str, list[str]]:
    """The regions of documents, by name."""
    made: dict[str, list[str]] = {}
    for model, about in grid.models.items():
        phases = {row["phase"] for row in rows if row["model"] == model}
        if grid.floor in {row["scaling"] for row in untrained(rows, model)}:
            made[f"{model} untrained"] = list(untrained_table(grid, model, rows))
            made[f"{model} missing"] = list(missing(grid, model, rows))
        if "search" in phases:
            made[f"{model} first"] = list(first_table(grid, model, rows))
            scaled = [(r["validation"] or {}).get("tasks", {}) for r in rows if r["model"] == model]
            if any(value for tasks in scaled for value in tasks.values()):
                made[f"{model} validation tasks"] = list(validation_tasks_table(grid, model, rows))
            made[f"{model} search"] = list(search_table(grid, model, rows))
        if "measure" in phases:
            made[f"{model} measures"] = list(measures_table(grid, model, rows))
            # Earlier rows have no answers.
            answered = [row for row in rows if "papers" in row.get("measures", ())]
            if any(row["model"] == model for row in answered):
                made[f"{model} answers"] = list(answers_table(grid, model, answered))
        if "ablation" in phases:
            made[f"{model} ablations"] = list(ablation_table(grid, model, rows))
        tested = [row["method"] for row in rows if row["model"] == model and row.get("test")]
        if "untrained" in tested:  # a call may end while the native model is tested
            compared = Comparison(grid, model, rows, folder)
            made[f"{model} headline"] = list(compared.table(compared.headline(grid)))
            made[f"{model} comparison"] = list(compared.table(compared.lines))
            # Of a rival tested at two budgets, the larger.
            for line in sorted(compared.lines, key=lambda line: line.tokens):
                if line.method == grid.rival:
                    made[f"{model} differences"] = list(compared.against(line))
                # The scaling that methods are tried on is tested first.
                if line.method == "untrained" and line.scaling != grid.floor:
                    made.setdefault(f"{model} gains", list(compared.against(line)))
            if len(by_task := list(compared.by_task())) > _HEAD:
                made[f"{model} tasks"] = by_task
            made[f"{model} goals"] = list(compared.goals(about.native_window))
    drawn = {model: pictured(rows, model) for model in grid.models}
    return made | further.regions(grid, made, drawn)


def _items(folder: Path, name: str) -> Items:
    return json.loads((folder / "items" / f"{name}.json").read_text(encoding="utf-8"))


def fill(document: Path, regions: Mapping[str, Sequence[str]]) -> str:
    """A document's text with its marked regions replaced; those that it lacks are left out."""
    # Drawing is not needed to run the study.
    from benchmarks.figures import with_tables

    text = document.read_text(encoding="utf-8")
    there = {n: "\n".join(lines) for n, lines in regions.items() if f"<!-- study: {n} -->" in text}
    return with_tables(text, there, mark="study")
