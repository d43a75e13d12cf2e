"""Runs suites for both commands: which models, in which processes, and where results go.

A run's models are the native one, the scaled one and the export of each stage. `compare` adds the
final models of other runs. Suites run one after the other, in this process or in several ranks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from src import environment
from src.assets.cache import cache_dir
from src.assets.pins import AssetError
from src.data.documents import DataError
from src.evals.cache import ResultCache
from src.evals.seconds import SECONDS
from src.evals.suite import Candidate, Evaluation, EvaluationError, ResultTable, Suite
from src.evals.suites import SUITES
from src.models.config import FolderWeights, ModelConfig, ModelError
from src.models.families import family_of
from src.models.sources import check_available, identity
from src.planning.devices import check_processes, gpus, uses_cuda
from src.results import SuiteResults
from src.run_folder import RunFolder, RunFolderError, check_writable, write_json, write_whole
from src.settings import strict
from src.settings.config import EvaluateConfig, RunConfig
from src.settings.strict import ConfigError
from src.training import launch
from src.training.launch import World

if TYPE_CHECKING:
    from src.tracking import Tracker

# The folder for results of models by name.
BY_NAME = Path("outputs") / "evals"
# The name of the model that is scaled and not trained.
SCALED = "scaled"
# Among a suite's failures, the name of one that left nothing to evaluate.
_WHOLE = "all"


@dataclass(frozen=True)
class Evaluated:
    """Records by suite, failures by suite and task or model, notes on omitted suites, seconds."""

    records: Mapping[str, SuiteResults[Any]]
    failures: Mapping[str, Mapping[str, str]]
    notes: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def print(self, console: Console) -> None:
        """Print every suite's tables. Output that is not a terminal is wide enough for them."""
        if not console.is_terminal:
            console.width = max(console.width, 160)
        for name, record in self.records.items():
            for table in SUITES[name].tables(record):
                _print(table, console)
        for note in self.notes:
            console.print(note, highlight=False)
        if self.seconds:
            parts = sorted(self.seconds.items(), key=lambda item: -item[1])
            rows = (*parts, ("all", sum(self.seconds.values())))
            title, columns = "where the time went", ("part", "seconds")
            _print(ResultTable("seconds", title, columns, rows, ("", ".1f")), console)

    def report(self, tracker: Tracker) -> None:
        """Print, and give tables and figures to the tracker."""
        self.print(Console())
        for name, record in self.records.items():
            for table in SUITES[name].tables(record):
                tracker.log_table(table.name, table.columns, table.rows)
            tracker.summarize(_tracked(SUITES[name].summary(record), record))

    def check(self) -> None:
        """Raise an EvaluationError with a line for each failure, if anything failed.

        What failed for the same reason shares a line.
        """
        # By message: what failed, by suite; nothing where a whole suite did.
        places: dict[str, dict[str, list[str]]] = {}
        for suite, failed in self.failures.items():
            for what, message in failed.items():
                parts = places.setdefault(message, {}).setdefault(suite, [])
                if what != _WHOLE:
                    parts.append(what)
        lines: list[str] = []
        for message, suites in places.items():
            failed_here = [
                f"eval {suite}: {'; '.join(parts)}" if parts else f"eval {suite}"
                for suite, parts in suites.items()
            ]
            lines.append(f"{'; '.join(failed_here)}: {message}")
        if lines:
            raise EvaluationError("\n".join(lines))


def _tracked(summary: Mapping[str, float], record: SuiteResults[Any]) -> dict[str, float]:
    """A summary by names that do not change with the recipe and have no blanks.

    The last stage's model is `eval/final/SUITE/TASK`, others have their names.
    """
    final = f"eval/{record.final.name}/" if record.final else "eval/final/"
    return {
        key.replace(final, "eval/final/", 1).replace(" ", "_"): value
        for key, value in summary.items()
    }


