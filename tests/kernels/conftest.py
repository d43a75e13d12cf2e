"""Kernel tests start from poisoned memory: what an operator forgets to write shows as NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        allocated = allocate(*args, **kwargs)
        if allocated.is_floating_point():
            with torch.no_grad():
                allocated.fill_(float("nan"))
        return allocated

    return allocate_poisoned


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests' tensors are small: a thread pool costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
