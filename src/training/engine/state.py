"""Weights and moments of the optimizer as DeepSpeed holds them, by parameter.

Each form of DeepSpeed's optimizer keeps float32 weights and AdamW's moments elsewhere: whole, in
one flat shard of a rank (ZeRO 1 and 2), or in a shard of each parameter (ZeRO 3). Here they are
views of that memory with the parameter's name and their place in it, for saving and for loading on
any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.training.tensor_files import Part, SavedState

MOMENTS = ("exp_avg", "exp_avg_sq")
# AdamW's number of updates, kept as a tensor of one number under this name.
UPDATES = "updates"


@dataclass(frozen=True)
class _Shard:
    """A stretch of a flat float32 tensor of the optimizer that belongs to one parameter.

    Attributes:
        start: place of its first number in the flat parameter.
        offset, length: where the stretch is in `holder`.
    """

    name: str
    start: int
    holder: Tensor
    offset: int
    length: int


class OptimizerState:
    """The state of a student's engine.

    Args:
        optimizer: AdamW, which DeepSpeed's optimizer may wrap.
    """

    def __init__(self, network: nn.Module, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        self._named = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._engine = engine
        self._adamw = optimizer
        self._zero_stage: int = engine.zero_optimization_stage()

    def parts(self) -> list[Part]:
        """What this rank is to save: its shard, or everything on rank 0 without ZeRO."""
        rank = self._engine.global_rank
        if self._zero_stage == 0 and rank != 0:
            return []
        parts: list[Part] = []
        for shard in self._shards():
            values = self._values(shard)
            parts += [Part(shard.name, kind, shard.start, x) for kind, x in values.items()]
        if rank == 0:
            parts.append(Part("", UPDATES, 0, torch.tensor([float(self._updates())])))
        return parts

    def load(self, saved: SavedState) -> None:
        """Take over weights, moments and the number of updates; a collective call under ZeRO-3.

        Raises:
            KeyError: the files do not hold a number that is needed.
        """
        if self._zero_stage == 3:
            self._engine.optimizer.checkpoint_event_prologue()
        updates = float(saved.read(UPDATES, "", 0, 1))
        for shard in self._shards():
            moments = self._moments(shard.holder)
            counter = moments["step"]
            is_tensor = isinstance(counter, Tensor)
            moments["step"] = torch.full_like(counter, updates) if is_tensor else int(updates)
            for kind, values in self._values(shard).items():
                values.copy_(saved.read(kind, shard.name, shard.start, shard.length))
        if self._zero_stage == 3:
            _refresh_sharded(self._engine.optimizer)
            self._engine.optimizer.checkpoint_event_epilogue()
            return
        for name, parameter in self._named.items():
            flat = saved.read("weight", name, 0, parameter.numel())
            parameter.data.copy_(flat.view_as(parameter))

    def _shards(self) -> Iterator[_Shard]:
        wrapped = self._engine.optimizer
        if self._zero_stage == 3:
            yield from self._shards_of_zero_3(wrapped)
        elif self._zero_stage:
            for name, parameter in self._named.items():
                held: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed sets it
                if held is not None:  # else other ranks hold all of it
                    place = held.hp_fragment_address
                    holder = wrapped.single_partition_of_fp32_groups[held.param_group_index]
                    start = held.lp_fragment_address.start
                    yield _Shard(name, start, holder, place.start, place.numel)
        elif wrapped is self._adamw:
            for name, parameter in self._named.items():
                yield _Shard(name, 0, parameter, 0, parameter.numel())
        else:  # bfloat16 without ZeRO: a float32 copy of each parameter
            names = {id(parameter): name for name, parameter in self._named.items()}
            for wide, narrow in zip(wrapped.fp32_groups, wrapped.fp16_groups, strict=True):
                for holder, parameter in zip(wide, narrow, strict=True):
                    yield _Shard(names[id(parameter)], 0, holder, 0, holder.numel())

    def _shards_of_zero_3(self, wrapped: Any) -> Iterator[_Shard]:
        rank = self._engine.global_rank
        for name, parameter in self._named.items():
            group, offset, length = wrapped.grad_position[wrapped.get_param_id(parameter)]
            start = rank * length
            # The last ranks' shards end in padding, or hold nothing else.
            real = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]  # DeepSpeed's
            if real > 0:
                holder = wrapped.fp32_partitioned_groups_flat[group]
                yield _Shard(name, start, holder, offset, real)

    def _values(self, shard: _Shard) -> dict[str, Tensor]:
        """Views of a stretch of weights and moments, by kind."""
        moments = self._moments(shard.holder)
        whole = {"weight": shard.holder.detach(), **{key: moments[key] for key in MOMENTS}}
        return {
            kind: values.view(-1).narrow(0, shard.offset, shard.length)
            for kind, values in whole.items()
        }

    def _moments(self, holder: Tensor) -> dict[str, Any]:
        """AdamW's state of a tensor, made as AdamW makes it where no update has been yet."""
        state = self._adamw.state[holder]
        if not state:
            fused = bool(self._adamw.defaults.get("fused"))
            if isinstance(self._adamw, torch.optim.AdamW):
                device = holder.device if fused else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            else:  # DeepSpeed's AdamW for CPUs counts in integers
                state["step"] = 0
            state |= {key: torch.zeros_like(holder.data) for key in MOMENTS}
        return state

    def _updates(self) -> float:
        for shard in self._shards():
            return float(self._moments(shard.holder)["step"])
        return 0.0


def _refresh_sharded(wrapped: Any) -> None:
    """Let ZeRO-3's shards of the weights that compute follow the float32 ones."""
    for number, wide in enumerate(wrapped.fp32_partitioned_groups_flat):
        narrow = wrapped.fp16_partitioned_groups_flat[number]
        if narrow.numel():
            narrow.data.copy_(wide.data)
        shards = wrapped.fp16_partitioned_groups[number]
        for shard, fresh in zip(shards, wrapped.unflatten(narrow, shards), strict=True):
            shard.data = fresh.data
