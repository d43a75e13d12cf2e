"""Next-token loss: what transformers computes itself, whatever the chunk."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from src.models.facts import ModelFacts
from src.objectives.base import Batch, Needs, Outputs
from src.objectives.language_modeling import LanguageModeling

VOCABULARY = 97
FACTS = ModelFacts(layers=1, windows=(None,), heads=2, kv_heads=2, head_dim=8)


@pytest.fixture
def network() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def ids(b: int, t: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (b, t), generator=torch.Generator().manual_seed(1))


def our_loss(network: LlamaForCausalLM, ids_bt: torch.Tensor, chunk: int) -> torch.Tensor:
    hidden_bth = network.get_decoder()(input_ids=ids_bt, use_cache=False).last_hidden_state
    student = Outputs(hidden_bth, head=network.get_output_embeddings())
    objective = LanguageModeling("language_modeling", chunk=chunk)
    loss, metrics = objective.loss(Batch(ids_bt), None, student, FACTS)
    assert metrics.keys() == {"language_modeling"}
    assert metrics["language_modeling"] == loss
    assert not metrics["language_modeling"].requires_grad
    return loss


def gradients(loss: torch.Tensor, network: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("chunk", [1, 7, 22, 2048])
@pytest.mark.parametrize("b", [1, 3])
def test_loss_and_gradients_are_transformers_own(
    network: LlamaForCausalLM, b: int, chunk: int
) -> None:
    ids_bt = ids(b, 23)
    ours = our_loss(network, ids_bt, chunk)
    theirs = network(input_ids=ids_bt, labels=ids_bt).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(ours, network), gradients(theirs, network))


def test_two_tokens_predict_one(network: LlamaForCausalLM) -> None:
    ids_bt = ids(2, 2)
    logits_bv = network(input_ids=ids_bt).logits[:, 0]
    expected = -logits_bv.log_softmax(-1).gather(1, ids_bt[:, 1:]).mean()
    torch.testing.assert_close(our_loss(network, ids_bt, 5), expected)


def test_bfloat16_logits_are_summed_in_float32(network: LlamaForCausalLM) -> None:
    network.to(torch.bfloat16)  # type: ignore[arg-type]  # transformers narrows nn.Module.to
    loss = our_loss(network, ids(2, 64), 2048)
    assert loss.dtype == torch.float32
    # Products round to bfloat16 one by one in either case, so chunks differ by summation alone.
    torch.testing.assert_close(loss, our_loss(network, ids(2, 64), 10), rtol=1e-5, atol=0)


def test_no_more_than_a_chunk_of_logits_exists_at_once(network: LlamaForCausalLM) -> None:
    widths: list[int] = []
    head = network.get_output_embeddings()
    assert head is not None
    head.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[1]))
    our_loss(network, ids(1, 23), 8).backward()
    assert widths == [8, 8, 6, 6, 8, 8], "each chunk once forward and once backward"


def test_needs_the_head_alone_and_no_extra_work() -> None:
    objective = LanguageModeling("language_modeling")
    assert objective.needs(FACTS) == Needs(teacher=False, qkv_layers=(), head=True)
    assert objective.flops(4096, FACTS) == 0
