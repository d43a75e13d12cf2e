"""Objectives are found by their file: each has a type of its own and the boundary takes it."""

from __future__ import annotations

import copy
import importlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from src import objectives
from src.objectives import OBJECTIVES
from src.objectives.base import Objective
from src.settings import strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError

FOLDER = Path(objectives.__file__).parent
SHARED = ("__init__", "base", "chunks", "weighted_sum")
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in SHARED)


def type_of(objective: type) -> str:
    """The one value its field `type` may have."""
    (name,) = typing.get_args(typing.get_type_hints(objective)["type"])
    return name


def objective_in(module: str) -> Any:
    return importlib.import_module(f"src.objectives.{module}").OBJECTIVE


def test_every_file_is_registered_once() -> None:
    assert MODULES
    assert [objective_in(m) for m in MODULES] == list(OBJECTIVES)


def test_types_are_unique() -> None:
    names = [type_of(o) for o in OBJECTIVES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("module", MODULES)
def test_an_objective_is_a_frozen_dataclass_that_can_be_made(module: str) -> None:
    assert is_dataclass(objective_in(module))
    found = objective_in(module)
    assert fields(found)[0].name == "type"
    with pytest.raises(FrozenInstanceError):
        found(type_of(found)).type = "other"
    assert issubclass(found, Objective)
    assert not inspect.isabstract(found)


@pytest.mark.parametrize("module", MODULES)
def test_the_boundary_takes_it_under_its_type(
    compose_plain: Callable[..., dict], module: str
) -> None:
    found = objective_in(module)
    plain = copy.deepcopy(compose_plain("model=tiny"))
    plain["objective"]["terms"]["mine"] = {"type": type_of(found)}
    run = strict.load_plain(RunConfig, plain)
    assert type(run.objective.terms["mine"]) is found


def test_the_boundary_names_all_types_when_it_refuses_one(
    compose_plain: Callable[..., dict],
) -> None:
    plain = copy.deepcopy(compose_plain("model=tiny"))
    plain["objective"]["terms"]["mine"] = {"type": "guess"}
    with pytest.raises(ConfigError, match="'guess' is not one of") as caught:
        strict.load_plain(RunConfig, plain)
    assert all(repr(type_of(o)) in str(caught.value) for o in OBJECTIVES)
