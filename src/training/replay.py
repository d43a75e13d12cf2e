"""What a step has read, kept for whoever looks into why its numbers were not finite."""

from __future__ import annotations

from pathlib import Path

from src.run_folder import write_json
from src.training.loop import StageRun


def keep_batch(folder: Path, run: StageRun, step: int) -> Path:
    """Write all blocks of a step, of all ranks, with their documents and ids; returns the file.

    The file of an earlier step of the stage is replaced.

    Args:
        step: of the stage, counted from 0.
    """
    folder.mkdir(exist_ok=True)
    blocks = [
        {
            "stream": piece.stream,
            "block": piece.block,
            "documents": list(run.batches.blocks[piece.stream].documents(piece.block)),
            "tokens": piece.tokens,
            "ids": run.batches.tokens(piece).tolist(),
        }
        for piece in run.schedule.pieces(step)
    ]
    file = folder / f"{run.name}.json"
    write_json(
        file, {"stage": run.name, "step": step + 1, "seed": run.batches.seed, "blocks": blocks}
    )
    return file
