"""Model families: facts about models that their configs do not state.

A family is facts, never code that changes a model. A file in this folder that defines `FAMILY` is
discovered, and `model.family` accepts its name. A family without a file is `unlisted`.
"""

from __future__ import annotations

from operator import attrgetter

from src import discovery
from src.models.families.base import Family, LayerParts, parts_of


def _problem(part: object) -> str | None:
    return None if isinstance(part, Family) else f"{part!r} is given; a Family is expected"


# Every listed family by its name.
FAMILIES: dict[str, Family] = discovery.parts(
    __name__, __path__, "FAMILY", _problem, key=attrgetter("name"), besides=("base",)
)

# Families whose layers can be run in part (src/passes/skipping.py).
PLAIN_LAYER_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.parts)


def family_of(name: str) -> Family:
    """A listed family, or the defaults under another name: LLaMA's layout, run whole."""
    unlisted = Family(name, model_type=name, parts=None, llama_operators=False)
    return FAMILIES.get(name) or unlisted


def family_of_type(model_type: str) -> Family:
    """The listed family of a config's `model_type`, or the defaults under its name."""
    listed = [each for each in FAMILIES.values() if each.model_type == model_type]
    return listed[0] if listed else family_of(model_type)


def layer_parts(children: set[str]) -> LayerParts | None:
    """The layout that consists of just these modules; None if no listed family has it."""
    layouts = [family.parts for family in FAMILIES.values() if family.parts]
    return next((parts for parts in layouts if parts_of(parts) == children), None)
