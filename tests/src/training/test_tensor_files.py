"""Parts of tensors on disk: any range is put together again, whatever the parts were."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.training.tensor_files import Part, SavedState, total_bytes, write


def divided(flat: torch.Tensor, ends: list[int], folder: Path) -> list[Path]:
    """A file for each stretch between two ends."""
    paths = []
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        paths.append(folder / f"rank-{number}.safetensors")
        write(paths[-1], [Part("a/b.weight", "weight", start, flat[start:end])])
    return paths


@pytest.mark.parametrize("ends", [[0, 10], [0, 3, 10], [0, 1, 2, 9, 10]], ids=len)
def test_any_range_is_read_from_any_division(tmp_path: Path, ends: list[int]) -> None:
    flat = torch.arange(10.0)
    with SavedState(divided(flat, ends, tmp_path)) as saved:
        assert saved.names() == {"a/b.weight"}
        for start in range(10):
            for length in range(1, 11 - start):
                read = saved.read("weight", "a/b.weight", start, length)
                assert read.equal(flat[start : start + length])


@pytest.mark.parametrize("wanted", [(0, 10), (2, 3), (9, 2)])
def test_what_is_missing_is_not_made_up(tmp_path: Path, wanted: tuple[int, int]) -> None:
    first, _, last = divided(torch.arange(10.0), [0, 3, 5, 10], tmp_path)
    with SavedState([first, last]) as saved, pytest.raises(KeyError, match="are not there"):
        saved.read("weight", "a/b.weight", *wanted)


def test_the_file_is_safetensors_and_its_digest_was_taken_on_the_way(tmp_path: Path) -> None:
    parts = [Part("w", "weight", 0, torch.ones(3)), Part("w", "exp_avg", 0, torch.zeros(3))]
    digest = write(tmp_path / "file", parts)
    assert total_bytes(parts) == 24
    assert load_file(tmp_path / "file")["weight/0/w"].tolist() == [1, 1, 1]
    content = (tmp_path / "file").read_bytes()
    assert digest == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
