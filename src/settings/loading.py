"""The boundary between YAML and the program: Hydra composes, `load` makes frozen dataclasses.

Nothing below this module sees Hydra or OmegaConf.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import os
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from src import discovery, environment
from src.models import own
from src.models.config import MOST_LAYERS, ModelError
from src.models.student import own_rope
from src.settings.strict import ConfigError, T, leaves, load_plain

_CONF = Path(__file__).resolve().parents[2] / "conf"


# Of a file's name, by Linux and macOS.
_LONGEST_NAME = 255


def _block(limit: int, tokens: int) -> int:
    """The largest power of two that neither number is below: blocks of it fill any step."""
    shortest = min(limit, tokens)
    return shortest if shortest < 1 else 2 ** int(math.log2(shortest))


def _target(window: int) -> int:
    """The target length by default: 32,768, where that is 2 to 8 times the native window."""
    return 8 * window if window < 4096 else 32_768 if window <= 16_384 else 4 * window


def _doubled(shortest: int, longest: int, tokens: int) -> list[int]:
    """Powers of two from one length to another, as far as `tokens` reach; at least one."""
    last = _block(longest, tokens)
    first = min(shortest, last)
    return [first << step for step in range((last // first).bit_length())]


# Variables that were asked for since it was last cleared, with their values.
_asked: dict[str, str] = {}


def _variable(name: str, *default: Any) -> Any:
    """The environment variable, which is kept out of all that is written."""
    value = oc.env(name, *default)
    if value is not None and os.environ.get(name) == value:
        _asked[name] = value
        environment.hide(value, environment.interpolation(name))
    return value


def _of_numbers(resolver: Callable[..., Any]) -> Callable[..., Any]:
    """The resolver, which gives a value that is no number back: it is refused where it is typed."""

    def resolved(*values: Any) -> Any:
        wrong = [value for value in values if not isinstance(value, int | float)]
        return wrong[0] if wrong else resolver(*values)

    return resolved


# Arithmetic in settings: `${times:4,${model.native_window}}`; and `${every:2,N}` for the indices of
# every second of N layers, counted back from the last one.
_RESOLVERS: dict[str, Callable[..., Any]] = {
    "times": operator.mul,
    "plus": operator.add,
    "larger": max,
    "block": _block,
    "target": _target,
    "doubled": _doubled,
    # A model of more layers is refused, but later than this list would have been made.
    "every": lambda step, count: list(range((count - 1) % step, min(count, MOST_LAYERS), step)),
}
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _of_numbers(_resolver), replace=True)
OmegaConf.register_new_resolver("oc.env", _variable, replace=True)


def completed(overrides: Sequence[str]) -> list[str]:
    """The overrides of a command, with the group that `model.path` or `model.repo` needs.

    Raises:
        ConfigError: both are given, another model is chosen too, or texts are chosen for a run.
    """
    keys = [line.partition("=")[0].lstrip("+") for line in overrides]
    texts = [line for line, key in zip(overrides, keys, strict=True) if key.split(".")[0] == "data"]
    if texts and "run" in keys:
        raise ConfigError(
            f"{texts[0]} is for model=NAME: a run is evaluated on its own held-out text; leave it "
            "out"
        )
    if "student.weights" in keys and "rope" not in keys:
        overrides = ["rope=own", *overrides]
    named = [key for key in ("model.path", "model.repo") if key in keys]
    if not named:
        return list(overrides)
    if len(named) > 1:
        raise ConfigError("model.path and model.repo exclude each other: give one of them")
    group = "folder" if named[0] == "model.path" else "hub"
    chosen = [line for line in overrides if line.startswith("model=")]
    if any(line != f"model={group}" for line in chosen):
        raise ConfigError(
            f"{chosen[0]} already says which model is meant, and {named[0]} names another: leave "
            "one of them out (model.source={type: folder, path: DIR} gives a listed model's place)"
        )
    return list(overrides) if chosen else [f"model={group}", *overrides]


def refuse_broken_parts() -> None:
    """Refuse files of objectives, scalings, families and suites that define none.

    Raises:
        ConfigError: there are some; one line for each.
    """
    if discovery.faults:
        raise ConfigError("\n".join(discovery.faults))


# What Hydra, OmegaConf and PyYAML raise at files that they cannot read or merge, beside Hydra's and
# OmegaConf's own errors.
UNREADABLE = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def explain_unreadable(error: Exception) -> str | None:
    """The message of such an error; None if our own code has raised it."""
    frames = traceback.walk_tb(error.__traceback__)
    names = [frame.f_globals["__name__"].partition(".")[0] for frame, _ in frames]
    readers = [name for name in names if name in ("src", "hydra", "omegaconf", "yaml")]
    if readers[-1:] in ([], ["src"]):
        return None
    loops = isinstance(error, RecursionError)
    reason = "it contains itself" if loops else " ".join(str(error).split())
    return (
        "a file of conf/ or sweeps/ that this command chooses cannot be read: "
        f"{reason}; mend the file"
    )


def hydra_message(error: Exception) -> str:
    """What an error of Hydra's or OmegaConf's says, or else its cause."""
    return (str(error) or str(error.__cause__)).partition("Config search path:")[0].strip()


class Composer:
    """Composes configs of one command as Hydra does: what they share is read once.

    Hydra reads and merges some twenty files for each config. Here a choice of files is composed
    once, and values are set in copies of it. A composer is for one moment: it does not see files
    of `conf/` that change later.
    """

    def __init__(self, command: str) -> None:
        """For `command`, the name of a file in `conf/`: `train`, `evaluate`."""
        # Hydra keeps what it has composed in the process; a caller's is given back.
        before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
        try:
            with initialize_config_dir(version_base="1.3", config_dir=str(_CONF), job_name=command):
                loader = GlobalHydra.instance().config_loader()
        finally:
            GlobalHydra.instance().hydra = before
        assert isinstance(loader, ConfigLoaderImpl)
        read = functools.cache(loader.repository.load_config)
        # Hydra changes what it has read.
        loader.repository.load_config = lambda config_path: copy.deepcopy(read(config_path))
        self._command, self._loader = command, loader
        self._of_files = functools.cache(self._compose)

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The config of overrides as typed, such as `+experiment=quickstart` or `seed=7`.

        Raises:
            ConfigError, HydraException, OmegaConfBaseException: anything refused.
        """
        parsed = OverridesParser.create().parse_overrides(completed(overrides))
        values: list[Override] = []
        files: list[str] = []
        for override in parsed:
            if self._is_value(override):
                values.append(override)
            else:
                files.append(str(override.input_line))
        try:
            config = copy.deepcopy(self._of_files(*files))
        except (HydraException, OmegaConfBaseException):
            raise
        except UNREADABLE as error:
            if (message := explain_unreadable(error)) is None:
                raise
            raise ConfigError(message) from error
        self._loader._apply_overrides_to_config(values, config)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a value, and chooses no file of a group; Hydra's own rule."""
        if override.is_hydra_override() or override.is_sweep_override():
            return False
        is_group = self._loader.repository.group_exists(override.key_or_group)
        return not is_group or isinstance(override.value(), dict)

    def _compose(self, *overrides: str) -> DictConfig:
        config = self._loader.load_configuration(
            self._command, list(overrides), run_mode=RunMode.RUN, from_shell=False
        )
        with open_dict(config):
            del config["hydra"]
        return config


