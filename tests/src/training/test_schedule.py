"""Blocks, micro-steps and learning rates of a stage."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.models.adapters import FullParameters
from src.training.schedule import StageConfig, StageSchedule, StepSize, StreamConfig, learning_rate


def stage(
    tokens: int, per_step: int, streams: dict[str, StreamConfig], **extra: float
) -> StageConfig:
    return StageConfig(
        tokens=tokens,
        tokens_per_step=per_step,
        lr=extra.get("lr", 1.0),
        warmup_steps=int(extra.get("warmup_steps", 0)),
        final_lr_fraction=extra.get("final_lr_fraction", 0.0),
        parameters=FullParameters("full"),
        streams=streams,
    )


MIXTURE = {
    "long": StreamConfig("lm", 32, batch_size=1, share=8),
    "short": StreamConfig("lm", 4, batch_size=8, share=6),
    "jump": StreamConfig("lm", 8, batch_size=4, share=2),
}


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_ranks_share_every_block_once(world_size: int, micro_batch: int) -> None:
    schedule = StageSchedule(stage(32 * 48, 32 * 16, MIXTURE))
    for step in range(schedule.steps):
        dealt = [
            list(
                schedule.micro_steps(
                    step, rank=rank, world_size=world_size, micro_batch=micro_batch
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(micro) for micro in dealt}) == 1, "ranks must join the same collectives"
        for together in zip(*dealt, strict=True):
            assert len({(m.stream, m.tokens) for m in together}) == 1
            # As many tokens at once as `micro_batch` blocks of the longest stream have.
            assert all(len(m.pieces) * m.tokens <= micro_batch * 32 for m in together)
        flat = [piece for micros in dealt for micro in micros for piece in micro.pieces]
        assert sorted(flat) == sorted(schedule.pieces(step))


def test_paper_stages_have_the_papers_steps() -> None:
    short = StageSchedule(stage(2_359_296, 16_384, {"short": StreamConfig("r", 4096)}))
    long = StageSchedule(stage(2_097_152, 32_768, {"long": StreamConfig("lm", 32_768)}))
    assert (short.steps, long.steps) == (144, 64)
    assert short.accumulation(world_size=1, micro_batch=1) == 4
    assert long.accumulation(world_size=8, micro_batch=1) == 1


def test_mixture_keeps_its_shares_in_every_turn() -> None:
    schedule = StageSchedule(stage(32 * 160, 32 * 4, MIXTURE))
    slots: list[str] = []
    for step in range(schedule.steps):
        seen = schedule.pieces(step)
        while seen:
            name = seen[0].stream
            slots.append(name)
            seen = seen[MIXTURE[name].batch_size :]
    for start in range(len(slots) - 16):
        window = slots[start : start + 16]
        assert (window.count("long"), window.count("short"), window.count("jump")) == (8, 6, 2)
    assert schedule.tokens_read() == {"long": 80 * 32, "short": 60 * 32, "jump": 20 * 32}


def test_blocks_of_a_stream_are_read_in_order_without_gaps() -> None:
    schedule = StageSchedule(stage(32 * 160, 32 * 4, MIXTURE))
    for name in MIXTURE:
        blocks = [
            p.block
            for step in range(schedule.steps)
            for p in schedule.pieces(step)
            if p.stream == name
        ]
        assert blocks == list(range(len(blocks)))
        assert schedule.blocks_read()[name] == len(blocks)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 40),
    batch=st.integers(1, 5),
    slots=st.integers(1, 6),
    tokens=st.integers(2, 4000),
)
def test_stage_ends_on_the_exact_token(length: int, batch: int, slots: int, tokens: int) -> None:
    streams = {"a": StreamConfig("lm", length, batch_size=batch)}
    config = stage(tokens, slots * batch * length, streams)
    if tokens % length == 1:
        with pytest.raises(ValueError, match="ends on a block of a single token"):
            StageSchedule(config)
        return
    schedule = StageSchedule(config)
    read = [sum(p.tokens for p in schedule.pieces(step)) for step in range(schedule.steps)]
    assert sum(read) == tokens == sum(schedule.tokens_read().values())
    assert read == [schedule.tokens_at(step) for step in range(schedule.steps)]
    assert schedule.tokens_before(schedule.steps) == tokens
    assert all(p.tokens <= length for p in schedule.pieces(schedule.steps - 1))


def test_step_that_is_no_whole_slot_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_step=5000 .* a slot .* give 4096 or 8192"):
        stage(8192, 5000, {"a": StreamConfig("lm", 4096)})


def test_a_slot_that_does_not_fit_the_step_is_named() -> None:
    streams = {"a": StreamConfig("lm", 32, batch_size=None), "b": StreamConfig("lm", 8)}
    sizes = (StepSize(1, 64, 32), StepSize(1000, 512, 64))

    def of_steps(tokens: int) -> StageConfig:
        plain = stage(640, 640, {"a": StreamConfig("lm", 32)})
        return replace(plain, tokens_per_step=tokens, step_sizes=sizes, streams=streams)

    assert of_steps(32).slot_tokens == 32, "the smallest where none is as small"
    assert of_steps(512).slot_tokens == 64
    with pytest.raises(ValueError, match=r"a slot \(.*slot_tokens=64\): give 512 or 576"):
        of_steps(520)


def test_first_step_learns_and_last_reaches_the_final_rate() -> None:
    config = stage(
        100, 10, {"a": StreamConfig("lm", 10)}, lr=2.0, warmup_steps=4, final_lr_fraction=0.1
    )
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
