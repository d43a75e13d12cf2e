"""Trained state of every form of DeepSpeed's optimizer: saved, and loaded into any other."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from src.manifest import read_manifest, seal_folder
from src.run_folder import RunFolder
from src.training.checkpoint import config_sha256
from src.training.tensor_files import Part, SavedState, write
from tests.conftest import by_default, cut_after, losses

Train = Callable[..., Path]
RunHere = Callable[..., subprocess.CompletedProcess[str]]
ZERO = {stage: (f"engine.student.zero_stage={stage}",) for stage in range(4)}


@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@by_default(lambda stage, dtype: (stage, dtype) == (2, "bfloat16"))
def test_a_run_goes_on_with_the_same_bits(
    train_tiny: Train, run_here: RunHere, tmp_path: Path, stage: int, dtype: str
) -> None:
    whole = train_tiny(*ZERO[stage], f"engine.dtype={dtype}", "checkpoint.keep=9")
    cut = cut_after(whole, "step-2", tmp_path / "cut")
    done = run_here("src.train", f"resume={cut}")
    assert done.returncode == 0, done.stderr
    assert "from step 2" in done.stderr
    assert losses(cut) == losses(whole)
    assert losses(cut, "grad_norm") == losses(whole, "grad_norm")


@pytest.mark.parametrize("stage", ZERO)
@by_default(lambda stage: stage == 1)
def test_state_in_the_files_of_three_ranks_goes_on_with_the_same_bits(
    train_tiny: Train, run_here: RunHere, tmp_path: Path, stage: int
) -> None:
    """The files of a rank are divided as three would have written them.

    By default this stands for the next test.
    """
    whole = train_tiny(*ZERO[stage], "checkpoint.keep=9")
    cut = cut_after(whole, "step-2", tmp_path / "cut")
    folder = cut / "checkpoints" / "step-2"
    alone = load_file(folder / "rank-0000.safetensors")
    (folder / "rank-0000.safetensors").unlink()
    for rank in range(3):
        write(folder / f"rank-{rank:04d}.safetensors", list(third(alone, rank)))
    position = read_manifest(folder)["position"]
    (folder / "manifest.json").unlink()
    digest = config_sha256(RunFolder(cut).config())
    seal_folder(folder, position=position | {"world_size": 3}, config_sha256=digest)
    done = run_here("src.train", f"resume={cut}")
    assert done.returncode == 0, done.stderr
    assert "from step 2, on 1 ranks instead of 3" in done.stderr
    assert losses(cut) == losses(whole)


def third(alone: Mapping[str, Tensor], rank: int) -> Iterator[Part]:
    for key, flat in alone.items():
        kind, _, name = key.split("/", 2)
        start, end = (len(flat) * n // 3 for n in (rank, rank + 1))
        if end > start:
            yield Part(name, kind, start, flat[start:end])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ZERO)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
@pytest.mark.thorough
def test_another_number_of_ranks_goes_on_with_the_same_losses(
    train_tiny: Train, run_here: RunHere, tmp_path: Path, stage: int, before: int, after: int
) -> None:
    """It stops in the second stage, which trains all weights: shards cut them at odd places."""
    settings = (*ZERO[stage], "checkpoint.every_steps=5", "checkpoint.keep=9")
    whole = train_tiny(*settings, f"launch.nproc={before}")
    cut = cut_after(whole, "step-5", tmp_path / "cut")
    shutil.copytree(whole / "export-ard", cut / "export-ard")
    done = run_here("src.train", f"resume={cut}", f"launch.nproc={after}")
    assert done.returncode == 0, done.stderr
    assert f"from step 5, on {after} ranks instead of {before}" in done.stderr
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5, abs=1e-8)
    assert losses(cut, "tokens") == losses(whole, "tokens")
    with saved(cut, "step-6") as one, saved(whole, "step-6") as other:
        assert one.names() == other.names()
        assert float(one.read("updates", "", 0, 1)) == float(other.read("updates", "", 0, 1)) == 2
        name = "model.embed_tokens.weight"
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            pair = [state.read(kind, name, 5, 1000) for state in (one, other)]
            assert pair[0].allclose(pair[1], rtol=1e-3, atol=1e-6), kind


def saved(run: Path, checkpoint: str) -> SavedState:
    return SavedState(sorted((run / "checkpoints" / checkpoint).glob("rank-*")))
