"""The interface between the loop and an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError, ValidatorFunctionWrapHandler

from src.models.facts import ModelFacts

if TYPE_CHECKING:
    from torch import Tensor, device


class QKV(NamedTuple):
    """Attention inputs of one layer, after RoPE: q [b, h, t, d], k and v [b, g, t, d].

    Attributes:
        segment_ids_bt: which document each token of whole blocks belongs to; None if each block is
            of one.
    """

    q_bhtd: Tensor
    k_bgtd: Tensor
    v_bgtd: Tensor
    segment_ids_bt: Tensor | None = None


@dataclass(frozen=True)
class Needs:
    """What an objective needs of the models.

    Attributes:
        teacher: whether a teacher runs. `qkv_layers`, `hidden` and `hidden_layers` are then needed
            of both models. Its blocks must fit into the native window.
        qkv_layers: layers at which `Objective.layer` is called with their attention inputs.
        hidden: last hidden states, after the final norm.
        head: the student's output head, and the hidden states that it maps.
        hidden_layers: hidden states after this many layers; 0 stands for the embeddings. (`hidden`
            is what comes after all layers.)
        teacher_head: the teacher's output head; goes with `hidden`.
        teacher_chunk: the teacher reads a block of more tokens in chunks of this many, an even
            number, which overlap by half (src/passes/chunks.py); None if it reads blocks whole.
    """

    teacher: bool
    qkv_layers: tuple[int, ...] = ()
    hidden: bool = False
    head: bool = False
    hidden_layers: tuple[int, ...] = ()
    teacher_head: bool = False
    teacher_chunk: int | None = None

    @property
    def stops_at(self) -> int | None:
        """The last layer whose attention inputs the student computes; None for a whole pass."""
        if self.hidden or self.head:
            return None
        # The hidden states after n layers are the input of layer n (from 0), so a pass ends there.
        return max((*self.qkv_layers, *self.hidden_layers), default=None)

    @property
    def teacher_stops_at(self) -> int | None:
        """As `stops_at`, for the teacher, which the student's head does not concern."""
        return replace(self, head=False).stops_at


class Segments(NamedTuple):
    """The documents of packed blocks. None of them sees another one's tokens.

    Attributes:
        ids_bt: number of each token's segment, ascending from 0, of whole blocks [b, t * parts],
            int32.
        positions_bt: the place of each token in its segment, [b, t], int64.
        starts_n: where each segment of all blocks begins in their row of b * t * parts tokens,
            ascending, int32. Its size is fixed; places that are left over hold the row's length.
    """

    ids_bt: Tensor
    positions_bt: Tensor
    starts_n: Tensor


class Batch(NamedTuple):
    """Token blocks of equal length without padding, or this rank's part of them.

    Attributes:
        input_ids_bt: [b, t], int64.
        position_ids_bt: the student's positions, [b, t], int64, strictly increasing within each
            document; None for contiguous positions, which the teacher always has.
        parts: number of ranks that share each block's tokens, t each (src/training/sequence.py).
        first: index in its block of this part's first token.
        next_ids_bt: the token after each one, [b, t], int64; -100 where none follows in the same
            document, or where it is not to be learnt. None if it follows from `input_ids_bt`.
        segments: the documents of packed blocks; None if each block is of one document.
        predicted: what a sum over the tokens of `next_ids_bt` is divided by, a scalar: the step's
            mean number of such tokens for as many blocks, or parts of blocks, as these. So the
            loss of a step is the mean over its predicted tokens. None if every block has as many.
    """

    input_ids_bt: Tensor
    position_ids_bt: Tensor | None = None
    parts: int = 1
    first: int = 0
    next_ids_bt: Tensor | None = None
    segments: Segments | None = None
    predicted: Tensor | None = None

    @property
    def contiguous_bt(self) -> Tensor | None:
        """Contiguous positions, [b, t], in each document; None for 0, 1, 2, ... in whole blocks."""
        if self.segments is not None:
            return self.segments.positions_bt
        if self.parts == 1:
            return None
        import torch

        b, t = self.input_ids_bt.shape
        device = self.input_ids_bt.device
        return torch.arange(self.first, self.first + t, device=device).repeat(b, 1)


