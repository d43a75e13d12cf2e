"""A method as settings: stages in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from src.models.merging import MergeConfig
from src.training.schedule import StageConfig

# Names become parts of the names of folders.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}$")]


def _kind(stage: object) -> str:
    """The class of a stage, by what it holds; pydantic's messages then name the right keys."""
    merges = isinstance(stage, MergeConfig) or (isinstance(stage, dict) and "merge" in stage)
    return MergeConfig.__name__ if merges else StageConfig.__name__


AnyStage = Annotated[
    Annotated[StageConfig, Tag(StageConfig.__name__)]
    | Annotated[MergeConfig, Tag(MergeConfig.__name__)],
    Discriminator(_kind),
]


@dataclass(frozen=True)
class RecipeConfig:
    """A method: stages in order. A stage trains, or merges with the native model."""

    name: Name
    stages: Annotated[dict[Name, AnyStage], Field(min_length=1)]

    def __post_init__(self) -> None:
        first = next(iter(self.stages))
        if isinstance(self.stages[first], MergeConfig):
            raise ValueError(
                f"stages.{first} merges the model of the stage before it, and is the first: put a "
                "stage that trains before it"
            )

    @property
    def training(self) -> dict[str, StageConfig]:
        """The stages that train."""
        return {n: stage for n, stage in self.stages.items() if isinstance(stage, StageConfig)}
