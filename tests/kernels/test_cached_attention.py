"""One token's attention over a cache is softmax attention over the keys that it sees."""

from __future__ import annotations

import pytest
import torch

from kernels import cached_attention as module
from kernels.cached_attention import cached_attention, supports

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def attended(
    query_rnd: torch.Tensor,
    key_rsd: torch.Tensor,
    value_rsd: torch.Tensor,
    keys: list[int],
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Row by row, in float64."""
    rows = []
    for row, end in enumerate(keys):
        seen = slice(0 if window is None else max(0, end - window), end)
        query, key, value = (x.double() for x in (query_rnd[row], key_rsd[row], value_rsd[row]))
        scores = query @ key[seen].T * (scale or query.shape[-1] ** -0.5)
        rows.append(scores.softmax(-1) @ value[seen])
    return torch.stack(rows)


@pytest.mark.parametrize("window", [None, 24, 64])
@pytest.mark.parametrize(("heads", "size"), [(3, 64), (1, 16), (16, 32)])
def test_every_row_attends_to_its_own_keys(
    heads: int, size: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART_KEYS", 128)
    keys = [1, 8, 128, 129, 191, 192]
    query = torch.randn(len(keys), heads, size, device=DEVICE)
    key, value = (torch.randn(len(keys), 192, size, device=DEVICE) for _ in range(2))
    # What a row does not see may be anything.
    for row, end in enumerate(keys):
        key[row, end:] = value[row, end:] = float("nan")
    numbers = torch.tensor(keys, dtype=torch.int32, device=DEVICE)
    scale = None if size == 64 else 0.3
    found = cached_attention(query, key, value, numbers, scale=scale, window=window)
    wanted = attended(query, key, value, keys, scale, window)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [16, 64, 128])
def test_half_precision_is_as_near_as_its_own_rounding(size: int) -> None:
    keys = [1, 1000, 1024, 1025, 3000, 4096]
    query = torch.randn(len(keys), 3, size, device="cuda", dtype=torch.bfloat16)
    key, value = (
        torch.randn(len(keys), 4096, size, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    numbers = torch.tensor(keys, dtype=torch.int32, device="cuda")
    found = cached_attention(query, key, value, numbers)
    wanted = attended(query, key, value, keys, None, None)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)


def test_heads_of_odd_sizes_or_too_many_are_not_supported() -> None:
    assert supports(3, 64)
    assert supports(16, 128)
    assert not supports(17, 64)
    assert not supports(1, 80)