def _print(shown: ResultTable, console: Console) -> None:
    table = Table(title=shown.title, title_justify="left")
    for position, column in enumerate(shown.columns):
        table.add_column(column, justify="right" if position else "left")
    for row in shown.rows:
        table.add_row(*shown.cells(row))
    console.print(table)
    for note in shown.notes:
        console.print(note, highlight=False)


def evaluate(settings: EvaluateConfig) -> Evaluated:
    """Run the chosen suites, here or, with several processes, in ranks of their own.

    Raises ConfigError if no suite is chosen, or a run to compare with has another base model;
    RunFolderError if the run has no exported model.
    """
    _check(settings)
    processes = _processes(settings)
    return _work(settings, World()) if processes == 1 else _in_ranks(settings, processes)


def _processes(settings: EvaluateConfig) -> int:
    """The number of processes that share the work."""
    if settings.nproc != "auto":
        return settings.nproc
    return len(gpus()) if uses_cuda(settings.device) else 1


def evaluate_finished(run: RunConfig, folder: RunFolder) -> Evaluated:
    """Evaluate a run at the end of its training, in the processes of its settings."""
    device = "cuda" if uses_cuda(run.engine.device) else "cpu"
    settings = EvaluateConfig(
        eval=run.eval,
        data=run.data,
        device=device,
        dtype=run.engine.dtype,
        fused_kernels=run.engine.fused_kernels,
        run=str(folder.path),
        nproc=run.launch.nproc if device == "cuda" else 1,
    )
    return _in_ranks(settings, _processes(settings))


def problems(run: RunConfig) -> list[str]:
    """The refusals of a run's suites, found before the run starts."""
    evaluation = Evaluation(
        candidates=_source_candidates(run),
        data=run.data,
        device="cuda" if uses_cuda(run.engine.device) else "cpu",
        dtype=run.engine.dtype,
        cache=ResultCache(None),
    )
    return [line for suite in run.eval.suites() for line in suite.problems(evaluation)]


