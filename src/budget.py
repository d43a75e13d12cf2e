"""A run's budget: one number of tokens for any method, shared out over its stages.

A method with several stages splits it by the proportion of the recipe's own tokens; each stage but
the last is rounded to whole blocks, and the last takes what is left, so that the sum is exact. A
mixture keeps its pattern and ends on the exact token (src/schedule.py). What then depends on a
stage's tokens, the size of its steps, is decided here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated

from pydantic import Field

from src.schedule import StageConfig

# Tokens as a number, or in units of 2**20 as papers write them: 4.25M = 4,456,448, 256M = 2**28.
Budget = Annotated[int, Field(gt=0)] | str

_UNIT = 2**20


def tokens_of(budget: Budget) -> int:
    """The budget as a number of tokens.

    Raises:
        ValueError: not a whole number of tokens, or not written as one.
    """
    if isinstance(budget, int):
        return budget
    found = re.fullmatch(r"(\d+(?:\.\d+)?)M", budget)
    tokens = Fraction(found[1]) * _UNIT if found else Fraction(0)
    if tokens <= 0 or tokens.denominator != 1:
        raise ValueError(
            f"budget={budget!r}: give tokens as a whole number (4456448) or in units of 2**20 that "
            "make one (4.25M, 256M)"
        )
    return int(tokens)


def applied(stages: Mapping[str, StageConfig], budget: Budget | None) -> dict[str, StageConfig]:
    """The stages with their tokens and step sizes decided; done twice it changes nothing more.

    Args:
        stages: the recipe's.
        budget: of all stages together; None leaves each stage its own tokens.

    Raises:
        ValueError: a budget that is malformed or too small, or a stage that does not fit it.
    """
    tokens = {name: stage.tokens for name, stage in stages.items()}
    if budget is not None:
        tokens = split(tokens_of(budget), stages)
    decided: dict[str, StageConfig] = {}
    for name, stage in stages.items():
        try:
            decided[name] = stage.of_size(tokens[name])
        except ValueError as error:
            raise ValueError(f"recipe.stages.{name}.{error}") from error
    return decided


def split(total: int, stages: Mapping[str, StageConfig]) -> dict[str, int]:
    """Tokens of each stage, in proportion to the recipe's own; they add up to `total`.

    Raises:
        ValueError: too few for one block of each stage.
    """
    whole = sum(stage.tokens for stage in stages.values())
    if whole == total:
        return {name: stage.tokens for name, stage in stages.items()}
    *earlier, last = stages
    units = {name: max(s.length for s in stages[name].streams.values()) for name in stages}
    shares: dict[str, int] = {}
    for name in earlier:
        ideal = Fraction(total * stages[name].tokens, whole)
        shares[name] = max(1, round(ideal / units[name])) * units[name]
    shares[last] = total - sum(shares.values())
    # The last block may be cut short; one token of it would predict nothing.
    if shares[last] < 2:
        least = sum(units[name] for name in earlier) + 2
        raise ValueError(
            f"budget={total} tokens leaves {max(0, shares[last])} for stage {last}: give at least "
            f"{least}"
        )
    return shares
