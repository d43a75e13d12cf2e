"""The teacher's pass, which leaves little behind for each layer.

A distillation loss of a layer is computed inside the student's layer, as soon as its q, k and v
exist (src/passes/student.py). The teacher runs before the student. For each layer it keeps either
the layer's q, k and v, or only the layer's input, from which the layer computes q, k and v again
when they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from src.models.adapters import causal_model
from src.objectives.base import QKV, Batch, Needs, Outputs
from src.passes.capture import QKVCapture
from src.passes.chunks import Chunks
from src.passes.layer_pass import LayerInput, run_decoder
from src.passes.skipping import known_parts, left_out

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# What the teacher keeps of each layer.
Keep = Literal["layer_inputs", "qkv"]
# Maps hidden states to logits.
Head = Callable[[Tensor], Tensor]


class TeacherPass:
    """Runs a model as the teacher.

    Its decoder must have been prepared (src/passes/preparation.py).

    Args:
        head: maps last hidden states to logits; None if no objective wants the teacher's head.
    """

    def __init__(self, model: PreTrainedModel, keep: Keep, head: Head | None = None) -> None:
        self._decoder: Any = model.get_decoder()
        self._keep: Keep = keep
        self._head = head
        self._parts = known_parts(self._decoder)
        assert keep == "qkv" or self._parts is not None, "src/planning/checks.py refuses it"

    def run(self, batch: Batch, needs: Needs) -> Outputs:
        """Run blocks at contiguous positions, and keep what is needed."""
        layers = needs.qkv_layers
        chunks = Chunks(batch.input_ids_bt.shape[1], needs.teacher_chunk)
        by_input = self._keep == "layer_inputs"
        layer_pass = QKVCapture(
            () if by_input else layers,
            input_layers={*needs.hidden_layers, *(layers if by_input else ())},
            stops_at=needs.teacher_stops_at,
            unpadded=True,
            segments=batch.segments,
        )
        with torch.no_grad(), self._as_teacher(), layer_pass.running():
            hidden_bth = run_decoder(
                self._decoder, chunks.cut(batch.input_ids_bt), _positions(batch, chunks)
            )
        inputs, stored = layer_pass.take_inputs(), layer_pass.take()
        made = {
            layer: self._from_input(layer, inputs[layer]) if by_input else _kept(stored[layer])
            for layer in layers
        }
        return Outputs(
            chunks.joined(hidden_bth, 1) if needs.hidden else None,
            qkv={layer: _joined(chunks, compute) for layer, compute in made.items()},
            head=self._head,
            hidden_layers_bth={
                layer: chunks.joined(inputs[layer].hidden_bth, 1) for layer in needs.hidden_layers
            },
        )

    def _as_teacher(self) -> AbstractContextManager[None]:
        """Entered while the whole model runs as the teacher."""
        return nullcontext()

    def _layer_as_teacher(self, index: int) -> AbstractContextManager[None]:
        """Entered while one layer computes its q, k and v again."""
        return nullcontext()

    def _from_input(self, index: int, given: LayerInput) -> Callable[[], QKV]:
        """Compute a layer's q, k, v from its input, by its own norm, projections and RoPE."""
        assert self._parts is not None
        layer = self._decoder.layers[index]
        norm = layer.get_submodule(self._parts.norm) if self._parts.norm else nn.Identity()
        attention = layer.get_submodule(self._parts.attention)
        output = attention.get_submodule(self._parts.output)

        def compute() -> QKV:
            capture = QKVCapture([index], stops_at=index)
            with (
                torch.no_grad(),
                self._layer_as_teacher(index),
                left_out(output),
                capture.running(),
            ):
                attention(hidden_states=norm(given.hidden_bth), **given.arguments)
            return capture.take()[index]

        return compute


def _kept(qkv: QKV) -> Callable[[], QKV]:
    return lambda: qkv


def _joined(chunks: Chunks, compute: Callable[[], QKV]) -> Callable[[], QKV]:
    if len(chunks.starts) == 1:
        return compute
    return lambda: QKV(*(chunks.joined(x, 2) for x in compute()[:3]))


def _positions(batch: Batch, chunks: Chunks) -> Tensor | None:
    """Contiguous positions, by chunk; None if the model makes them itself."""
    if len(chunks.starts) == 1:
        return batch.contiguous_bt
    assert batch.parts == 1, "objectives that read chunks need whole blocks"
    b, t = batch.input_ids_bt.shape
    return chunks.cut(torch.arange(t, device=batch.input_ids_bt.device).repeat(b, 1))


class TeacherModule(nn.Module):
    """The teacher's pass as a module, for an engine to wrap."""

    def __init__(self, network: nn.Module, keep: Keep, head: Head | None = None) -> None:
        super().__init__()
        self.network = network
        self._pass = TeacherPass(causal_model(network), keep, head)

    def forward(self, batch: Batch, needs: Needs) -> Outputs:
        """Run a batch and return what is needed."""
        return self._pass.run(batch, needs)


class SharedTeacherPass(TeacherPass):
    """Runs the student's own model as the teacher: adapters off, native RoPE, no dropout.

    Args:
        native: the model's config with native RoPE.
    """

    def __init__(
        self,
        network: nn.Module,
        keep: Keep,
        native: PretrainedConfig,
        device: torch.device,
        head: Head | None = None,
    ) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = causal_model(network)
        super().__init__(model, keep, head)
        self._model = model
        self._adapters = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
        self._adapters_of = [
            [m for m in layer.modules() if isinstance(m, BaseTunerLayer)]
            for layer in getattr(self._decoder, "layers", ())
        ]
        rotary: Any = getattr(self._decoder, "rotary_emb", None)
        assert isinstance(rotary, nn.Module), "src/planning/checks.py refuses other families"
        # Not registered as a submodule of the student, so it is in none of its checkpoints.
        self._native_rotary = type(rotary)(native).to(device)

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        training, scaled = self._model.training, self._decoder.rotary_emb
        self._model.eval()
        self._decoder.rotary_emb = self._native_rotary
        try:
            with _switched_off(self._adapters):
                yield
        finally:
            self._decoder.rotary_emb = scaled
            self._model.train(training)

    def _layer_as_teacher(self, index: int) -> AbstractContextManager[None]:
        # Only this layer's adapters: switching all of them for each layer is thousands of switches.
        return _switched_off(self._adapters_of[index])


@contextmanager
def _switched_off(adapters: Sequence[Any]) -> Iterator[None]:
    # PEFT's own switch would also stop the adapters' gradients, which are computed at that time.
    for adapter in adapters:
        adapter._disable_adapters = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter._disable_adapters = False
