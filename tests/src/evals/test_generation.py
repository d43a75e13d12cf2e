"""Batches of right-padded prompts give what each prompt alone gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.evals import decoding
from src.evals.generation import batch_rows, encode
from src.evals.suite import EvaluationError
from src.models.byte_tokenizer import byte_tokenizer as byte_tokenizer_of_ones_own
from tests.conftest import by_default
from tests.interpreted import liger_kernels
from tests.src.evals.generating import generate

PROMPTS = [
    "The lamp went out",
    "Nobody on the pier said a word before the ship had passed the rocks and",
    "A",
    "By morning the harbour was full of broken boxes",
    "Who would",
]


def alone(model: Any, tokenizer: Any, prompt: str, room: int) -> str:
    """Greedy decoding without cache, padding or batch."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(room):
            token = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
            if token.item() == 256:
                break
            ids = [*ids, token.item()]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.fixture(scope="module")
def each_alone() -> dict[str, list[str]]:
    """By family: what each prompt gives alone."""
    return {}


@pytest.mark.parametrize(
    "family", ["small_llama", "small_llama_eager", "small_mistral", "small_gemma"]
)
@pytest.mark.parametrize("batch_tokens", [1, 120, 10_000])
@by_default(lambda family, batch_tokens: family == "small_gemma" or batch_tokens == 120)
def test_a_batch_gives_what_each_prompt_gives_alone(
    family: str,
    batch_tokens: int,
    byte_tokenizer: Any,
    each_alone: dict[str, list[str]],
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(family)
    rooms = [20, 20, 33, 20, 33]
    got = generate(model, byte_tokenizer, PROMPTS, rooms, window=512, batch_tokens=batch_tokens)
    if family not in each_alone:
        each_alone[family] = [
            alone(model, byte_tokenizer, prompt, room)
            for prompt, room in zip(PROMPTS, rooms, strict=True)
        ]
    assert got == each_alone[family]
    assert len(set(got)) > 1


def test_rows_stop_at_the_end_of_text(small_llama: Any, byte_tokenizer: Any) -> None:
    full = generate(small_llama, byte_tokenizer, PROMPTS, [24] * 5, window=512)
    letter = next(c for c in full[0] if c.isascii() and c.isprintable())
    (stop,) = byte_tokenizer(letter)["input_ids"]
    old = small_llama.generation_config.eos_token_id
    small_llama.generation_config.eos_token_id = [stop]
    try:
        cut = generate(small_llama, byte_tokenizer, PROMPTS, [24] * 5, window=512)
    finally:
        small_llama.generation_config.eos_token_id = old
    assert letter in full[0]
    assert cut == [text.split(letter)[0] for text in full]


@pytest.mark.parametrize("stops", [None, 5, [5]])
def test_the_tokenizers_end_of_text_ends_answers_whatever_the_model_lists(
    small_llama: Any, byte_tokenizer: Any, stops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = generate(small_llama, byte_tokenizer, PROMPTS, [24] * 5, window=512)
    letter = next(c for c in full[0] if c.isascii() and c.isprintable())
    monkeypatch.setattr(small_llama.generation_config, "eos_token_id", stops)
    tokenizer = byte_tokenizer_of_ones_own()
    tokenizer.eos_token = letter
    cut = generate(small_llama, tokenizer, PROMPTS[:1], [24], window=512)
    assert cut == [full[0].split(letter)[0]]


def test_lengths_of_a_batch_do_not_turn_its_other_rows(
    small_stretched: Any, byte_tokenizer: Any
) -> None:
    # Within the native window of 64, beyond it, and across it while the answer is written.
    prompts = [("ab c" * 40)[:n] for n in (20, 33, 55, 55, 70, 90, 150)]
    alone = [generate(small_stretched, byte_tokenizer, [p], [16], window=256)[0] for p in prompts]
    together = generate(small_stretched, byte_tokenizer, prompts, [16] * 7, window=256)
    assert together == alone
    assert len(set(alone)) == 6


def test_rows_that_have_enough_leave_the_batch_and_the_others_go_on(
    small_llama: Any, byte_tokenizer: Any
) -> None:
    full = generate(small_llama, byte_tokenizer, PROMPTS, [40] * 5, window=512)
    some = generate(
        small_llama,
        byte_tokenizer,
        PROMPTS,
        [40] * 5,
        window=512,
        enough=lambda number, answer: number % 2 == 0,
    )
    for number in (1, 3):
        assert some[number] == full[number]
    for number in (0, 2, 4):
        assert len(some[number]) < len(full[number])


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is interpreted on a CPU only")
def test_fused_kernels_answer_every_prompt_alike(
    small_llama: Any, byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_READ_MULTIPLE", 16)
    prompts, rooms = [prompt[:11] for prompt in PROMPTS], [4, 4, 8, 4, 8]

    def answers(**options: Any) -> list[str]:
        return generate(small_llama, byte_tokenizer, prompts, rooms, window=512, **options)

    plain = answers()
    with liger_kernels():
        assert answers(fused=True) == plain
    assert len(set(plain)) == 5
    assert answers() == plain


def test_a_prompt_longer_than_the_window_is_refused(byte_tokenizer: Any) -> None:
    with pytest.raises(EvaluationError, match="window of 20"):
        encode(byte_tokenizer, ["a" * 12], window=20, room=[9])
    (fits,) = encode(byte_tokenizer, ["a" * 11], window=20, room=[9])
    assert len(fits) == 11


def test_two_beginnings_of_text_are_refused(byte_tokenizer: Any) -> None:
    class Doubled:
        bos_token_id, eos_token_id, bos_token, eos_token = 1, 2, "<s>", "</s>"

        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [self.ids for _ in texts]}

    with pytest.raises(EvaluationError, match="2 beginning-of-text"):
        encode(Doubled([1, 1, 5]), ["x"], window=9, room=[1])  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="ends every text"):
        encode(Doubled([1, 5, 2]), ["x"], window=9, room=[1])  # type: ignore[arg-type]
    assert encode(Doubled([1, 5]), ["x"], window=9, room=[1]) == [[1, 5]]  # type: ignore[arg-type]


def test_batches_hold_at_least_one_row(small_llama: Any) -> None:
    assert batch_rows(small_llama, 100, 50) == (1, 1)
    assert batch_rows(small_llama, 100, 250) == (2, 2)
    assert min(batch_rows(small_llama, 100, "auto")) > 1