@dataclass
class Outputs:
    """What a model's forward pass gives to an objective.

    Attributes:
        hidden_bth: last hidden states after the final norm, [b, t, hidden]; None if not needed.
        layers: the student's results of `Objective.layer`, by layer.
        qkv: functions that return the teacher's attention inputs, by layer.
        head: maps hidden states [..., hidden] to logits [..., vocabulary].
        hidden_layers_bth: hidden states [b, t, hidden], by the number of layers before them.
    """

    hidden_bth: Tensor | None = None
    layers: Mapping[int, Any] = field(default_factory=dict)
    qkv: Mapping[int, Callable[[], QKV]] = field(default_factory=dict)
    head: Callable[[Tensor], Tensor] | None = None
    hidden_layers_bth: Mapping[int, Tensor] = field(default_factory=dict)

    def after(self, number: int, facts: ModelFacts) -> Tensor:
        """Hidden states after so many layers, [b, t, hidden]; after all, also after the norm."""
        if number < facts.layers:
            return self.hidden_layers_bth[number]
        assert self.hidden_bth is not None
        return self.hidden_bth

    @property
    def last(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The last hidden states and the head, of a pass that was asked for both."""
        assert self.hidden_bth is not None
        assert self.head is not None
        return self.hidden_bth, self.head


class Objective(ABC):
    """A training signal. Subclasses must define `needs` and `loss`.

    Attributes:
        type: its name in configs. Each class narrows it to one literal.
        parts: (name, objective, weight) of each objective that this one sums; empty if it is no
            sum.
    """

    type: Any
    parts: tuple[tuple[str, Objective, float], ...] = ()

    @abstractmethod
    def needs(self, facts: ModelFacts) -> Needs:
        """What to collect from the models.

        Raises:
            ValueError: settings that do not fit the model. The message begins with the setting.
        """

    @abstractmethod
    def loss(
        self, batch: Batch, teacher: Outputs | None, student: Outputs, facts: ModelFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, a mean over the batch's blocks, and detached metrics by name.

        A name is `metric_root`, or that, a slash and more. Of a sum it is `PART/NAME`.
        """

    def layer(self, layer: int, teacher: QKV | None, student: QKV, facts: ModelFacts) -> Any:
        """Compute what the loss needs of one of `Needs.qkv_layers`, inside that layer.

        The result outlives the layer's attention inputs, so it should be a few numbers. Gradient
        checkpointing calls this again for the backward pass.
        """
        del layer, teacher, student, facts

    def flops(self, tokens: int, facts: ModelFacts) -> float:
        """Floating-point operations on a block of `tokens` beyond the models' own passes.

        Forward and backward together, for the plan. None by default.
        """
        return 0.0

    def check(self, length: int, *, cuda: bool) -> None:
        """Refuse blocks or a device that the objective cannot use, before anything is loaded.

        Args:
            length: tokens of the stream's blocks.
            cuda: whether training is on a GPU.

        Raises:
            ValueError: the message begins with the setting.
        """
        del length, cuda

    def needs_whole_blocks(self) -> str | None:
        """The setting that rules out sequence parallelism, such as `last_tokens=512`.

        None if the objective can be computed on blocks whose tokens are spread over ranks. `layer`
        then gets the attention inputs of whole blocks, for this rank's share of the heads; `loss`
        gets the hidden states of this rank's part of the tokens. A mean over heads or tokens needs
        no change: ranks have equal shares, so the mean of their losses is the loss. By default the
        objective is refused.
        """
        return f"type={self.type}"

    def needs_whole_documents(self) -> str | None:
        """The setting that rules out packed blocks, such as `last_tokens=512`.

        None if the objective keeps the documents of a block apart (`Batch.segments`): `layer`
        compares rows within `segment_ids_bt`, and a next token is one of `Batch.next_ids_bt`. By
        default the objective gets blocks of one document each.
        """
        return f"type={self.type}"

    def metric_root(self, facts: ModelFacts) -> str:
        """The first part of its metrics' names; its type by default."""
        return self.type

    @property
    def awaits_drift(self) -> bool:
        """Whether `with_drift` must choose layers before training: those of `layers=drift`.

        Until then `needs` gives any layers of the right number, for the plan.
        """
        return getattr(self, "layers", None) == "drift"

    def with_drift(self, kl_by_layer: Sequence[float]) -> Objective:
        """The objective with its layers chosen; by default itself.

        Args:
            kl_by_layer: KL(native || scaled) of each layer's attention rows, before training.
        """
        return self


def metric_prefixes(
    streams: Mapping[str, Mapping[str, Objective]], facts: ModelFacts
) -> dict[tuple[str, str], str]:
    """What precedes the names of metrics in a run's log: nothing, `STREAM/`, `TERM/` or both.

    The stream precedes where two streams report under one root but differ in the terms there. The
    term precedes where two terms of one stream report under one root.

    Args:
        streams: terms (objectives by name) of each stream.

    Returns:
        a prefix by (stream, term).
    """
    by_root: dict[str, dict[str, dict[str, Objective]]] = {}
    for stream, terms in streams.items():
        for term, objective in terms.items():
            at_root = by_root.setdefault(objective.metric_root(facts), {})
            at_root.setdefault(stream, {})[term] = objective
    prefixes: dict[tuple[str, str], str] = {}
    for at_root in by_root.values():
        first = next(iter(at_root.values()))
        streams_differ = any(terms != first for terms in at_root.values())
        for stream, terms in at_root.items():
            for term in terms:
                prefix = f"{stream}/" if streams_differ else ""
                prefixes[stream, term] = prefix + (f"{term}/" if len(terms) > 1 else "")
    return prefixes


def seen_tokens(
    tokens: int, window: int | None, device: device, segment_ids_bt: Tensor | None = None
) -> Tensor:
    """Which tokens each token sees in causal attention, bool [t, t]; with segments [b, 1, t, t]."""
    import torch

    index_t = torch.arange(tokens, device=device)
    back_tt = index_t[:, None] - index_t
    seen_tt = (back_tt >= 0) if window is None else (back_tt >= 0) & (back_tt < window)
    if segment_ids_bt is None:
        return seen_tt
    return (segment_ids_bt[:, None, :, None] == segment_ids_bt[:, None, None, :]) & seen_tt


def list_or_word(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a field that takes a word or a list of indices, with one message for both.

    Raises:
        ValueError: the value is neither.
    """
    try:
        # Strict validation takes a list for a tuple only in JSON, and this is Python.
        return handler(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        words = next(d["msg"] for d in error.errors() if d["type"] == "literal_error")
        words = words.removeprefix("Input should be ")
        raise ValueError(
            f"give {words}, or a list of indices greater than or equal to 0, such as [0,3] "
            f"(got {value!r})"
        ) from error
