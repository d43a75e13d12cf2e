"""The student's pass: the objective is computed at the layers, and then its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from src.models.adapters import causal_model, output_head
from src.models.facts import ModelFacts
from src.objectives.base import QKV, Batch, Needs, Objective, Outputs
from src.passes.graphs import MicroStepGraphs
from src.passes.layer_pass import LayerPass, run_decoder
from src.passes.teacher import TeacherPass

# Tokens whose logits are made at a time.
_CHUNK = 1024
# Runs a teacher with weights of its own on a batch.
Teach = Callable[[Batch, Needs], Outputs]


class StudentModule(nn.Module):
    """The student with its objectives: its forward pass returns a loss.

    A loss computed outside the module that an engine wraps fails under ZeRO-3, so it is computed
    inside.

    Args:
        network: the student's; its decoder must have been prepared (src/passes/preparation.py).
        shared: the pass of a teacher that shares the student's weights, if there is one.
        graphs: records and replays the micro-steps; None to launch them kernel by kernel.
    """

    def __init__(
        self,
        network: nn.Module,
        objectives: Mapping[str, Objective],
        facts: ModelFacts,
        shared: TeacherPass | None = None,
        graphs: MicroStepGraphs | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objectives = dict(objectives)
        self.facts = facts
        self._shared = shared
        all_needs = [objective.needs(facts) for objective in objectives.values()]
        # Objectives of a mixture may reach different weights. DeepSpeed expects a gradient of every
        # weight in every micro-step: without one in a step's first micro-step, ZeRO-3 keeps the
        # gradient of the step before; without one in the last, offload loses the sum so far.
        self._reaches_all = len({(needs.stops_at, needs.head) for needs in all_needs}) > 1
        self._graphs = graphs

    def forward(
        self, batch: Batch, stream: str | None, teach: Teach | None
    ) -> tuple[Tensor, dict[str, Tensor] | Tensor]:
        """The loss of a stream's objective on a batch, and its metrics.

        An engine runs a module by this function only, so it also gives `predictions`.

        Args:
            stream: its name; None for the batch's `predictions`.
            teach: runs a teacher with weights of its own; None if it shares the student's, or if no
                objective has a teacher.
        """
        if stream is None:
            return self.predictions(batch.input_ids_bt)
        compute = partial(self._compute, stream=stream, teach=teach)
        return compute(batch) if self._graphs is None else self._graphs.run(stream, batch, compute)

    def predictions(self, ids_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of next tokens (nats) and whether each is the most likely one, [b, t - 1] both."""
        model = causal_model(self.network)
        head: Any = model.get_output_embeddings()
        hidden_bth = run_decoder(model.get_decoder(), ids_bt, None)[:, :-1]
        losses, right = [], []
        parts = zip(hidden_bth.split(_CHUNK, 1), ids_bt[:, 1:].split(_CHUNK, 1), strict=True)
        for part_bth, next_bt in parts:
            logits_btv = head(part_bth).float()
            losses.append(cross_entropy(logits_btv.transpose(1, 2), next_bt, reduction="none"))
            right.append(logits_btv.argmax(-1) == next_bt)
        return torch.cat(losses, 1), torch.cat(right, 1)

    def _compute(
        self, batch: Batch, stream: str, teach: Teach | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        objective = self.objectives[stream]
        needs = objective.needs(self.facts)
        teacher = None
        if needs.teacher:
            if teach is None:
                assert self._shared is not None
                teach = self._shared.run
            teacher = teach(batch, needs)
        student = self._run(batch, objective, needs, teacher)
        loss, metrics = objective.loss(batch, teacher, student, self.facts)
        if self._reaches_all and not needs.head:
            assert student.hidden_bth is not None
            assert student.head is not None
            loss = loss + 0.0 * student.head(student.hidden_bth[:, :1]).sum()
        return loss, metrics

    def _run(
        self, batch: Batch, objective: Objective, needs: Needs, teacher: Outputs | None
    ) -> Outputs:
        """Run the transformer below its output head, and the objective at the layers it wants."""
        model = causal_model(self.network)
        values: dict[int, Any] = {}

        def visit(layer: int, qkv: QKV, *, again: bool) -> None:
            value = objective.layer(
                layer, teacher.qkv[layer]() if teacher else None, qkv, self.facts
            )
            if not again:
                values[layer] = value

        given_bt = batch.position_ids_bt
        positions_bt = batch.contiguous_bt if given_bt is None else given_bt
        stops_at = None if self._reaches_all else needs.stops_at
        layer_pass = LayerPass(
            needs.qkv_layers,
            visit,
            input_layers=needs.hidden_layers,
            stops_at=stops_at,
            unpadded=True,
            segments=batch.segments,
        )
        with layer_pass.running():
            hidden_bth = run_decoder(model.get_decoder(), batch.input_ids_bt, positions_bt)
        inputs = layer_pass.take_inputs()
        outputs = Outputs(
            hidden_bth if stops_at is None else None,
            layers=dict(values),
            head=output_head(model),
            hidden_layers_bth={layer: inputs[layer].hidden_bth for layer in needs.hidden_layers},
        )
        # Checkpointed layers refer to `visit`, and its values refer to the layers.
        values.clear()
        return outputs
