"""A run's budget: one number of tokens for any method, split over its stages.

Several stages split it in proportion to the recipe's own tokens. Each stage but the last is rounded
to whole blocks, and the last takes the remainder, so the sum is exact. A mixture keeps its pattern
and ends on the exact token (src/training/schedule.py). The size of a stage's steps depends on its
tokens, and is decided here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated

from pydantic import PlainValidator

from src.models.config import MOST_TOKENS
from src.settings.strict import refused_at
from src.training.schedule import StageConfig, StageSchedule

# Tokens as a number, or in units of 2**20 as in papers: 4.25M = 4,456,448, 256M = 2**28. Any type
# is accepted here, so that `tokens_of` refuses all wrong values with the same message.
Budget = Annotated[int | str, PlainValidator(lambda written: written)]

_UNIT = 2**20


def tokens_of(budget: Budget) -> int:
    """The budget as a number of tokens.

    Raises:
        ValueError: not a whole number of tokens, or not written as one.
    """
    tokens = Fraction(0)
    if isinstance(budget, int) and not isinstance(budget, bool):
        tokens = Fraction(budget)
    elif isinstance(budget, str) and (units := re.fullmatch(r"(\d+(?:\.\d+)?)M", budget)):
        tokens = Fraction(units[1]) * _UNIT
    if not 0 < tokens <= MOST_TOKENS or tokens.denominator != 1:
        raise ValueError(
            f"budget={str(budget)[:80]!r}: give tokens as a whole number above 0 and up to "
            f"{MOST_TOKENS:.0e} (4456448), or in units of 2**20 that make one (4.25M, 256M)"
        )
    return int(tokens)


def applied(stages: Mapping[str, StageConfig], budget: Budget | None) -> dict[str, StageConfig]:
    """The stages with their tokens and step sizes decided. A second call changes nothing.

    Args:
        budget: of all stages together; None leaves each stage its own tokens.

    Raises:
        ValueError: a budget that is malformed or too small, that does not fit a stage, or that
            would end a stage on a block of a single token.
    """
    if budget is None:
        return _decided(stages, {name: stage.tokens for name, stage in stages.items()})
    total = tokens_of(budget)
    decided = _decided(stages, split(total, stages))
    if (stage := _ends_badly(decided)) is not None:
        # One token fewer or more avoids this, unless it changes the stages' shares too.
        near = [t for t in (total - 1, total + 1, total + 2) if _works(t, stages)][:2]
        raise ValueError(
            f"budget={budget} gives stage {stage} {decided[stage].tokens} tokens, which end on a "
            f"block of a single token: give {' or '.join(map(str, near))}"
        )
    return decided


def _works(total: int, stages: Mapping[str, StageConfig]) -> bool:
    try:
        return _ends_badly(_decided(stages, split(total, stages))) is None
    except ValueError:
        return False


def _ends_badly(stages: Mapping[str, StageConfig]) -> str | None:
    """The first stage whose last block would have a single token; None if there is none."""
    for name, stage in stages.items():
        try:
            StageSchedule(stage)
        except ValueError:
            return name
    return None


def _decided(
    stages: Mapping[str, StageConfig], tokens: Mapping[str, int]
) -> dict[str, StageConfig]:
    """The stages at these tokens, with the sizes of their steps."""
    decided: dict[str, StageConfig] = {}
    for name, stage in stages.items():
        with refused_at(f"recipe.stages.{name}."):
            decided[name] = stage.of_size(tokens[name])
    return decided


def split(total: int, stages: Mapping[str, StageConfig]) -> dict[str, int]:
    """Tokens of each stage, in proportion to the recipe's tokens; they add up to `total`.

    Raises:
        ValueError: too few for one block of each stage.
    """
    recipe = sum(stage.tokens for stage in stages.values())
    if recipe == total:
        return {name: stage.tokens for name, stage in stages.items()}
    *earlier, last = stages
    units = {name: max(s.length for s in stages[name].streams.values()) for name in stages}
    shares: dict[str, int] = {}
    for name in earlier:
        ideal = Fraction(total * stages[name].tokens, recipe)
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