def rank(request: Path) -> None:
    """One of the processes that share an evaluation; `request` is what `_in_ranks` wrote."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    settings = strict.load_plain(EvaluateConfig, environment.resolved(asked["settings"]))

    def work(world: World) -> None:
        with launch.joined(world, cuda=uses_cuda(settings.device)):
            results = _work(settings, world)
            launch.leave(world)
        if world.is_main:
            records = {name: record.plain() for name, record in results.records.items()}
            answer = asdict(replace(results, records=records))
            write_json(request.with_name("answer.json"), answer)

    launch.run_rank(work, Path(asked["logs"]))


def _in_ranks(settings: EvaluateConfig, nproc: int) -> Evaluated:
    logs = _target(settings) / "logs" / "evaluation"
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        request = Path(folder) / "request.json"
        asked = environment.all_redacted(asdict(settings))
        write_json(request, {"settings": asked, "logs": str(logs)})
        launch.spawn(["-m", "src.evals.rank", str(request)], nproc=nproc, logs=logs)
        answer = json.loads(request.with_name("answer.json").read_text(encoding="utf-8"))
    records = {
        name: SUITES[name].record.model_validate(plain) for name, plain in answer["records"].items()
    }
    return Evaluated(**answer | {"records": records})


def _check(settings: EvaluateConfig) -> None:
    chosen = settings.eval.suites()
    if not chosen:
        raise ConfigError(f"eval: no suite is chosen; allowed: {', '.join(SUITES)}")
    if settings.run is not None:
        run = _exported(Path(settings.run), "run")
        for other in settings.compare:
            _check_base(run, _exported(Path(other), "compare"))
    folders = [Path(other).resolve() for other in settings.compare]
    if twice := [str(folder) for folder in folders if folders.count(folder) > 1]:
        raise ConfigError(f"compare: {twice[0]} is given twice; leave one of them out")
    if settings.model is not None and settings.rope is not None and settings.model.name == SCALED:
        raise ConfigError(
            f"model.name={SCALED}: results call the model with another scaling so; give the model "
            "another name with model.name=NAME"
        )
    if settings.model is not None and settings.rope is None and all(s.needs_run for s in chosen):
        raise ConfigError(
            f"eval={chosen[0].name}: it compares a run's models with the native one, and "
            f"model={settings.model.name} is one model: give run=RUN_DIR instead"
        )
    if settings.fused_kernels is True:
        against = _why_not_fused(_base(settings), settings.device)
        if against is not None:
            raise ConfigError(f"fused_kernels: true, but {against}; use auto or false")
    target = _target(settings)
    check_writable(target, f"out={target}" if settings.out else str(target))
    check_processes(_processes(settings), "nproc")
    if settings.device == "cuda" and not uses_cuda("cuda"):
        raise ConfigError("device: cuda is asked for, but the driver shows no GPU; use cpu or auto")


def _why_not_fused(model: ModelConfig, device: Literal["auto", "cpu", "cuda"]) -> str | None:
    """What stands against fused kernels, if anything does."""
    family = family_of(model.family)
    if not family.llama_operators:
        return f"models of family {family.name} have other formulas than LLaMA's"
    return None if uses_cuda(device) else "this is a CPU"


def _base(settings: EvaluateConfig) -> ModelConfig:
    """The model that all evaluated ones come from."""
    if settings.model is not None:
        return settings.model
    return strict.load_plain(RunConfig, RunFolder.open(Path(str(settings.run))).config()).model


def _check_base(run: RunFolder, other: RunFolder) -> None:
    """Refuse a run of another base model, which has other tokens and another native model."""
    mine, theirs = (strict.load_plain(RunConfig, f.config()).model for f in (run, other))
    # Name, tuning and the implementation of attention may differ.
    facts = [f.name for f in fields(ModelConfig) if f.name not in ("name", "tuning", "attention")]
    differing = [fact for fact in facts if getattr(mine, fact) != getattr(theirs, fact)]
    if not differing or (differing == ["source"] and _same_weights(mine, theirs)):
        return
    raise ConfigError(
        f"compare={other.path} began with the model {theirs.name!r}, run={run.path} with "
        f"{mine.name!r}, and they differ in {', '.join(differing)}: scores are against one native "
        "model, so compare runs of the same"
    )


def _same_weights(*configs: ModelConfig) -> bool:
    """Whether models in different folders are the same, for example if a folder was moved."""
    if not all(isinstance(model.source, FolderWeights) for model in configs):
        return False
    try:
        return len({Candidate("native", "native", m).fingerprint for m in configs}) == 1
    except (ModelError, EvaluationError):
        return False


def _exported(path: Path, key: str) -> RunFolder:
    folder = RunFolder.open(path, key)
    if not folder.export().is_dir():
        raise RunFolderError(f"{key}={path} has no exported model: finish it with resume={path}")
    return folder


def _target(settings: EvaluateConfig) -> Path:
    """The folder whose evals/ (or, for a model by name, itself) takes the results."""
    if settings.run is not None:
        return Path(settings.run)
    assert settings.model is not None
    return Path(settings.out) if settings.out else BY_NAME / identity(settings.model)


def _work(settings: EvaluateConfig, world: World) -> Evaluated:
    """All suites, one after the other; only rank 0 writes."""
    evaluation = _evaluation(settings, world)
    target = _target(settings)
    folder = RunFolder(target).evals if settings.run is not None else target
    records: dict[str, SuiteResults[Any]] = {}
    failures: dict[str, Mapping[str, str]] = {}
    suites, notes = _suited(settings)
    SECONDS.parts.clear()
    for suite in suites:
        try:
            with SECONDS.of(f"{suite.name}: the rest"):
                outcome = suite.run(evaluation)
        except (EvaluationError, DataError, AssetError) as error:
            failures[suite.name] = {_WHOLE: str(error)}
            continue
        if (record := outcome.record) is not None:
            records[suite.name] = record
            _write(folder, record, outcome.items)
            if record.failures:
                failures[suite.name] = record.failures
    return Evaluated(records, failures, notes, dict(SECONDS.parts))


def _suited(settings: EvaluateConfig) -> tuple[list[Suite], list[str]]:
    """The suites that can be run, and a note for each other one.

    A model alone has no run, so suites that need one are left out if other suites are chosen
    (`eval=all`). If none is, they compare a model with itself under another scaling.
    """
    chosen = settings.eval.suites()
    able = [suite for suite in chosen if settings.run is not None or not suite.needs_run]
    if not able:
        return chosen, []
    notes = [
        f"eval={suite.name} is left out: it compares the models of a run; give run=RUN_DIR"
        for suite in chosen
        if suite not in able
    ]
    return able, notes


def _write(folder: Path, record: SuiteResults[Any], items: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = record.suite if record.split is None else f"{record.suite}.{record.split}"
    if record.limit is not None and _is_whole(folder / f"{name}.json"):
        # A quick look must not overwrite complete results.
        name = record.marked(record.suite, ".limit_")
    write_json(folder / f"{name}.json", environment.all_redacted(record.plain()))
    file = folder / f"{name}.items.jsonl"
    lines = [json.dumps(environment.all_redacted(item), allow_nan=False) + "\n" for item in items]
    if lines:
        write_whole(file, "".join(lines).encode())
    else:
        file.unlink(missing_ok=True)


def _is_whole(file: Path) -> bool:
    """Whether the file holds results of all items."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["limit"] is None
    except (OSError, ValueError, KeyError, TypeError):
        # An unreadable file may be overwritten.
        return False


