"""The boundary between YAML and the program: Hydra composes, `load` makes frozen dataclasses.

Nothing below this module sees Hydra or OmegaConf.
"""

from __future__ import annotations

import operator
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.settings.strict import ConfigError, T, load_plain

# Arithmetic in settings: `${times:4,${model.native_window}}`; and `${every:2,N}` for the indices of
# every second of N layers, counted back from the last one.
OmegaConf.register_new_resolver("times", operator.mul, replace=True)
OmegaConf.register_new_resolver("larger", max, replace=True)
OmegaConf.register_new_resolver(
    "every", lambda step, count: list(range((count - 1) % step, count, step)), replace=True
)


def load(cls: type[T], config: DictConfig | Mapping[str, Any]) -> T:
    """Turn a composed config into the frozen dataclass `cls`.

    Raises:
        ConfigError: anything refused; one line for each fault.
    """
    return load_plain(cls, to_plain(config))


def to_plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A composed config with its interpolations resolved, as plain containers.

    Raises:
        ConfigError: a mandatory value is missing, or an interpolation does not resolve.
    """
    try:
        plain = OmegaConf.to_container(
            OmegaConf.create(config),  # type: ignore[arg-type]  # a DictConfig is accepted too
            resolve=True,
            throw_on_missing=True,
        )
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{key}: {reason}; give it a value") from error
    assert isinstance(plain, dict)
    return typing.cast("dict[str, Any]", plain)
