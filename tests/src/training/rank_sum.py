"""A rank that a launcher starts: it joins the others, and rank 0 writes what it has seen.

`python -m tests.src.training.rank_sum FILE`, and the options that the launcher adds.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import distributed

from src.training import launch


def main(arguments: list[str]) -> None:
    """Add up the ranks' numbers, counted from 1."""
    added = [a for a in arguments if a.startswith("-")]
    (target,) = set(arguments) - set(added)
    world = launch.world_from_environment(os.environ)
    assert world is not None
    with launch.joined(world, cuda=False):
        total = torch.tensor(world.rank + 1)
        distributed.all_reduce(total)
        launch.leave(world)
    if world.is_main:
        seen = {"world": asdict(world), "sum": total.item(), "added": added}
        Path(target).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1:])
