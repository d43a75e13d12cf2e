"""What the loop and an objective say to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from src.facts import ModelFacts


class QKV(Protocol):
    """Attention inputs of one layer: q [b, h, t, d], k and v [b, g, t, d] (g key-value heads)."""

    @property
    def q_bhtd(self) -> Tensor: ...
    @property
    def k_bgtd(self) -> Tensor: ...
    @property
    def v_bgtd(self) -> Tensor: ...


@dataclass(frozen=True)
class Needs:
    """What an objective wants.

    Q, k, v of `qkv_layers`, the output head, and whether a teacher runs.
    """

    teacher: bool
    qkv_layers: tuple[int, ...] = ()
    head: bool = False


class Batch(NamedTuple):
    """Token blocks of equal length without padding: ids [b, t], int64."""

    input_ids_bt: Tensor


@dataclass
class Outputs:
    """What a model's forward pass left behind.

    Attributes:
        hidden_bth: last hidden states after the final norm, [b, t, hidden].
        qkv: attention inputs by layer.
        head: maps hidden states [..., hidden] to logits [..., vocabulary].
    """

    hidden_bth: Tensor | None = None
    qkv: dict[int, Any] = field(default_factory=dict)
    head: Callable[[Tensor], Tensor] | None = None


class Objective(Protocol):
    """A training signal."""

    # Blocks longer than this model's native window make the teacher's side meaningless.
    bounded_by_native_window: bool

    def needs(self, facts: ModelFacts) -> Needs:
        """What to collect. Raises ValueError where the settings don't fit the model."""
        ...

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """Extra work on a block of `tokens`, forward and backward, for the plan.

        Returns:
            floating-point operations.
        """
        ...

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss (a mean over the batch's blocks) and detached metrics by name."""
        ...
