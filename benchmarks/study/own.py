"""The study of a user's own model and text: own.yaml, with that model's rates and lengths.

    python -m benchmarks.study --own model.path=DIR data=files 'data.paths=[texts/]'

Every method is searched on validation and tested with its best settings, as in the project's own
study. `report.md` has the tables, and the command that trains the winner.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from benchmarks.study import further, phases, pictures, tables
from benchmarks.study.grid import Grid, Method, Model, Settings, read
from benchmarks.study.running import Results
from benchmarks.study.scores import Row, Split, best, choice, parts_of, pictured, trained, untrained
from src import command
from src.models.sources import identity
from src.planning import plan
from src.planning.advice import check_fits
from src.run_folder import write_json
from src.settings import loading, strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

TEMPLATE = Path(__file__).resolve().parent / "own.yaml"
# The first parts of keys that evaluations without a run have too.
_OF_MODELS = ("model", "data", "rope")
# What the study sets itself.
_TAKEN = ("rope", "budget", "seed", "run_dir", "resume", "dry_run", "prepare", "plan_for")
_TAKEN_GROUPS = ("eval", "experiment", "recipe", "objective", "sweeps")
_LARGE_WINDOW = 32_768


@dataclass(frozen=True)
class Asked:
    """What a template says of the evaluations: items by length, and settings, of both halves."""

    __pydantic_config__: ClassVar[ConfigDict] = strict.STRICT

    samples: Mapping[Split, Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]]
    validation: Settings
    test: Settings

    def __post_init__(self) -> None:
        if missing := {"validation", "test"} - self.samples.keys():
            raise ValueError(f"samples: {', '.join(sorted(missing))} is missing")


def own(
    settings: Sequence[str], lengths: Sequence[int] | None = None, template: Path = TEMPLATE
) -> Grid:
    """The grid of a model and a text.

    Args:
        settings: of `src.train`, as typed, that all runs have: model, text, target length.
        lengths: of RULER's prompts in tests, in tokens; None: a part of the native window, twice
            that window, and the target.
        template: a grid without models, whose learning rates are multiples of the model's own.

    Raises:
        ConfigError: a setting that is refused, or that the study sets itself.
        HydraException, OmegaConfBaseException: one that Hydra refuses.
    """
    command.check_arguments(settings, RunConfig)
    for setting in settings:
        key = setting.partition("=")[0].lstrip("+~")
        if key in _TAKEN or key.split(".")[0] in _TAKEN_GROUPS:
            raise ConfigError(
                f"--own {setting}: the study sets {key} itself; give the model, the text and the "
                "target (rope.target_length), or change a copy of benchmarks/study/own.yaml and "
                "name it with --grid"
            )
        if key.split(".")[0] == "student":
            raise ConfigError(
                f"--own {setting}: scalings without training are scored on the model's own "
                "weights, so that nothing would be compared; give the weights as the model"
            )
    plain, questions = _read(template)
    of_model = [setting for setting in settings if _first(setting) in _OF_MODELS]
    plain["settings"] = [
        *plain.get("settings", ()),
        *(setting for setting in settings if _first(setting) not in _OF_MODELS),
    ]
    *_, scaling = plain["scalings"].values()
    run, composer = None, loading.Composer("train")
    for method in plain["methods"].values():
        # The first point's rates are not known yet.
        others = [f"{k}={v}" for k, v in method["points"][0].items() if not k.endswith(".lr")]
        typed = [*method["settings"], *of_model, *scaling, *plain["settings"], *others]
        run = loading.load(RunConfig, composer(typed))
        rates = {f"recipe.stages.{n}.lr": s.lr for n, s in run.recipe.training.items()}
        method["points"] = [_times(point, rates) for point in method["points"]]
        method["range"] = {
            key: [_rounded(end * rates.get(key, 1)) for end in ends]
            for key, ends in method["range"].items()
        }
    assert run is not None
    native, target = run.model.native_window, run.rope.target_length
    within = native // (4 if native >= _LARGE_WINDOW else 2)
    tested = sorted(set(lengths or (within, min(2 * native, target), target)))
    if tested[-1] > target:
        raise ConfigError(
            f"--lengths: {tested[-1]} is beyond the target of {target} tokens; give shorter ones, "
            "or another rope.target_length"
        )
    inside, beyond = ([n for n in tested if (n <= native) == i] for i in (True, False))
    if not inside:
        raise ConfigError(
            f"--lengths: all are beyond the native window of {native} tokens, where the native "
            "model has no scores to compare with; add one that is not"
        )
    asked = {"validation": list(questions.validation), "test": list(questions.test)}
    halves: list[tuple[Split, list[int]]] = [
        ("validation", [*inside[-1:], *beyond[:1]]),
        ("test", tested),
    ]
    for split, chosen in halves:
        samples = questions.samples[split]
        number = [*samples, *[samples[-1]] * len(chosen)][: len(chosen)]
        asked[split] += [
            f"eval.ruler.lengths=[{','.join(map(str, chosen))}]",
            f"eval.ruler.samples=[{','.join(map(str, number))}]",
        ]
    about = {
        "label": f"{run.model.name}, {native:,} to {target:,} tokens",
        "settings": of_model,
        "native_window": native,
        **asked,
    }
    return Grid.of_plain(plain | {"models": {run.model.name: about}})


def _read(template: Path) -> tuple[dict[str, Any], Asked]:
    """The content of a template: the grid without a model, and what is asked.

    Raises:
        ConfigError: anything refused.
    """
    plain = read(template)
    if "models" in plain:
        raise ConfigError(f"--grid {template}: models: the settings of --own give it; leave it out")
    try:
        of_asked = {key: plain.pop(key) for key in ("samples", "validation", "test")}
        questions = strict.load_plain(Asked, of_asked)
        Grid.of_plain(plain | {"models": {}})
    except KeyError as error:
        raise ConfigError(f"--grid {template}: {error.args[0]}: it is missing") from error
    except ConfigError as error:
        raise ConfigError(f"--grid {template}: {error}") from error
    return plain, questions


def _first(setting: str) -> str:
    return setting.partition("=")[0].lstrip("+~").split(".")[0].split("@")[0]


def _times(point: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, float]:
    return {key: _rounded(value * rates.get(key, 1)) for key, value in point.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def cost(grid: Grid) -> str:
    """How many runs there will be, and what their training takes on this machine, by its plans.

    Raises:
        ConfigError: a method that does not fit.
    """
    [model] = grid.models.values()
    *_, scaling = grid.scalings.values()
    searched, tested, composer = 0, 0, loading.Composer("train")
    device, seconds = "", list[float]()
    for method in grid.methods.values():
        cells = grid.scalings_kept + len(method.scalings)
        number = cells * (len(method.points) + grid.proposed)
        typed = _typed(grid, model, method, scaling, grid.search_budget, method.points[0])
        run = loading.load(RunConfig, composer(typed))
        made = plan.make(run, world_size=run.launch.ranks)
        check_fits(made, run)
        searched, tested, device = searched + number, tested + cells, made.device.name
        if made.seconds is not None:
            seconds += [made.seconds] * (number + cells * (len(grid.seeds) - 1))
    runs = (
        f"{searched} searches of {grid.search_budget} tokens, of which the best of {tested} go on "
        f"with {len(grid.seeds)} seeds"
    )
    # Of a device that the plans do not know there are no seconds.
    minutes = f": {sum(seconds) / 60:,.0f} minutes of training by the plans" if seconds else ""
    return f"{runs}{minutes}, on {device}. Evaluations come on top."


def _typed(
    grid: Grid,
    model: Model,
    method: Method,
    scaling: Sequence[str],
    budget: str,
    params: Mapping[str, float],
) -> list[str]:
    """The settings of a run, as a command has them."""
    searched = [f"{key}={value:g}" for key, value in params.items()]
    return [
        *(*method.settings, *model.settings, *scaling, *grid.settings),
        *(*searched, f"budget={budget}"),
    ]


def begin(grid: Grid, results: Results) -> None:
    """Write what the rows of a folder are of, or compare: rows of two studies are never mixed.

    Args:
        grid: with all methods of the template.
        results: of the folder.

    Raises:
        ConfigError: the folder has rows of another model, text, scaling, method or evaluation.
    """
    [model] = grid.models.values()
    run = loading.compose(RunConfig, "train", model.settings)
    mine: dict[str, Any] = {
        "model and text": list(model.settings),
        "weights": identity(run.model),
        "settings of all runs": list(grid.settings),
        "validation": list(model.validation),
        "test": list(model.test),
    }
    mine |= {f"scaling {name}": list(settings) for name, settings in grid.scalings.items()}
    mine |= {f"method {name}": list(about.settings) for name, about in grid.methods.items()}
    file, earlier = results.folder / "study.json", dict[str, Any]()
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
    elif results.rows:
        raise ConfigError(f"--out: {results.file} has rows of another study; give another folder")
    used = {f"scaling {row['scaling']}" for row in results.rows}
    used |= {f"method {row['method']}" for row in results.rows if row["method"] != "untrained"}
    for key, value in earlier.items():
        if mine.get(key, value if key not in used else None) != value and results.rows:
            raise ConfigError(
                f"--out: {results.folder} has rows of another study, with other settings ({key}: "
                f"{value}): give these, or another folder with --out"
            )
    results.folder.mkdir(parents=True, exist_ok=True)
    write_json(file, earlier | mine)


def report(grid: Grid, results: Results) -> Path:
    """Write `report.md` with the answer, all tables and pictures; returns its path."""
    [model] = grid.models
    made = tables.regions(grid, results.rows, results.folder)
    drawn = pictured(results.rows, model)
    lines = [f"# Which recipe for {model}", "", *answer(grid, results.rows), ""]
    lines += further.whole(grid, model, made, drawn)
    images = results.folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    pictures.draw(grid, results.rows, images)
    file = results.folder / "report.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def answer(grid: Grid, rows: Sequence[Row]) -> Iterator[str]:
    """The best run on validation beside the best untrained scaling, and how to train it."""
    [(name, model)] = grid.models.items()
    known = untrained(rows, name)
    if not {grid.floor, *grid.tried} <= {row["scaling"] for row in known}:
        yield "Not all scalings are scored yet; the same command goes on."
        return
    alone = best(rows, known, grid.floor)
    assert alone is not None
    parts = zip(("short tasks", "RULER"), parts_of(rows, alone, grid.floor), strict=True)
    measures = [part for part, share in parts if share is not None]
    if not measures:
        yield "The native model is no better than the floor, so that nothing can be compared."
        return
    number = "The number is the mean of two shares of the native model, in short tasks and in RULER"
    if len(measures) == 1:
        number = f"The number is the share of the native model in {measures[0]}, the only part "
        number += "that it does anything in"
    yield (
        f"Best scaling without training on validation: `{alone['scaling']}`, "
        f"{_number(grid, rows, alone)}. {number}; 1 is as good as native."
    )
    runs = trained(rows, name)
    searches = phases.progress(grid, name, rows).values()
    going = any(done < of for done, of in searches)
    going |= any(job.phase == "whole" for job in phases.ready(grid, rows))
    top = best(rows, runs, grid.floor)
    if top is None:
        if runs and not going:
            yield ""
            yield (
                "Every trained model diverged: take the scaling alone, or give smaller rates "
                "(`points` in a copy of benchmarks/study/own.yaml)."
            )
        return
    method, scaling = grid.methods[top["method"]], grid.scalings[top["scaling"]]
    yield ""
    yield (
        f"Best trained model on validation{' so far' if going else ''}: {method.label} on "
        f"`{top['scaling']}`, {_number(grid, rows, top)}. To train it:"
    )
    yield ""
    typed = _typed(grid, model, method, scaling, top["budget"], top["params"])
    yield f"    {shlex.join(['python', '-m', 'src.train', *typed])}"
    if not going and (choice(rows, top, grid.floor) or 0.0) <= (
        choice(rows, alone, grid.floor) or 0.0
    ):
        yield ""
        yield "No training is above the scaling alone: take that, or more and other text."
    if any(row.get("test") for row in rows if row["method"] != "untrained"):
        yield ""
        yield "The tables of the test half say what is more than noise."


def _number(grid: Grid, rows: Sequence[Row], row: Row) -> str:
    number: Any = choice(rows, row, grid.floor)
    return f"{number:.3f}"
