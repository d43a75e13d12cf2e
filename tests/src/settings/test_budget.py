"""Budgets: written as papers do, split by proportion to an exact sum, and decided once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.models.adapters import FullParameters
from src.planning import plan
from src.settings import budget, strict
from src.settings.config import RunConfig
from src.settings.strict import ConfigError
from src.training.schedule import StageConfig, StageSchedule, StreamConfig
from tests.conftest import by_default

ALL = ("cpt_long_32k", "cpt_mix_32k", "linearard_32k", "logit_kd_32k", "longred_c_32k")
ALL += ("longred_u_32k",)


def stage(tokens: int, length: int) -> StageConfig:
    streams = {"s": StreamConfig("lm", length)}
    return StageConfig(tokens, length, 1.0, 0, 0.9, FullParameters("full"), streams)


PAPER = {"ard": stage(2_359_296, 4096), "cpt": stage(2_097_152, 32_768)}


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("4.25M", 4_456_448), ("256M", 2**28), ("16M", 2**24), ("0.5M", 2**19), (12_345, 12_345)],
)
def test_named_budgets(written: str | int, tokens: int) -> None:
    assert budget.tokens_of(written) == tokens


@pytest.mark.parametrize("written", ["4.25", "M", "4,25M", "-1M", "0M", "0.0000001M", "4m", "1e3M"])
def test_malformed_budgets_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"budget='.*': give tokens as a whole number"):
        budget.tokens_of(written)


def test_the_papers_proportion_gives_the_papers_stages() -> None:
    assert budget.split(4_456_448, PAPER) == {"ard": 2_359_296, "cpt": 2_097_152}
    scaled = budget.split(2 * 4_456_448, PAPER)
    assert scaled == {"ard": 2 * 2_359_296, "cpt": 2 * 2_097_152}
    assert budget.split(2**24, PAPER) == {"ard": 2168 * 4096, "cpt": 2**24 - 2168 * 4096}


@given(total=st.integers(4098, 10**10))
@settings(max_examples=200, deadline=None)
def test_any_split_is_exact_in_whole_blocks_and_stays_when_done_again(total: int) -> None:
    shares = budget.split(total, PAPER)
    assert sum(shares.values()) == total
    assert shares["ard"] % 4096 == 0
    assert abs(shares["ard"] - total * 9 / 17) <= 4096
    again = {name: replace(PAPER[name], tokens=tokens) for name, tokens in shares.items()}
    assert budget.split(total, again) == shares


@pytest.mark.parametrize("total", [1, 100, 4096, 4097])
def test_a_budget_below_a_block_of_each_stage_is_refused(total: int) -> None:
    with pytest.raises(ValueError, match=r"for stage cpt: give at least 4098"):
        budget.split(total, PAPER)


@pytest.mark.parametrize("model", ["tiny", "smollm2_135m", "llama2_7b"])
@pytest.mark.parametrize(
    "asked", ["4.25M", "256M", "16M", "0.5M", "4456447", "1000003", "300000000"]
)
@pytest.mark.parametrize("experiment", ALL)
@by_default(lambda asked, model: model == "tiny" or asked == "1000003")
def test_every_experiment_plans_any_budget_to_the_token(
    compose_plain: Callable[..., dict], experiment: str, asked: str, model: str
) -> None:
    """Nothing in `conf/` refers to the budget, so it is set in what has been composed once."""
    plain = compose_plain(f"+experiment={experiment}", f"model={model}")
    plain["budget"] = asked if asked.endswith("M") else int(asked)
    made = plan.make(strict.load_plain(RunConfig, plain), world_size=2)
    assert made.tokens == budget.tokens_of(plain["budget"])
    for planned in made.stages:
        assert sum(planned.stream_tokens.values()) == planned.tokens


def test_step_sizes_follow_the_budget(compose_run: Callable[..., RunConfig]) -> None:
    """The published step from 64 of them on; smaller ones below."""

    def mix(asked: str) -> tuple[int, int, dict[str, int]]:
        stage = compose_run(
            "+experiment=longred_c_32k", "model=llama3_8b", f"budget={asked}"
        ).recipe.stages["mix"]
        blocks = {name: stream.blocks for name, stream in stage.streams.items()}
        return StageSchedule(stage).steps, stage.step_tokens, blocks

    assert mix("4.25M") == (34, 131_072, {"long": 1, "short": 32, "s2l": 4})
    assert mix("127M") == (1016, 131_072, {"long": 1, "short": 32, "s2l": 4})
    assert mix("128M") == (64, 2**21, {"long": 4, "short": 128, "s2l": 16})
    assert mix("256M") == (128, 2**21, {"long": 4, "short": 128, "s2l": 16})
    assert mix("null") == (512, 2**21, {"long": 4, "short": 128, "s2l": 16})


def test_what_a_user_sets_stands(compose_run: Callable[..., RunConfig]) -> None:
    run = compose_run(
        "+experiment=longred_c_32k",
        "recipe.stages.mix.tokens_per_step=262144",
        "recipe.stages.mix.slot_tokens=65536",
    )
    stage = run.recipe.stages["mix"]
    assert (stage.step_tokens, stage.streams["long"].blocks) == (262_144, 2)


@pytest.mark.parametrize("experiment", ["longred_c_32k", "longred_u_32k", "cpt_mix_32k"])
@pytest.mark.parametrize(
    ("tokens_per_step", "slot_tokens"), [(65_536, 32_768), (262_144, 32_768), (2**21, 131_072)]
)
def test_steps_of_another_size_keep_a_mixtures_proportions(
    compose_run: Callable[..., RunConfig], experiment: str, tokens_per_step: int, slot_tokens: int
) -> None:
    run = compose_run(
        f"+experiment={experiment}",
        "model=tiny",
        f"recipe.stages.mix.tokens_per_step={tokens_per_step}",
    )
    stage = run.recipe.stages["mix"]
    assert (stage.step_tokens, stage.slot_tokens) == (tokens_per_step, slot_tokens)
    assert {s.slot_tokens for s in stage.streams.values()} == {slot_tokens}
    read = StageSchedule(replace(stage, tokens=2**24)).tokens_read()
    assert (read["long"] / read["s2l"], read["short"] / read["s2l"]) == (4, 3)


@pytest.mark.parametrize(
    ("experiment", "asked"),
    [("cpt_long_32k", 131_073), ("cpt_mix_32k", 4_456_449), ("linearard_32k", 4_456_449)],
)
def test_a_budget_that_ends_on_a_single_token_is_refused_with_those_that_work(
    compose_run: Callable[..., RunConfig], experiment: str, asked: int
) -> None:
    def composed(tokens: int) -> RunConfig:
        return compose_run(f"+experiment={experiment}", "model=tiny", f"budget={tokens}")

    with pytest.raises(ConfigError, match=f"budget={asked} gives stage") as caught:
        composed(asked)
    assert str(caught.value).endswith(f"give {asked - 1} or {asked + 1}")
    for tokens in (asked - 1, asked + 1):
        plan.make(composed(tokens), world_size=1)


@pytest.mark.parametrize("written", ["4.25", "1e6", "0", "-5", "true", "[1]"])
def test_a_malformed_budget_is_refused_in_one_line(
    compose_run: Callable[..., RunConfig], written: str
) -> None:
    with pytest.raises(ConfigError, match=r"^budget=.*: give tokens as a whole number.*4\.25M.*$"):
        compose_run("+experiment=cpt_long_32k", f"budget={written}")


def test_a_budget_replaces_tokens_and_null_lets_them_stand(
    compose_run: Callable[..., RunConfig],
) -> None:
    set_by_hand = ("+experiment=cpt_long_32k", "recipe.stages.cpt.tokens=1048576")
    assert compose_run(*set_by_hand).recipe.stages["cpt"].tokens == 4_456_448
    assert compose_run(*set_by_hand, "budget=null").recipe.stages["cpt"].tokens == 1_048_576


def test_the_resolved_config_says_what_was_decided_and_loads_again(
    compose_run: Callable[..., RunConfig],
) -> None:
    run = compose_run("+experiment=longred_c_32k", "model=llama3_8b", "budget=1000003")
    plain = strict.to_containers(run)
    stage = plain["recipe"]["stages"]["mix"]
    assert plain["budget"] == 1_000_003
    assert (stage["tokens"], stage["tokens_per_step"]) == (1_000_003, 131_072)
    assert stage["streams"]["short"]["batch_size"] == 32
    assert strict.load_plain(RunConfig, plain) == run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget=1.5"], "budget"),
        (["budget=4.25G"], "budget='4.25G': give tokens as a whole number"),
        (["budget=0"], "budget"),
        (
            ["recipe.stages.mix.slot_tokens=1000"],
            "recipe.stages.mix.*streams.long.length=32768 does not make slot_tokens=1000",
        ),
        (
            ["recipe.stages.mix.streams.short.batch_size=31"],
            "streams.short.length=1024 x batch_size=31 does not make slot_tokens=32768",
        ),
        (["recipe.stages.mix.step_sizes=[]"], "tokens_per_step is null and step_sizes is empty"),
        (
            ["recipe.stages.mix.step_sizes.0.from_tokens=5000000"],
            "tokens=4456448: step_sizes begins at 5000000",
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_refused_with_the_setting_named(
    compose_run: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run("+experiment=longred_c_32k", "model=tiny", *overrides)
