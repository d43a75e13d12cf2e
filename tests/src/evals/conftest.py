"""Own text for evaluation tests: a short story, words, questions; and a small model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from src.evals.ruler.material import Material, Question, QuestionSet
from src.models.byte_tokenizer import byte_tokenizer as tokenizer_of_bytes
from src.models.hf_config import scaled_config
from src.models.loading import load_model
from src.models.rope.dynamic import DynamicScaling
from src.models.rope.longrope import LongRopeScaling

STORY = (
    "The lamp went out before the ship had passed the rocks.",
    "Nobody on the pier said a word.",
    "Mr. Alder counted the waves, and then he counted them again.",
    '"It was never the wind," said the pilot.',
    "By morning the harbour was full of broken boxes and wet rope.",
    "A dog ran along the beach with a glove in its mouth!",
    "Who would have thought of looking under the boat?",
    "They ate bread and fish until noon.",
)


@pytest.fixture(scope="session")
def material() -> Material:
    """Small, but with enough of everything for lengths of a few thousand bytes."""
    draw = random.Random(5)

    def word() -> str:
        return "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8)))

    documents = tuple(
        f"Town number {i} lies by the river {word()}. Its mayor is called {word()} {word()}. "
        + " ".join(word() for _ in range(draw.randint(10, 60)))
        for i in range(120)
    )
    questions = tuple(
        Question(
            f"Who is the mayor of town number {i}?",
            (" ".join(text.split("called ")[1].split(". ")[0].split(" ")),),
            i,
            tuple(range(i - i % 4, i - i % 4 + 4)),
        )
        for i, text in enumerate(documents[:40])
    )
    both = {name: QuestionSet(name, documents, questions) for name in ("squad", "drop")}
    return Material(
        sentences=STORY * 40,
        adjectives=tuple(word() for _ in range(60)),
        nouns=tuple(word() for _ in range(900)),
        verbs=tuple(word() for _ in range(60)),
        questions=both,
    )


@pytest.fixture(scope="session")
def byte_tokenizer() -> object:
    """One token a byte, none added."""
    return tokenizer_of_bytes()


@pytest.fixture(scope="session")
def story() -> tuple[str, ...]:
    """Sentences of the haystack."""
    return STORY


def _small(family: str, attention: str = "sdpa", **changes: object) -> object:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, object] = {
        "vocab_size": 257,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    config = AutoConfig.for_model(family, **sizes | changes)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        ).eval()


@pytest.fixture(scope="session")
def small_llama() -> object:
    """Three layers of random weights with scaled RoPE, for the byte tokenizer."""
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    return _small("llama", rope_parameters=scaled)


@pytest.fixture(scope="session")
def small_llama_eager() -> object:
    """The same with attention that adds its mask."""
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    return _small("llama", "eager", rope_parameters=scaled)


@pytest.fixture(scope="session")
def small_gemma() -> object:
    """Layers of two kinds: two with a sliding window of 24 tokens, one without."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return _small("gemma3_text", sliding_window=24, layer_types=kinds)


@pytest.fixture(scope="session")
def small_mistral() -> object:
    """The same with a sliding window of 24 tokens."""
    return _small("mistral", sliding_window=24)


@pytest.fixture(scope="session", params=["dynamic", "longrope"])
def small_stretched(request: pytest.FixtureRequest, compose_plain: Callable[..., dict]) -> object:
    """A model of 64 tokens stretched to 256, turned by how long a sequence is."""
    from src.settings.config import EvaluateConfig
    from src.settings.strict import load_plain

    settings = load_plain(EvaluateConfig, compose_plain("model=tiny", name="evaluate"))
    assert settings.model is not None
    model = replace(settings.model, native_window=64)
    scaling = {
        "dynamic": DynamicScaling(type="dynamic", target_length=256),
        "longrope": LongRopeScaling(type="longrope", target_length=256),
    }[request.param]
    config = scaled_config(model, scaling)
    network = load_model(model, config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in network.parameters():
            # As it comes, a model this small says nearly the same whatever it reads.
            weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    return network
