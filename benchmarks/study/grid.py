"""What the study runs: models, scalings, methods and what is searched of them, budgets, seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field

from src.settings import strict
from src.settings.strict import ConfigError

Settings = tuple[str, ...]
Params = Mapping[str, float]
Phase = Literal["untrained", "search", "baseline", "whole", "final", "ablation", "measure"]
# What a model may have in place of the grid's.
_IN_PLACE = ("search_budget", "budget", "larger", "proposed", "seeds", "headline", "halved")
_IN_PLACE += ("untrained_only",)


@dataclass(frozen=True)
class Method:
    """A method: an experiment and what is searched of it.

    Attributes:
        label: its name in tables.
        settings: of `src.train`.
        range: by key the lowest and the highest value that may be proposed.
        points: settings that are tried first, the same number for every method.
        scalings: that it is tried on, besides those that are kept.
    """

    label: str
    settings: Settings
    range: Mapping[str, tuple[float, float]]
    points: Annotated[tuple[Mapping[str, float], ...], Field(min_length=1)]
    scalings: Settings = ()

    def __post_init__(self) -> None:
        for point in self.points:
            if point.keys() != self.range.keys():
                raise ValueError(f"points: {dict(point)} must set {', '.join(self.range)}")
            for key, value in point.items():
                low, high = self.range[key]
                if not low <= value <= high:
                    raise ValueError(f"points: {key}={value} is outside {low} to {high}")


@dataclass(frozen=True)
class Ablation:
    """A method's best settings with one part left out or changed.

    Attributes:
        label: its name in tables.
        of: the method.
        settings: of `src.train`, in place of the method's.
        without: searched keys that are left out.
        scaling: in place of the method's.
    """

    label: str
    of: str
    settings: Settings
    without: Settings = ()
    scaling: str | None = None


@dataclass(frozen=True)
class Change:
    """What a model changes of a method.

    Attributes:
        settings: of `src.train`, added to the method's: lengths of blocks, for example.
        points: in place of the method's.
        scalings: that it is tried on, besides those that are kept.
    """

    settings: Settings = ()
    points: tuple[Mapping[str, float], ...] | None = None
    scalings: Settings = ()


@dataclass(frozen=True)
class Model:
    """A model with its text and target length, and what is its own in the study.

    Attributes:
        settings: of `src.train` and `src.evaluate`.
        native_window: in tokens.
        label: its name in headings.
        validation, test, measures: settings of the evaluations.
        scalings: names of the only ones that it is tried with; null: all.
        methods: the only ones, in the order in which they run, with what it changes of them,
            and without ablations; null: all as they are.
        search_budget, budget, larger, proposed, seeds, headline, halved, untrained_only: in place
            of the grid's.
    """

    settings: Settings
    native_window: int
    label: str = ""
    validation: Settings = ()
    test: Settings = ()
    measures: Settings = ()
    scalings: Settings | None = None
    methods: Mapping[str, Change] | None = None
    search_budget: str | None = None
    budget: str | None = None
    larger: str | None = None
    proposed: Annotated[int, Field(ge=0)] | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    headline: Settings | None = None
    halved: bool | None = None
    untrained_only: Settings | None = None


@dataclass(frozen=True)
class Grid:
    """The whole study.

    Attributes:
        models, scalings, methods: by name; a scaling is a list of settings. `of` gives what a
            model has of them.
        floor: the scaling whose untrained model is the floor of the gap.
        rival: the method that the others' differences are from.
        headline: methods of the first table; their cells on the floor are shown too.
        search_budget, budget: tokens, as `budget=` takes them. If both are equal, the best of the
            search are the finalists.
        larger: tokens that the measured methods run with besides, to show where more of them lead;
            null: none. No finalist has them.
        proposed: settings that Optuna proposes after the listed points.
        seeds: of the final runs; the search has the first.
        scalings_kept: how many scalings all methods are tried on.
        halved: only the better half of what was searched runs with the whole budget, and no
            method must; the others' best searches are their finalists.
        untrained_only: scalings that are scored, and on which nothing is trained. If the best of
            them beats the best other one, it is tested too.
        settings: of every training run.
        ablations: by name; a name is not a method's.
        measured: methods whose best model is asked `eval=measures`.
        further: models beside the first that README.md shows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = strict.STRICT

    models: Mapping[str, Model]
    scalings: Mapping[str, Settings]
    methods: Mapping[str, Method]
    floor: str
    rival: str
    headline: Settings
    search_budget: str
    budget: str
    proposed: Annotated[int, Field(ge=0)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    scalings_kept: Annotated[int, Field(ge=1)]
    larger: str | None = None
    halved: bool = False
    untrained_only: Settings = ()
    settings: Settings = ()
    ablations: Mapping[str, Ablation] = field(default_factory=dict)
    measured: Settings = ()
    further: Settings = ()

    def __post_init__(self) -> None:
        named = {self.floor, *(s for m in self.methods.values() for s in m.scalings)}
        named |= {about.scaling for about in self.ablations.values() if about.scaling}
        named |= set(self.untrained_only)
        if unknown := named - self.scalings.keys():
            raise ValueError(f"scalings: {sorted(unknown)} are named and not listed")
        if len({len(method.points) for method in self.methods.values()}) > 1:
            raise ValueError("methods: all must have the same number of points, to be fair")
        if unknown := set(self.further) - self.models.keys():
            raise ValueError(f"further: {sorted(unknown)} are named and not listed")
        if both := self.methods.keys() & self.ablations.keys():
            raise ValueError(f"ablations: {sorted(both)} are names of methods")
        for name, about in self.models.items():
            self._check(name, about)
            if about.methods is not None or about.scalings is not None:
                self.of(name)

    def _check(self, model: str, about: Model) -> None:
        """Refuse names of a model that the grid does not have."""
        named = {
            "scalings": (about.scalings or (), self.scalings),
            "untrained_only": (about.untrained_only or (), self.scalings),
            "methods": (about.methods or (), self.methods),
            "headline": (about.headline or (), self.methods),
        }
        for key, (names, known) in named.items():
            if unknown := set(names) - known.keys():
                raise ValueError(
                    f"models.{model}.{key}: {sorted(unknown)} are named and not listed"
                )

    def only(self, models: Sequence[str] | None, methods: Sequence[str] | None) -> Grid:
        """The study of some models and methods; None for all.

        Raises:
            ConfigError: a name that the grid does not have.
        """
        asked = (("models", models, self.models), ("methods", methods, self.methods))
        for key, names, known in asked:
            if unknown := set(names or ()) - known.keys():
                raise ConfigError(
                    f"--{key}={','.join(sorted(unknown))}: give some of {', '.join(known)}"
                )
        kept = self.methods if methods is None else {n: self.methods[n] for n in methods}

        def narrowed(about: Model) -> Model:
            own = about.methods and {n: c for n, c in about.methods.items() if n in kept}
            shown = about.headline and tuple(n for n in about.headline if n in kept)
            return replace(about, methods=own, headline=shown)

        shown = {name: narrowed(self.models[name]) for name in models or self.models}
        further = tuple(name for name in self.further if name in shown)
        return replace(self, models=shown, methods=kept, further=further)

    def of(self, model: str) -> Grid:
        """The study of one model, with what is its own."""
        about = self.models[model]
        own: dict[str, Any] = {
            key: value for key in _IN_PLACE if (value := getattr(about, key)) is not None
        }
        if about.scalings is not None:
            names = (*about.scalings, *(about.untrained_only or self.untrained_only))
            own["scalings"] = {name: self.scalings[name] for name in names}
        if about.methods is not None:
            own["ablations"] = {}
            own["methods"] = {
                name: replace(
                    self.methods[name],
                    settings=(*self.methods[name].settings, *change.settings),
                    points=change.points or self.methods[name].points,
                    scalings=change.scalings,
                )
                for name, change in about.methods.items()
            }
        nothing = dict.fromkeys(("scalings", "methods", *_IN_PLACE))
        return replace(self, models={model: replace(about, **nothing)}, further=(), **own)

    @property
    def tried(self) -> list[str]:
        """The scalings that methods may be tried on."""
        return [name for name in self.scalings if name not in self.untrained_only]

    def heading(self, model: str) -> str:
        """A model's name in headings."""
        return self.models[model].label or model

    def trained(self, name: str) -> Method | Ablation:
        """The method or the ablation of a name."""
        return self.methods[name] if name in self.methods else self.ablations[name]

    @classmethod
    def load(cls, path: Path) -> Grid:
        """Read a grid's YAML file.

        Raises:
            ConfigError: anything refused.
        """
        return cls.of_plain(read(path))

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> Grid:
        """The grid of a file's content.

        Raises:
            ConfigError: anything refused.
        """
        made = strict.load_plain(cls, plain)
        named = {"rival": [made.rival], "headline": made.headline, "measured": made.measured}
        for key, names in named.items():
            if unknown := set(names) - made.methods.keys():
                raise ConfigError(
                    f"{key}: {', '.join(sorted(unknown))}: no such method; there are: "
                    f"{', '.join(made.methods)}"
                )
        return made


def read(path: Path) -> dict[str, Any]:
    """The content of a grid's YAML file.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--grid {path} cannot be read: {reason}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"--grid {path} holds no settings: begin with a copy of own.yaml")
    return plain


@dataclass(frozen=True)
class Job:
    """One run: an evaluation without training, or a training run with its evaluations.

    Attributes:
        phase: `untrained` and `baseline` train nothing; `baseline` and `final` are tested.
        model, scaling: names of the grid.
        method: name of a method or an ablation; `untrained` where nothing is trained.
        budget: tokens; empty where nothing is trained.
        params: of the search.
        seed: of the run.
    """

    phase: Phase
    model: str
    scaling: str
    method: str = "untrained"
    budget: str = ""
    params: Params = field(default_factory=dict)
    seed: int = 0

    @property
    def about(self) -> dict[str, Any]:
        """What identifies it, as its row has it."""
        return {**vars(self), "params": dict(sorted(self.params.items()))}

    @property
    def name(self) -> str:
        """Its name in messages and results."""
        return f"{self.run}-{self.phase}"

    @property
    def run(self) -> str:
        """The name of its folder: phases that train the same share it."""
        trained = {k: v for k, v in self.about.items() if k != "phase"}
        digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()
        return "-".join([self.model, self.scaling, self.method, digest[:8]])

    @property
    def cell(self) -> tuple[str, str, str]:
        """Model, scaling and method."""
        return self.model, self.scaling, self.method
