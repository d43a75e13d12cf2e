"""The same sweep for W&B's agents, which run it from its server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from src.multirun import composition

_HEADER = """\
# Written by python -m src.sweep export {name}. On the server's side:
#   wandb sweep --project PROJECT FILE
#   wandb agent ENTITY/PROJECT/SWEEP_ID      in this repository's root, on any number of machines
"""


def export(name: str, arguments: Sequence[str]) -> str:
    """The text of a W&B sweep's YAML file: a grid over the values of `sweeps/NAME.yaml`.

    `arguments` are more overrides; one on a swept key replaces its values.

    Raises:
        ConfigError: there is no such sweep, or an override belongs to the command that runs one.
    """
    axes, _ = composition.axes_of(name, arguments)
    content: Mapping[str, Any] = {
        "name": name,
        "description": f"sweeps/{name}.yaml",
        "method": "grid",
        "command": [
            "${env}",
            "${interpreter}",
            "-m",
            "src.train",
            *(line for axis in axes if not axis.swept for line in axis.values),
            "tracking=wandb_online",
            f"tracking.group={name}",
            "${args_no_hyphens}",
        ],
        # W&B asks for a program; the command above does not use it.
        "program": "src/train.py",
        "parameters": {
            axis.values[0].partition("=")[0]: {
                "values": [_number(line.partition("=")[2]) for line in axis.values]
            }
            for axis in axes
            if axis.swept
        },
    }
    return _HEADER.format(name=name) + yaml.safe_dump(dict(content), sort_keys=False)


def _number(text: str) -> int | float | str:
    """Numbers as numbers, so that W&B draws them on an axis; other values as they are typed."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
