"""The study of a user's own model and text: own.yaml, with that model's rates and lengths.

    python -m benchmarks.study --own model.path=DIR data=files 'data.paths=[texts/]'

Every method is searched on validation and tested with its best settings, as in the project's own
study. `report.md` has the tables, and the command that trains the winner.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.study import further, pictures, tables
from benchmarks.study.grid import Grid, Method, Model
from benchmarks.study.running import Results
from benchmarks.study.scores import Row, best, choice, pictured, trained, untrained
from src.planning import plan
from src.planning.advice import check_fits
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
    for setting in settings:
        key = setting.partition("=")[0].lstrip("+~")
        if key in _TAKEN or key.split(".")[0] in _TAKEN_GROUPS:
            raise ConfigError(
                f"--own {setting}: the study sets {key} itself; give the model, the text and the "
                "target (rope.target_length), or change a copy of benchmarks/study/own.yaml and "
                "name it with --grid"
            )
    plain = yaml.safe_load(template.read_text(encoding="utf-8"))
    of_model = [setting for setting in settings if _first(setting) in _OF_MODELS]
    plain["settings"] += [setting for setting in settings if _first(setting) not in _OF_MODELS]
    samples = plain.pop("samples")
    asked = {split: plain.pop(split) for split in ("validation", "test")}
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
    for split, chosen in (("validation", tested[:2]), ("test", tested)):
        number = [*samples[split], *[samples[split][-1]] * len(chosen)][: len(chosen)]
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
    return strict.load_plain(Grid, plain | {"models": {run.model.name: about}})


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
    if {row["scaling"] for row in known} < set(grid.scalings):
        yield "Not all scalings are scored yet; the same command goes on."
        return
    alone = best(rows, known, grid.floor)
    assert alone is not None
    yield (
        f"Best scaling without training on validation: `{alone['scaling']}`, "
        f"{_number(grid, rows, alone)}. The number is the mean of two shares of the native model, "
        "in short tasks and in RULER; 1 is as good as native."
    )
    top = best(rows, trained(rows, name), grid.floor)
    if top is None:
        return
    method, scaling = grid.methods[top["method"]], grid.scalings[top["scaling"]]
    yield ""
    yield (
        f"Best trained model on validation: {method.label} on `{top['scaling']}`, "
        f"{_number(grid, rows, top)}. To train it:"
    )
    yield ""
    typed = _typed(grid, model, method, scaling, top["budget"], top["params"])
    yield f"    {shlex.join(['python', '-m', 'src.train', *typed])}"
    if (choice(rows, top, grid.floor) or 0.0) <= (choice(rows, alone, grid.floor) or 0.0):
        yield ""
        yield (
            "No training is above the scaling alone: take that, or more and other text. The table "
            "of the test half says what is more than noise."
        )


def _number(grid: Grid, rows: Sequence[Row], row: Row) -> str:
    number: Any = choice(rows, row, grid.floor)
    return f"{number:.3f}"