def compose(cls: type[T], command: str, overrides: Sequence[str]) -> T:
    """Settings as a command composes them from what is typed behind it.

    Args:
        cls: the dataclass of the command's settings.
        command: the name of its file in `conf/`: `train`, `evaluate`.
        overrides: as typed, such as `+experiment=quickstart` or `seed=7`.

    Raises:
        ConfigError: anything refused.
    """
    refuse_broken_parts()
    try:
        return load(cls, Composer(command)(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_message(error)) from error


def load(cls: type[T], config: DictConfig | Mapping[str, Any]) -> T:
    """Turn a composed config into the frozen dataclass `cls`.

    Raises:
        ConfigError: anything refused; one line for each fault.
    """
    try:
        return load_plain(cls, to_plain(config), lambda: _interpolated(config))
    except ConfigError as error:
        message = environment.redacted(str(error))
        raise ConfigError(message) from (error if message == str(error) else None)


def _interpolated(config: DictConfig | Mapping[str, Any]) -> set[str]:
    """The keys of a composed config whose values are interpolations, by dotted path."""
    created = OmegaConf.create(config)  # type: ignore[arg-type]  # a DictConfig is accepted too
    values = leaves(OmegaConf.to_container(created))
    return {path for path, value in values if isinstance(value, str) and "${" in value}


def to_plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A composed config with its interpolations resolved, as plain containers.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation does not resolve.
    """
    created = OmegaConf.create(config)  # type: ignore[arg-type]  # a DictConfig is accepted too
    _check_names(OmegaConf.to_container(created))
    try:
        _hide_variables(created)
        _complete(created)
        plain = OmegaConf.to_container(created, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        if isinstance(error, MissingMandatoryValue):
            raise ConfigError(f"{key}: a value is missing; give {key}=VALUE") from error
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}; give it a value") from error
    assert isinstance(plain, dict)
    _check_names(plain)
    return typing.cast("dict[str, Any]", plain)


def _hide_variables(node: DictConfig | ListConfig, path: str = "") -> None:
    """Let texts that variables are part of be written with their interpolations."""
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        where = f"{path}.{key}" if path else str(key)
        if not OmegaConf.is_interpolation(node, key):
            if not OmegaConf.is_missing(node, key) and OmegaConf.is_config(node[key]):
                _hide_variables(node[key], where)
            continue
        _asked.clear()
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue  # it may need what the model's own config says; else it is refused later
        if not _asked:
            continue
        asked = {text: environment.interpolation(name) for name, text in _asked.items()}
        written = value
        if isinstance(value, str):
            for text in sorted(filter(None, asked), key=len, reverse=True):
                written = written.replace(text, asked[text])
            environment.hide(value, written)
        # The key is the node's own, which the type of a container does not say.
        direct = "oc.env" in str(OmegaConf.to_container(node)[key])  # type: ignore[index]
        several = direct and not isinstance(value, (str, int, float, bool))
        if several or (isinstance(value, str) and written == value):
            raise ConfigError(
                f"{where}: it is made of the environment variable {next(iter(_asked))} by a "
                "resolver, so its text could not be kept out of what is written: refer to the "
                f"variable itself, {next(iter(asked.values()))}, or type the value"
            )


def _check_names(value: Any, path: str = "") -> None:
    """Refuse names that no file can have: to ask whether such a file is there fails already."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_names(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_names(inner, f"{path}[{number}]")
    elif isinstance(value, str) and "\\${oc.env:" in value:
        raise ConfigError(f"{path}: {value!r}: write ${{oc.env:NAME}} without a backslash, or no $")
    elif isinstance(value, str) and "${" not in value:
        longest = max(value.split("/"), key=len)
        if len(os.fsencode(longest)) > _LONGEST_NAME:
            raise ConfigError(
                f"{path}: {longest[:40]}... has {len(longest)} characters; a name has at most "
                f"{_LONGEST_NAME} bytes between slashes: give a shorter one"
            )


def _complete(config: DictConfig) -> None:
    """Fill in what follows from the model's own config, in place: other settings refer to it."""
    weights = OmegaConf.select(config, "student.weights")
    if weights is not None and not isinstance(weights, str):
        raise ConfigError(f"student.weights: a text is expected (got {str(weights)[:80]})")
    _check_names(weights, "student.weights")
    rope = config.get("rope")
    stated = rope if isinstance(rope, DictConfig) and rope.get("type") == "own" else None
    if stated is not None and weights is None and stated.get("parameters") is None:
        raise ConfigError(
            "rope=own is the RoPE of the student's own checkpoint: give student.weights=DIR, or "
            "another scaling"
        )
    if stated is not None and weights is not None:
        OmegaConf.set_struct(config, value=False)
        try:
            for key, value in own_rope(str(weights)).items():
                stated[key] = stated[key] if stated[key] is not None else value
        except ModelError as error:
            raise ConfigError(str(error)) from error
    model = config.get("model")
    if not isinstance(model, DictConfig) or ("path" not in model and "repo" not in model):
        return
    plain = OmegaConf.to_container(model, resolve=True)
    assert isinstance(plain, dict)
    for key in ("path", "repo"):
        if not isinstance(plain.get(key), str | None):
            raise ConfigError(f"model.{key}: a text is expected (got {str(plain[key])[:80]})")
    _check_names(plain, "model")
    try:
        OmegaConf.set_struct(config, value=False)
        config.model = own.completed(typing.cast("dict[str, Any]", plain))
    except ModelError as error:
        raise ConfigError(str(error)) from error
