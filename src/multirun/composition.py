"""Makes jobs of a command line and a file of `sweeps/`: Hydra's part of a sweep.

Every combination of the swept values is a job. Overrides win over the sweep's file: an override of
a key that the file sweeps replaces its values.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src import command, environment
from src.planning.plan import Plan
from src.settings import loading
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "sweeps"
# Each is composed and planned before the first one starts.
MOST_JOBS = 1000
# The name of a sweep without a file.
AD_HOC = "multirun"
# Settings of the whole sweep; the driver sets them for each job.
_OF_THE_SWEEP = ("sweeps", "dry_run", "prepare", "sweep_resume", "run_dir")

# Settings that do not make a run another one: its place, its launcher, its tracking. What follows
# from the budget is in the recipe.
_NOT_IDENTITY = ("run_dir", "resume", "dry_run", "allow_oversubscribe", "plan_for", "budget")
_NOT_IDENTITY += ("prepare", "tags", "tracking", "sweep", "sweep_resume")
# Hydra's name for a launcher, and the file with its settings.
_SLURM = ("hydra/launcher=submitit_slurm", "hydra/launcher=slurm")


@dataclass(frozen=True)
class Job:
    """One combination of the swept values."""

    number: int  # from 1, in the order of the command
    overrides: tuple[str, ...]  # all that compose it
    swept: tuple[str, ...]  # those in which it differs from the other jobs
    settings: RunConfig | None = None  # None if its config was refused
    refusal: str | None = None  # why it cannot run; None if it can
    plan: Plan | None = None  # its cost, once it is planned
    state: str | None = None  # its state so far; None if it was not looked up

    @property
    def label(self) -> str:
        """The overrides in which it differs from the other jobs, for people."""
        return " ".join(self.swept) or "no swept value"

    @cached_property
    def hash(self) -> str:
        """The hash that identifies it; only a job that can run has one."""
        assert self.settings is not None
        return identity(self.settings)


@dataclass(frozen=True)
class Sweep:
    """All jobs of a command."""

    name: str  # of its file, or `multirun`
    arguments: tuple[str, ...]  # overrides as typed
    jobs: tuple[Job, ...]  # in order; equal jobs appear once
    launcher: Mapping[str, Any]  # the composed `hydra.launcher`
    notes: tuple[str, ...]  # lines about what the user may not expect
    dry_run: bool  # only the plan is printed
    prepare: bool  # what the jobs read is fetched, and none runs
    resume: bool  # only jobs that are not finished run
    folder: Path | None  # `run_dir` of the command

    @property
    def able(self) -> list[Job]:
        """The jobs that can run."""
        return [job for job in self.jobs if job.refusal is None]

    @property
    def refused(self) -> list[Job]:
        """The jobs that cannot run."""
        return [job for job in self.jobs if job.refusal is not None]


def identity(settings: RunConfig) -> str:
    """SHA-256, in hexadecimal, of everything in a config that decides what a run computes.

    Two jobs with equal settings are the same job.
    """
    plain = {k: v for k, v in asdict(settings).items() if k not in _NOT_IDENTITY}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names() -> list[str]:
    """The sweeps that have a file."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.is_file())


def register() -> None:
    """Make `+sweeps=NAME` known to Hydra; the files lie beside `conf/`, not in it."""
    store = ConfigStore.instance()
    # Hydra copies the store, with all of its configs, for each group that `--help` lists. Nothing
    # changes a copy, and the store itself copies a config that it hands out.
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    for name in names():
        try:
            swept = parameters(name)
        except ConfigError:
            swept = {}  # a file that is still being written: `expand` refuses it, if it is chosen
        node = {"hydra": {"sweeper": {"params": swept}}}
        store.store(group="sweeps", name=name, node=node, package="_global_")


