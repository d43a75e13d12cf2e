"""A teacher that reads overlapping chunks: each token after at least half a chunk."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from src.objectives.base import QKV, Batch, Needs
from src.passes.capture import QKVCapture, attention_name
from src.passes.chunks import Chunks
from src.passes.preparation import prepare_decoder
from src.passes.teacher import Keep, TeacherPass

LAYERS, SIZE = 3, 8
# RoPE's angles are float32, whose rounding differs from position to position.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
IDS = torch.randint(0, 97, (2, 23), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 12, 16, 23, 64])
def test_every_token_is_kept_once_after_half_a_chunk(tokens: int) -> None:
    chunks = Chunks(tokens, SIZE)
    ids_bt = torch.arange(2 * tokens).reshape(2, tokens)
    cut = chunks.cut(ids_bt)
    assert torch.equal(chunks.joined(cut, 1), ids_bt)
    assert chunks.read == cut.numel() // 2
    assert chunks.pairs == cut.shape[0] // 2 * cut.shape[1] ** 2
    place = torch.arange(cut.shape[1]).expand_as(cut)
    before = chunks.joined(place, 1)[0]
    expected = torch.arange(tokens)
    assert (before >= torch.minimum(expected, torch.tensor(SIZE // 2))).all()
    assert (before < SIZE).all()


@pytest.mark.parametrize("axis", [1, 2])
def test_chunks_are_joined_on_any_axis(axis: int) -> None:
    chunks = Chunks(23, SIZE)
    blocks = torch.randn(2, *([3] * (axis - 1)), 23, 5, generator=torch.Generator().manual_seed(0))
    flat = blocks.movedim(axis, 1)
    cut = torch.stack([flat[:, s : s + SIZE] for s in chunks.starts], 1).flatten(0, 1)
    assert torch.equal(chunks.joined(cut.movedim(1, axis), axis), blocks)


@pytest.fixture(scope="module")
def network() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=97,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.2,
                bos_token_id=None,
                eos_token_id=None,
            ),
            attn_implementation=attention_name("sdpa"),
            dtype=torch.float64,
        ).eval()
    prepare_decoder(made.get_decoder(), {None})
    return made


def by_hand(network: PreTrainedModel, ids_bt: Tensor) -> tuple[Tensor, dict[int, QKV]]:
    """Last hidden states, and q, k and v, of one chunk by itself, at positions from 0."""
    capture = QKVCapture(range(LAYERS))
    with torch.no_grad(), capture.running():
        hidden = network.get_decoder()(input_ids=ids_bt, use_cache=False).last_hidden_state
    return hidden, capture.take()


@pytest.mark.parametrize("keep", ["qkv", "layer_inputs"])
def test_the_teacher_reads_each_chunk_as_if_it_stood_alone(
    network: PreTrainedModel, keep: Keep
) -> None:
    needs = Needs(
        teacher=True,
        qkv_layers=(0, 2),
        hidden=True,
        hidden_layers=(1,),
        teacher_chunk=SIZE,
    )
    outputs = TeacherPass(network, keep).run(Batch(IDS), needs)
    assert outputs.hidden_bth is not None
    assert outputs.hidden_bth.shape == outputs.hidden_layers_bth[1].shape == (2, 23, 32)
    end = 0
    for start in Chunks(23, SIZE).starts:
        hidden_bth, qkv = by_hand(network, IDS[:, start : start + SIZE])
        kept = slice(end, start + SIZE)
        torch.testing.assert_close(
            outputs.hidden_bth[:, kept], hidden_bth[:, end - start :], **CLOSE
        )
        for layer in (0, 2):
            ours, alone = outputs.qkv[layer](), qkv[layer]
            torch.testing.assert_close(
                ours.v_bgtd[:, :, kept], alone.v_bgtd[:, :, end - start :], **CLOSE
            )
            # RoPE turns by absolute positions; scores depend on their differences.
            for name in ("q_bhtd", "k_bgtd"):
                x, y = getattr(ours, name)[:, :, kept], getattr(alone, name)[:, :, end - start :]
                torch.testing.assert_close(x @ x.mT, y @ y.mT, **CLOSE)
        end = start + SIZE


def test_a_block_within_the_chunk_is_read_whole(network: PreTrainedModel) -> None:
    whole, chunked = (
        TeacherPass(network, "qkv").run(
            Batch(IDS), Needs(teacher=True, hidden=True, teacher_chunk=size)
        )
        for size in (None, 24)
    )
    torch.testing.assert_close(chunked.hidden_bth, whole.hidden_bth, rtol=0, atol=0)