def _evaluation(settings: EvaluateConfig, world: World) -> Evaluation:
    data = settings.data
    if settings.run is None:
        assert settings.model is not None
        check_available(settings.model)
        candidates = (Candidate(settings.model.name, "native", settings.model),)
        if settings.rope is not None:
            candidates += (Candidate(SCALED, "scaled", settings.model, settings.rope),)
    else:
        folder = RunFolder.open(Path(settings.run))
        run = strict.load_plain(RunConfig, folder.config())
        candidates = _run_candidates(run, folder, settings.stages)
        data = run.data
    for other in settings.compare:
        candidates += (_other_run(Path(other), {c.name for c in candidates}),)
    device, usual = ("cuda", "bfloat16") if uses_cuda(settings.device) else ("cpu", "float32")
    dtype = usual if settings.dtype == "auto" else settings.dtype
    fused = settings.fused_kernels
    if fused == "auto":
        against = _why_not_fused(candidates[0].model, settings.device)
        fused = dtype == "bfloat16" and against is None
    return Evaluation(
        candidates=candidates,
        data=data,
        device=device,
        dtype=dtype,
        fused=fused,
        cache=ResultCache(cache_dir() / "evals" if settings.cache else None),
        rank=world.rank,
        size=world.size,
    )


def _source_candidates(run: RunConfig) -> tuple[Candidate, ...]:
    return (
        Candidate("native", "native", run.model),
        Candidate(SCALED, "scaled", run.model, run.rope, run.student.folder),
    )


def _run_candidates(
    run: RunConfig, folder: RunFolder, stages: Literal["all", "last", "last_alone"]
) -> tuple[Candidate, ...]:
    names = list(run.recipe.stages)
    last = names[-1]
    sources = () if stages == "last_alone" else _source_candidates(run)
    return sources + tuple(
        Candidate(
            f"after {stage}",
            "final" if stage == last else "stage",
            run.model,
            run.rope,
            folder.export(None if stage == last else stage),
        )
        for stage in (names if stages == "all" else [last])
    )


def _other_run(path: Path, taken: set[str]) -> Candidate:
    """Another run's final model, under its method's name.

    If that name is taken, the run's id follows; of a copy of the run, which has its id, the folder.
    """
    folder = RunFolder.open(path)
    run = strict.load_plain(RunConfig, folder.config())
    method = run.recipe.name
    names = (method, f"{method} {folder.record()['run_id']}", f"{method} {path}")
    name = next(name for name in names if name not in taken)
    return Candidate(name, "comparison", run.model, run.rope, folder.export())
