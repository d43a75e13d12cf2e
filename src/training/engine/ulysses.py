"""Sequence parallelism: attention over blocks whose tokens are spread over ranks."""

from __future__ import annotations

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, distributed, nn

from src.models.adapters import causal_model
from src.models.facts import ModelFacts
from src.passes.capture import Attention, attention_over_ranks


def spread_attention(network: nn.Module, facts: ModelFacts, parts: int) -> None:
    """Let a model's attention see whole blocks, whose tokens are spread over `parts` ranks each.

    This is DeepSpeed's Ulysses (Jacobs et al., 2309.14509). Before attention, each rank exchanges
    its part of the tokens, for all heads, for whole blocks of its share of the heads; after
    attention, the ranks exchange back. With more ranks than key-value heads, several ranks hold the
    same key-value head.

    A collective call. Afterwards the model runs parts of blocks only, on all ranks of a group.
    """
    import deepspeed
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    group = _neighbours(parts)

    def over(attention: Attention) -> Attention:
        @cache
        def of_batch(blocks: int) -> Attention:
            return UlyssesSPAttentionHF(
                attention,
                batch_size=blocks,
                attn_head_count=facts.heads,
                attn_head_size=facts.head_dim,
                kv_head_count=facts.kv_heads,
                num_hidden_layers=facts.layers,
                process_group=group,  # type: ignore[arg-type]  # torch's, which DeepSpeed's is
                seq_length_is_variable=True,
            )

        def exchanging(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            return of_batch(query.shape[0])(module, query, *args, **kwargs)

        return exchanging

    causal_model(network).set_attn_implementation(attention_over_ranks(over))


# Groups of neighbouring ranks by their size, for each world. The keys are weak because the world's
# own group ends its threads when nobody refers to it, and they must end before Python shuts down.
_groups: WeakKeyDictionary[distributed.ProcessGroup, dict[int, distributed.ProcessGroup]] = (
    WeakKeyDictionary()
)


def _neighbours(parts: int) -> distributed.ProcessGroup:
    """This rank's group of `parts` neighbouring ranks; a collective call the first time."""
    world = distributed.group.WORLD
    assert world is not None
    by_size = _groups.setdefault(world, {})
    if parts not in by_size:
        for first in range(0, world.size(), parts):
            ranks = range(first, first + parts)
            group: Any = distributed.new_group(list(ranks))
            if world.rank() in ranks:
                by_size[parts] = group
    return by_size[parts]
