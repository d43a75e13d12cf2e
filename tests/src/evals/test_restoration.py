"""Scores between models, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from src.evals.restoration import MIN_ITEMS, Answers, Restoration, TaskFacts
from src.results import Intervals, Role, StudentScores

ROLES: dict[str, Role] = {
    "native": "native",
    "scaled": "scaled",
    "student": "final",
    "other": "comparison",
}


def right(count: int, of: int, seed: int = 0) -> Answers:
    """`count` right answers of `of`, in a drawn order."""
    score = np.zeros(of)
    score[np.random.default_rng(seed).permutation(of)[:count]] = 1
    return Answers(score, np.ones(of))


def bits(per_byte: float, items: int = 400) -> Answers:
    weight = np.full(items, 100.0)
    noise = np.random.default_rng(1).normal(1, 0.1, items)
    return Answers(per_byte * weight * noise / noise.mean(), weight)


def compared(
    tasks: list[TaskFacts], answers: dict[str, dict[str, Answers]], resamples: int = 1000
) -> Restoration:
    return Restoration(tasks, answers, ROLES, resamples=resamples, seed=0)


QA = TaskFacts("qa", "Common sense", "acc", chance=0.25)
GUESSED = TaskFacts("guessed", "Common sense", "acc", chance=0.5)
BITS = TaskFacts("bits", "Coding", "bits_per_byte", higher_is_better=False)


@pytest.fixture
def three() -> Restoration:
    return compared(
        [QA, GUESSED, BITS],
        {
            "native": {
                "qa": right(800, 1000),
                "guessed": right(505, 1000, seed=505),
                "bits": bits(1.0),
            },
            "scaled": {
                "qa": right(400, 1000),
                "guessed": right(500, 1000, seed=500),
                "bits": bits(2.0),
            },
            "student": {
                "qa": right(700, 1000),
                "guessed": right(495, 1000, seed=495),
                "bits": bits(1.25),
            },
            "other": {
                "qa": right(600, 1000),
                "guessed": right(498, 1000, seed=498),
                "bits": bits(1.5),
            },
        },
    )


def test_a_value_and_its_standard_error_are_those_of_a_mean(three: Restoration) -> None:
    found = three.results("native")["qa"]
    assert found.value == pytest.approx(0.8)
    assert found.stderr == pytest.approx(np.sqrt(0.8 * 0.2 / 999))
    assert (found.n, found.metric, found.chance) == (1000, "acc", 0.25)


def test_a_ratios_standard_error_is_the_bootstraps() -> None:
    draw = np.random.default_rng(5)
    weight = draw.uniform(20, 300, 500)
    given = Answers(weight * draw.normal(1.1, 0.3, 500), weight)
    chosen = draw.integers(0, 500, (4000, 500))
    resampled = given.score[chosen].sum(1) / given.weight[chosen].sum(1)
    assert given.stderr == pytest.approx(resampled.std(), rel=0.05)


def test_scores_of_a_task(three: Restoration) -> None:
    found = three.scores("student").tasks["qa"]
    assert found.recovery == pytest.approx(100 * 0.7 / 0.8)
    assert found.gap_closed == pytest.approx(0.75)
    assert found.recovery_vs_best == pytest.approx(100 * 0.7 / 0.6)
    assert found.difference.to_scaled.value == pytest.approx(0.3)
    behind = found.difference.to_native
    assert behind.value == pytest.approx(-0.1)
    assert behind.interval is not None
    # A hundred of the thousand items differ: a standard error of 0.0095.
    assert behind.interval == pytest.approx((-0.1 - 1.96 * 0.0095, -0.1 + 1.96 * 0.0095), abs=0.003)
    assert found.significant
    assert found.discriminating
    for name in ("recovery", "gap_closed", "recovery_vs_best"):
        low, high = getattr(found.interval, name)
        assert low < getattr(found, name) < high


def test_lower_is_better_turns_the_ratios_over(three: Restoration) -> None:
    found = three.scores("student").tasks["bits"]
    assert found.recovery == pytest.approx(100 * 1.0 / 1.25)
    assert found.gap_closed == pytest.approx(0.75)
    assert found.recovery_vs_best == pytest.approx(100 * 1.5 / 1.25)


def test_a_difference_within_noise_is_shown_as_such(three: Restoration) -> None:
    found = three.scores("student").tasks["guessed"]
    assert not found.significant
    assert not found.discriminating
    assert found.gap_closed is None
    assert found.interval.gap_closed is None


def test_the_average_is_over_discriminating_tasks_of_one_kind(three: Restoration) -> None:
    average, full = three.average("native"), three.average("native", full=True)
    assert average is not None
    assert full is not None
    assert average.tasks == ("qa",)
    assert full.tasks == ("qa", "guessed")
    assert full.value == pytest.approx((0.8 + 0.505) / 2)
    errors = [three.results("native")[t].stderr for t in ("qa", "guessed")]
    assert full.stderr == pytest.approx(np.hypot(*errors) / 2)
    scored = three.scores("student")
    assert scored.average.recovery == pytest.approx(87.5)
    assert scored.full_average.recovery == pytest.approx(100 * 0.5975 / 0.6525)
    assert scored.categories["Coding"].gap_closed == pytest.approx(0.75)


def test_where_no_share_discriminates_bits_do_not_take_the_averages_place() -> None:
    answers = {
        name: {"guessed": right(500, 1000), "bits": bits(1.0)}
        for name in ("native", "scaled", "student", "other")
    }
    found = compared([GUESSED, BITS], answers)
    assert found.average("native") is None
    assert found.scores("student").average is None
    full = found.average("native", full=True)
    assert full is not None
    assert full.tasks == ("guessed",)


def test_the_bootstrap_is_paired() -> None:
    """Two models that differ in few items: an unpaired interval would hide it."""
    native = right(500, 1000, seed=3)
    scaled = Answers(native.score.copy(), native.weight)
    wrong = np.flatnonzero(native.score)[:12]
    scaled.score[wrong] = 0
    student = Answers(scaled.score.copy(), native.weight)
    student.score[wrong[:10]] = 1
    answers = {"native": native, "scaled": scaled, "student": student}
    found = (
        Restoration(
            [QA],
            {name: {"qa": given} for name, given in answers.items()},
            ROLES,
            resamples=2000,
            seed=0,
        )
        .scores("student")
        .tasks["qa"]
    )
    assert found.significant
    low, high = found.difference.to_scaled.interval
    # Of a thousand items, ten differ: the difference is 0.010 with a standard error of 0.0031.
    assert low == pytest.approx(0.010 - 1.96 * 0.0031, abs=0.0015)
    assert high == pytest.approx(0.010 + 1.96 * 0.0031, abs=0.0015)


def test_intervals_cover_as_often_as_they_say() -> None:
    hits = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        answers = {
            name: {"qa": Answers((draw.random(300) < p).astype(float), np.ones(300))}
            for name, p in (("native", 0.8), ("scaled", 0.4), ("student", 0.6))
        }
        found = Restoration([QA], answers, ROLES, resamples=300, seed=trial)
        low, high = found.scores("student").tasks["qa"].interval.recovery
        hits += low <= 75 <= high
    assert hits >= 180


def test_intervals_weigh_items_as_the_value_does() -> None:
    draw = np.random.default_rng(2)
    weight = draw.uniform(1, 400, 300)
    answers = {
        model: {"bits": Answers(weight * draw.normal(per_byte, 0.2, 300), weight)}
        for model, per_byte in (("native", 1.0), ("scaled", 2.0), ("student", 1.2))
    }
    found = compared([BITS], answers).scores("student").tasks["bits"]
    for difference, value in (
        (found.difference.to_native, 0.2),
        (found.difference.to_scaled, -0.8),
    ):
        assert difference.interval is not None
        low, high = difference.interval
        assert low < difference.value < high
        assert difference.value == pytest.approx(value, abs=0.06)
        assert high - low < 0.15


def test_a_seed_gives_the_same_intervals_whatever_other_tasks_there_are(three: Restoration) -> None:
    alone = compared([QA], {m: {"qa": a["qa"]} for m, a in three.answers.items()})
    mine, theirs = (found.scores("student").tasks["qa"].interval for found in (alone, three))
    assert mine == theirs


def test_a_task_that_one_model_lacks_stays_out_of_averages(three: Restoration) -> None:
    answers = {m: dict(a) for m, a in three.answers.items()}
    del answers["student"]["guessed"]
    found = compared([QA, GUESSED, BITS], answers)
    full = found.average("native", full=True)
    assert full is not None
    assert full.tasks == ("qa",)
    assert "guessed" in found.results("native")
    assert "guessed" not in found.scores("student").tasks
    assert "guessed" in found.scores("other").tasks


def test_a_model_alone_has_no_scores() -> None:
    found = Restoration([QA], {"native": {"qa": right(5, 10)}}, ROLES, resamples=100, seed=0)
    assert found.scores("native") == StudentScores()
    assert found.results("native")["qa"].value == 0.5


def test_a_reference_at_zero_gives_no_infinite_score() -> None:
    answers = {m: {"qa": right(0, 10)} for m in ("native", "scaled", "student", "other")}
    found = compared([QA], answers).scores("student").tasks["qa"]
    assert found.recovery is None
    assert found.interval.recovery is None


@pytest.mark.parametrize("items", [1, 2, 3, MIN_ITEMS - 1])
def test_a_few_items_make_nothing_certain(items: int) -> None:
    answers = {
        "native": {"qa": right(items, items), "bits": bits(1.0, items)},
        "scaled": {"qa": right(0, items), "bits": bits(2.0, items)},
        "student": {"qa": right(items, items), "bits": bits(1.0, items)},
    }
    found = Restoration([QA, BITS], answers, ROLES, resamples=100, seed=0)
    assert found.results("native")["qa"].stderr is None
    assert found.model("native").categories["Common sense"].stderr is None
    assert found.average("native") is None
    full = found.average("native", full=True)
    assert full is not None
    assert (full.value, full.stderr) == (1.0, None)
    scores = found.scores("student")
    for scored in (*scores.tasks.values(), *scores.categories.values()):
        assert scored.recovery == pytest.approx(100)
        assert scored.gap_closed is None
        assert scored.interval == Intervals()
        assert scored.difference.to_scaled.interval is None
        assert not scored.significant
        assert not scored.discriminating
    assert scores.average is None


def test_a_mean_is_as_uncertain_as_its_least_known_task() -> None:
    few = TaskFacts("few", "Common sense", "acc", chance=0.25)
    answers = {
        name: {"qa": right(count, 100), "few": right(3, 3)}
        for name, count in (("native", 90), ("scaled", 30), ("student", 60), ("other", 50))
    }
    found = compared([QA, few], answers)
    full = found.average("native", full=True)
    assert full is not None
    assert full.stderr is None
    scores = found.scores("student")
    assert not scores.full_average.significant
    assert scores.average.significant, "it is over the task that is known"
