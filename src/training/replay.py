"""What a step has read, kept for whoever looks into why its numbers were not finite."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from src.run_folder import write_json
from src.training.loop import StageRun
from src.training.schedule import Piece


def keep_batch(folder: Path, run: StageRun, step: int) -> Path:
    """Write all blocks of a step, of all ranks, with their documents and ids; returns the file.

    The file of an earlier step of the stage is replaced.

    Args:
        folder: is made if it is missing.
        run: of the stage.
        step: of the stage, counted from 0.
    """
    folder.mkdir(exist_ok=True)
    blocks = [
        asdict(read)
        | {"ids": run.batches.tokens(Piece(read.stream, read.block, read.tokens)).tolist()}
        for read in run.reads(step)
    ]
    file = folder / f"{run.name}.json"
    write_json(file, {"stage": run.name, "step": step + 1, "seed": run.seed, "blocks": blocks})
    return file
