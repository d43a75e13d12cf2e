"""What the operator's tests share: an independent formula, masks, and forced small chunks.

`formula` is NumPy in float64, written from the definition: a Boolean matrix by loops over the rule
for visibility, log-sum-exp by row, and the closed-form gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.relation_kl import chunked


@dataclass(frozen=True)
class Masks:
    """A combination of masks, as plain tuples so that it can be a cache's key."""

    causal: bool = True
    window: int | None = None
    segments: tuple[tuple[int, ...], ...] | None = None
    real: tuple[tuple[bool, ...], ...] | None = None

    def arguments(self, device: str = "cpu") -> dict[str, object]:
        segments, real = self.segments, self.real
        return {
            "causal": self.causal,
            "window": self.window,
            "segment_ids": None if segments is None else torch.tensor(segments, device=device),
            "key_mask": None if real is None else torch.tensor(real, device=device),
        }


MASKS = (
    "causal",
    "full",
    "window",
    "segments",
    "padding",
    "segments-padding",
    "window-segments-padding",
    "full-segments-padding",
)


def make_masks(kind: str, batch: int, tokens: int) -> Masks:
    """Masks of a named kind; the last sequence of a padded batch of several is all padding."""
    parts = kind.split("-")
    random = np.random.default_rng(tokens)
    segments = real = None
    if "segments" in parts:
        cuts = random.integers(0, 3, size=(batch, tokens)).cumsum(axis=1) // 20
        segments = tuple(tuple(int(s) for s in row) for row in cuts)
    if "padding" in parts:
        keep = random.random((batch, tokens)) < 0.7
        keep[0, tokens // 2 :] = True
        if batch > 1:
            keep[-1] = False
        real = tuple(tuple(bool(r) for r in row) for row in keep)
    window = max(1, tokens // 3) if "window" in parts else None
    return Masks("full" not in parts, window, segments, real)


@lru_cache(maxsize=256)
def visible_matrix(masks: Masks, batch: int, tokens: int) -> np.ndarray:
    def sees(b: int, i: int, j: int) -> bool:
        return (
            (j <= i or not masks.causal)
            and (masks.window is None or i - j < masks.window)
            and (masks.segments is None or masks.segments[b][i] == masks.segments[b][j])
            and (masks.real is None or (masks.real[b][i] and masks.real[b][j]))
        )

    span = range(tokens)
    return np.array([[[sees(b, i, j) for j in span] for i in span] for b in range(batch)])


@dataclass(frozen=True)
class Expected:
    rows_bht: np.ndarray
    gradient_q: np.ndarray
    gradient_k: np.ndarray


def formula(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    masks: Masks,
    *,
    upstream: Tensor,
    scale: float | None = None,
    teacher_scale: float | None = None,
    temperature: float = 1.0,
) -> Expected:
    """KL rows, and the gradients of ``sum(upstream * rows)`` with respect to both student sides."""
    batch, heads, tokens, _ = q_student.shape
    visible = visible_matrix(masks, batch, tokens)[:, None]

    def spread(k: Tensor) -> np.ndarray:
        return np.repeat(k.detach().double().cpu().numpy(), heads // k.shape[1], axis=1)

    def log_probabilities(q: Tensor, k: Tensor, factor: float | None) -> np.ndarray:
        factor = q.shape[-1] ** -0.5 if factor is None else factor
        q_array = q.detach().double().cpu().numpy()
        scores = factor / temperature * np.einsum("bhid,bhjd->bhij", q_array, spread(k))
        peak = np.where(visible, scores, -np.inf).max(-1, keepdims=True)
        peak = np.where(np.isfinite(peak), peak, 0.0)
        exponentials = np.where(visible, np.exp(np.minimum(scores - peak, 0.0)), 0.0)
        total = exponentials.sum(-1, keepdims=True)
        return np.where(visible, scores - peak - np.log(np.where(total > 0, total, 1.0)), -np.inf)

    student = log_probabilities(q_student, k_student, scale)
    teacher = log_probabilities(q_teacher, k_teacher, teacher_scale)
    gap = np.where(visible, teacher, 0.0) - np.where(visible, student, 0.0)
    rows = (np.exp(teacher) * gap).sum(-1)
    factor = (q_student.shape[-1] ** -0.5 if scale is None else scale) / temperature
    g = factor * upstream.double().cpu().numpy()[..., None] * (np.exp(student) - np.exp(teacher))
    gradient_q = g @ spread(k_student)
    by_query_head = np.swapaxes(g, -1, -2) @ q_student.detach().double().cpu().numpy()
    key_heads = k_student.shape[1]
    grouped = by_query_head.reshape(batch, key_heads, heads // key_heads, tokens, -1)
    return Expected(rows, gradient_q, grouped.sum(2))


@pytest.fixture(name="formula")
def formula_fixture() -> Callable[..., Expected]:
    return formula


@pytest.fixture(name="make_masks")
def make_masks_fixture() -> Callable[[str, int, int], Masks]:
    return make_masks


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes many chunks of small inputs; the value is their largest number of scores."""
    largest = 4096
    monkeypatch.setattr(chunked, "_CHUNK_SCORES", {"cpu": largest, "cuda": largest})
    monkeypatch.setattr(chunked, "_CHUNK_ROWS", {"cpu": (8, 24), "cuda": (8, 24)})
    return largest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mask_kind" in metafunc.fixturenames:
        metafunc.parametrize("mask_kind", MASKS)
