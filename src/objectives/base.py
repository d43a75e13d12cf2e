"""What the loop and an objective say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import ValidationError, ValidatorFunctionWrapHandler
from torch import Tensor

from src.models.facts import ModelFacts


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

    Attributes:
        teacher: whether a teacher runs.
        qkv_layers: `Objective.layer` is called at these, with their attention inputs.
        hidden: last hidden states, of the teacher too where there is one.
        head: the student's output head, and the hidden states it is for.
        hidden_layers: hidden states after so many layers, of the teacher too where there is one: 0
            is the embeddings. (After all of them, past the final norm: `hidden`.)
        teacher_head: the teacher's output head; goes with `hidden`.
    """

    teacher: bool
    qkv_layers: tuple[int, ...] = ()
    hidden: bool = False
    head: bool = False
    hidden_layers: tuple[int, ...] = ()
    teacher_head: bool = False

    @property
    def stops_at(self) -> int | None:
        """The layer after whose attention inputs nothing is wanted; None if all is."""
        if self.hidden or self.head:
            return None
        # The hidden states after n layers are the input of layer n (from 0), so a pass ends there.
        return max((*self.qkv_layers, *self.hidden_layers), default=None)

    @property
    def teacher_stops_at(self) -> int | None:
        """As `stops_at`, of the teacher: its head is no reason to run to the end."""
        return replace(self, head=False).stops_at


class Batch(NamedTuple):
    """Token blocks of equal length without padding, or one rank's part of them.

    Attributes:
        input_ids_bt: [b, t], int64.
        position_ids_bt: the student's positions, [b, t], int64, strictly increasing; None for 0,
            1, 2, ... (of a part: `first` and those after it). The teacher always has those.
        parts: ranks that the blocks' tokens are spread over, t on each (src/training/sequence.py).
        first: where in its block the first token of this part stands.
        next_ids_bt: of parts, the token after each one, [b, t], int64; -100 where none follows.
    """

    input_ids_bt: Tensor
    position_ids_bt: Tensor | None = None
    parts: int = 1
    first: int = 0
    next_ids_bt: Tensor | None = None

    @property
    def contiguous_bt(self) -> Tensor | None:
        """Positions without skips, [b, t], where a model must be told: of a part of blocks."""
        if self.parts == 1:
            return None
        b, t = self.input_ids_bt.shape
        device = self.input_ids_bt.device
        return torch.arange(self.first, self.first + t, device=device).repeat(b, 1)


@dataclass
class Outputs:
    """What a model's forward pass left behind.

    Attributes:
        hidden_bth: last hidden states after the final norm, [b, t, hidden]; None where they are
            not wanted.
        layers: what `Objective.layer` gave at each layer (student).
        qkv: gives a layer's attention inputs when they are wanted (teacher).
        head: maps hidden states [..., hidden] to logits [..., vocabulary].
        hidden_layers_bth: hidden states by the number of layers before them, [b, t, hidden].
    """

    hidden_bth: Tensor | None = None
    layers: Mapping[int, Any] = field(default_factory=dict)
    qkv: Mapping[int, Callable[[], QKV]] = field(default_factory=dict)
    head: Callable[[Tensor], Tensor] | None = None
    hidden_layers_bth: Mapping[int, Tensor] = field(default_factory=dict)


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

    def layer(self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts) -> Any:
        """What is computed of a layer where its attention inputs are born, if any is wanted.

        It should be small, tensors of a few numbers: it outlives the layer, whose inputs do not.
        Gradient checkpointing calls this again for the backward pass.
        """
        ...

    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss (a mean over the batch's blocks) and detached metrics by name."""
        ...


def list_or_word(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """For fields that take a word or a list of indices: one message for both.

    Raises:
        ValueError: the value is neither.
    """
    try:
        # Strict validation takes a list for a tuple in JSON alone, which this is no longer.
        return handler(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        words = next(d["msg"] for d in error.errors() if d["type"] == "literal_error")
        words = words.removeprefix("Input should be ")
        raise ValueError(
            f"give {words}, or a list of indices greater than or equal to 0, such as [0,3] "
            f"(got {value!r})"
        ) from error


@runtime_checkable
class OwnMetricRoot(Protocol):
    """An objective whose metrics are named otherwise than `TYPE` and `TYPE/...`."""

    def metric_root(self, facts: ModelFacts) -> str:
        """What they are named in place of its type."""
        ...


def metric_root(objective: Objective, facts: ModelFacts) -> str:
    """What an objective's metrics are named: this, or this and a slash and more."""
    if isinstance(objective, OwnMetricRoot):
        return objective.metric_root(facts)
    return getattr(objective, "type", type(objective).__name__)


@runtime_checkable
class Spreadable(Protocol):
    """An objective that can be computed on blocks whose tokens are spread over ranks.

    `layer` then gets whole blocks' attention inputs for this rank's share of the heads, `loss` the
    hidden states of this rank's part of the tokens. A mean over heads or tokens needs no change:
    the mean of the ranks' losses is the loss, all shares being equal.
    """

    def needs_whole_blocks(self) -> str | None:
        """The setting with which it cannot, such as `last_tokens=512`; None if it can."""
        ...


@runtime_checkable
class Demanding(Protocol):
    """An objective that not every block or device will do for."""

    def check(self, length: int, *, cuda: bool) -> None:
        """Refuse what it cannot be computed on, before anything is loaded.

        Args:
            length: tokens of the stream's blocks.
            cuda: whether training is on a GPU.

        Raises:
            ValueError: the message begins with the setting's name.
        """
        ...


@runtime_checkable
class DriftChosen(Protocol):
    """An objective that may choose layers by how far the scaling moves their attention.

    Until it has been shown that, its `needs` are those of as many layers, for the plan's sake.
    """

    @property
    def awaits_drift(self) -> bool:
        """Whether `with_drift` must come before training."""
        ...

    def with_drift(self, kl_by_layer: Sequence[float]) -> Objective:
        """The objective with its layers chosen.

        Args:
            kl_by_layer: KL(native || scaled) of each layer's attention rows, before training.
        """
        ...


@runtime_checkable
class Composed(Protocol):
    """An objective made of others: (name, objective, weight) each."""

    parts: tuple[tuple[str, Objective, float], ...]


def streams_apart(
    objectives: Mapping[str, tuple[str, Objective]], facts: ModelFacts
) -> set[tuple[str, str]]:
    """Where two streams would log different things under one name.

    Args:
        objectives: of each stream, with its name.
        facts: of the model.

    Returns:
        (stream, root of metrics' names) for each of them: one of the streams has under that root
        another term than the other has, or the same one with other layers.
    """
    by_root: dict[str, dict[str, list[tuple[str, Objective]]]] = {}
    for stream, (name, objective) in objectives.items():
        terms = [(name, objective)]
        if isinstance(objective, Composed):
            terms = [(part, own) for part, own, _ in objective.parts]
        for term, own in terms:
            streams = by_root.setdefault(metric_root(own, facts), {})
            streams.setdefault(stream, []).append((term, own))
    return {
        (stream, root)
        for root, streams in by_root.items()
        for stream, own in streams.items()
        if any(own != others for others in streams.values())
    }