def wanted(argv: Sequence[str]) -> list[str] | None:
    """The overrides of a command line with `-m`; None without it.

    Hydra answers `--help` and similar options, also together with `-m`.

    Raises:
        ConfigError: an option that a sweep does not take.
    """
    options = [a for a in argv if a.startswith("-")]
    others = [o for o in options if o not in ("-m", "--multirun")]
    if options == others or any(o.split("=")[0] in _INFORMATION for o in others):
        return None
    if others:
        raise ConfigError(f"{others[0]}: a sweep takes overrides (KEY=VALUE) only")
    return [a for a in argv if not a.startswith("-")]


_INFORMATION = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
_INFORMATION |= {"--shell-completion", "-sc"}


def parameters(name: str) -> dict[str, str]:
    """The keys of a sweep's file, each with its values in the syntax of an override.

    Raises:
        ConfigError: there is no such file, or it has another form.
    """
    path = SWEEPS / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"+sweeps={name}: no such sweep; there are {', '.join(names())}")
    try:
        content = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {reason}; mend the file") from error
    match content:
        case {"hydra": {"sweeper": {"params": dict(params)}}} if params:
            return {str(key): str(value) for key, value in params.items()}
    raise ConfigError(f"{path}: a sweep's file holds hydra.sweeper.params, a mapping of keys")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; save it as UTF-8") from error


def expand(arguments: Sequence[str]) -> Sweep:
    """The sweep of a command line, with every job composed and checked.

    The jobs include those whose settings are refused, with the reason.

    Raises:
        ConfigError: the command line itself is refused.
        HydraException: it cannot be parsed, or Hydra's own settings cannot be composed.
    """
    overrides = _parsed(arguments)
    of_runs = [o for o in overrides if not o.is_hydra_override()]
    of_hydra = [_line(o).replace(*_SLURM) for o in overrides if o.is_hydra_override()]
    options = {key: _fixed(of_runs, key) for key in _OF_THE_SWEEP}
    folder = options["run_dir"]
    if (resumed := _fixed(of_runs, "resume")) is not None:
        raise ConfigError(
            f"resume={resumed} is for one run; a sweep is resumed by sweep_resume=true"
        )
    name = options["sweeps"]
    axes, notes = _axes(name, [o for o in of_runs if o.key_or_group not in _OF_THE_SWEEP])
    for key in ("dry_run", "prepare"):
        if _flag(options, key):
            axes.append(Axis(key, (f"{key}=true",), swept=False))
    jobs, more = _jobs(axes)
    launcher = _launcher(jobs, of_hydra)
    return Sweep(
        name=name or AD_HOC,
        arguments=tuple(arguments),
        jobs=jobs,
        launcher=launcher,
        notes=(*notes, *more),
        dry_run=_flag(options, "dry_run"),
        prepare=_flag(options, "prepare"),
        resume=_flag(options, "sweep_resume"),
        folder=None if folder is None else Path(folder),
    )


