"""Model families: what the program must know of a model that its config does not say.

A family is facts, never code that changes a model. A new file in this folder that defines `FAMILY`
is found here and may be named in `model.family`; a family without a file is treated as `unlisted`.
"""

from __future__ import annotations

import importlib
import pkgutil

from src.models.families.base import Family, LayerParts, parts_of

_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")

# Every listed family by its name.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (importlib.import_module(f"{__name__}.{name}").FAMILY for name in _MODULES)
}

# Families whose layers can be run in part (src/passes/skipping.py).
PLAIN_LAYER_FAMILIES = tuple(name for name, family in FAMILIES.items() if family.parts)


def family_of(name: str) -> Family:
    """A listed family, or the defaults under another name: LLaMA's layout, run whole."""
    return FAMILIES.get(name) or Family(name, model_type=name, parts=None)


def layer_parts(children: set[str]) -> LayerParts | None:
    """The layout that consists of just these modules; None if no listed family has it."""
    known = [family.parts for family in FAMILIES.values() if family.parts]
    return next((parts for parts in known if parts_of(parts) == children), None)


__all__ = ["FAMILIES", "PLAIN_LAYER_FAMILIES", "Family", "LayerParts", "family_of", "layer_parts"]