def axes_of(name: str, arguments: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes of a sweep's file with more overrides, and the values that these replace.

    Raises:
        ConfigError: there is no such file, or an override is not one of a run's settings.
    """
    overrides = _parsed(arguments)
    for override in overrides:
        if override.is_hydra_override() or override.key_or_group in _OF_THE_SWEEP:
            raise ConfigError(f"{override.input_line}: not a setting of a single run; leave it out")
    return _axes(name, overrides)


def question(name: str) -> str:
    """The question in the header of a sweep's file."""
    lines = _text(SWEEPS / f"{name}.yaml").splitlines()
    said = itertools.takewhile(lambda line: line.startswith("#"), lines)
    words = [line.lstrip("# ") for line in said]
    return " ".join(w for w in words if not w.startswith(("@package", "python -m")))


def _parsed(lines: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(lines))


def _fixed(typed: Sequence[Override], key: str) -> str | None:
    """The value of a key that is the same for all jobs; the last one typed counts."""
    value = None
    for override in typed:
        if override.key_or_group != key:
            continue
        if override.is_sweep_override():
            raise ConfigError(
                f"{key}={override.get_value_string()}: one value, the same for all jobs"
            )
        value = override.value()
    if isinstance(value, str) and "${" in value:
        # Hydra composes no config of a whole sweep, so this resolves only what needs none.
        value = loading.to_plain({key: value})[key]
    return None if value is None else str(value)


def _flag(options: Mapping[str, str | None], key: str) -> bool:
    value = (options[key] or "false").lower()
    if value not in ("true", "false"):
        raise ConfigError(f"{key}: {value!r}; allowed: true, false")
    return value == "true"


@dataclass(frozen=True)
class Axis:
    """The overrides of one key; each job has one of them."""

    key: str
    values: tuple[str, ...]
    swept: bool


def _axes(name: str | None, typed: Sequence[Override]) -> tuple[list[Axis], list[str]]:
    """One axis for each key; typed values replace those of the file."""
    file = {} if name is None else parameters(name)
    try:
        from_file = _parsed(f"{key}={value}" for key, value in file.items())
    except HydraException as error:
        raise ConfigError(
            f"{SWEEPS / f'{name}.yaml'}: {command.explain_hydra(error, RunConfig)}; each key of "
            "hydra.sweeper.params has its values as they are typed, such as seed: 1,2"
        ) from error
    axes = {axis.key: axis for axis in map(_axis, from_file)}
    notes = []
    for axis in map(_axis, typed):
        before = axes.get(axis.key)
        if before and before.swept and before.values != axis.values:
            new, old = (
                ",".join(line.partition("=")[2] for line in one.values) for one in (axis, before)
            )
            notes.append(f"{axis.key}: {new} in place of the sweep's own values {old}")
        axes[axis.key] = axis
    return list(axes.values()), notes


def _axis(override: Override) -> Axis:
    key = override.key_or_group
    if override.package is not None:
        key = f"{key}@{override.package}"
    if not override.is_sweep_override():
        return Axis(key, (_line(override),), swept=False)
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval has no values to run; list some")
    element = override.get_key_element()
    texts = itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1)
    values = tuple(f"{element}={text}" for text in texts)
    _check_number(len(values))
    return Axis(key, values, swept=True)


def _check_number(jobs: int) -> None:
    if jobs > MOST_JOBS:
        raise ConfigError(
            f"-m: the swept values make more than {MOST_JOBS:,} jobs; sweep over fewer values"
        )


def _line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _jobs(axes: Sequence[Axis]) -> tuple[tuple[Job, ...], list[str]]:
    jobs: list[Job] = []
    by_hash: dict[str, Job] = {}
    notes = []
    composer = loading.Composer("train")
    _check_number(math.prod(len(axis.values) for axis in axes))
    for values in itertools.product(*(axis.values for axis in axes)):
        swept = tuple(v for v, axis in zip(values, axes, strict=True) if axis.swept)
        job = _composed(Job(len(jobs) + 1, values, swept), composer)
        if job.settings is not None:
            equal = by_hash.setdefault(job.hash, job)
            if equal is not job:
                notes.append(f"{job.label} is the same run as {equal.label}; it runs once")
                continue
        jobs.append(job)
    return tuple(jobs), notes


def _composed(job: Job, composer: loading.Composer) -> Job:
    try:
        composed = composer(job.overrides)
        swept = tuple(_resolved(line, composed) for line in job.swept)
        return replace(job, swept=swept, settings=loading.load(RunConfig, composed))
    except ConfigError as error:
        return replace(job, refusal=str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return replace(job, refusal=command.explain_hydra(error, RunConfig))


def _resolved(line: str, composed: DictConfig) -> str:
    """An override for people, with interpolations replaced by their values."""
    key, _, value = line.partition("=")
    if "${" not in value:
        return line
    selected = OmegaConf.select(composed, key)
    plain = OmegaConf.to_container(selected) if OmegaConf.is_config(selected) else selected
    return environment.redacted(f"{key}={plain}")


def _launcher(jobs: Sequence[Job], overrides: Sequence[str]) -> dict[str, Any]:
    """`hydra.launcher`; it may refer to the settings of the first job that can run."""
    first = next((list(job.overrides) for job in jobs if job.settings is not None), [])
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf"), job_name="train"):
        composed = compose(
            "train", overrides=loading.completed([*first, *overrides]), return_hydra_config=True
        )
    plain = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
