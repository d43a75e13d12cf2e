"""Which runs follow from the rows that there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from benchmarks.study import phases, running, scores
from benchmarks.study.grid import Grid, Job
from src.settings.strict import ConfigError, load_plain
from tests.conftest import ROOT

RATE = "recipe.stages.cpt.lr"


def method(*rates: float, **more: Any) -> dict[str, Any]:
    return {
        "label": "a method",
        "settings": ["+experiment=cpt_long_32k"],
        "range": {RATE: [1e-5, 1e-3]},
        "points": [{RATE: rate} for rate in rates],
        **more,
    }


def grid(**more: Any) -> Grid:
    plain: dict[str, Any] = {
        "search_budget": "1M",
        "budget": "4M",
        "proposed": 1,
        "seeds": [0, 1],
        "scalings_kept": 1,
        "floor": "linear",
        "rival": "a",
        "headline": ["a"],
        "models": {"m": {"settings": [], "native_window": 8192}},
        "scalings": {"linear": ["rope=linear"], "yarn": ["rope=yarn"]},
        "methods": {"a": method(1e-4, 3e-4), "b": method(1e-4, 3e-4, scalings=["linear"])},
    }
    return load_plain(Grid, plain | more)


def own(**more: Any) -> dict[str, Any]:
    """A model with something of its own."""
    return {"models": {"m": {"settings": [], "native_window": 8192, **more}}}


def values(short: float, ruler: float) -> dict[str, Any]:
    return {"short": {"lambada": short}, "ruler": {"4096": ruler, "16384": ruler}}


NATIVE = {"short": {"lambada": 0.5}, "ruler": {"4096": 0.8}}


def done(job: Job, short: float, ruler: float) -> dict[str, Any]:
    more = {"native": NATIVE} if job.phase == "untrained" else {}
    return {**job.about, "validation": values(short, ruler), **more}


def played(of: Grid, short: Callable[[Job], float]) -> list[dict[str, Any]]:
    """All rows of a study whose runs score as given."""
    rows: list[dict[str, Any]] = []
    while waiting := list(phases.ready(of, rows)):
        assert len(rows) < 100
        rows.append(done(waiting[0], short(waiting[0]), 0.4))
    return rows


def of_phase(rows: list[dict[str, Any]], phase: str) -> list[tuple[str, str, float, int]]:
    found = [row for row in rows if row["phase"] == phase]
    return [(r["scaling"], r["method"], r["params"].get(RATE, 0), r["seed"]) for r in found]


def score(job: Job) -> float:
    if job.method == "untrained":
        return {"linear": 0.1, "yarn": 0.4}[job.scaling]
    at = 0.3 if job.method == "a" else 0.35
    # More tokens are better for one method, and worse for the other.
    if job.phase == "whole":
        at += 0.01 if job.method == "a" else -0.01
    return at - 100 * abs(job.params[RATE] - 3e-4) - (0.1 if job.scaling == "linear" else 0)


def test_every_phase_follows_from_the_one_before() -> None:
    rows = played(grid(), score)
    order = list(dict.fromkeys(row["phase"] for row in rows))
    assert order == ["untrained", "search", "baseline", "whole", "final"]
    assert of_phase(rows, "baseline") == [
        ("yarn", "untrained", 0, 0),
        ("linear", "untrained", 0, 0),
    ]
    assert of_phase(rows, "untrained") == [
        ("linear", "untrained", 0, 0),
        ("yarn", "untrained", 0, 0),
    ]
    searched = of_phase(rows, "search")
    # Each method on the kept scaling, one on the floor besides: two points and a proposal each.
    assert {(s, m) for s, m, _, _ in searched} == {("yarn", "a"), ("yarn", "b"), ("linear", "b")}
    assert len(searched) == 9
    assert [rate for s, m, rate, _ in searched if (s, m) == ("yarn", "a")][:2] == [1e-4, 3e-4]
    # The best settings of each cell; the floor's goes on for being the paper's.
    assert {(s, m) for s, m, _, _ in of_phase(rows, "whole")} == {
        *(("yarn", "a"), ("yarn", "b"), ("linear", "b"))
    }
    for scaling, name, rate, _ in of_phase(rows, "whole"):
        tried = [r for s, m, r, _ in searched if (s, m) == (scaling, name)]
        assert rate == min(tried, key=lambda r: abs(r - 3e-4))
    finals = of_phase(rows, "final")
    assert [seed for *_, seed in finals] == [0, 0, 0, 1, 1, 1], (
        "all methods at the first seed first"
    )
    budgets = {(r["method"], r["budget"]) for r in rows if r["phase"] == "final"}
    assert budgets == {("a", "4M"), ("b", "1M")}


@pytest.mark.parametrize(
    ("sharp", "tested"), [(0.45, ["yarn", "sharp", "linear"]), (0.3, ["yarn", "linear"])]
)
def test_nothing_is_trained_on_some_scalings(sharp: float, tested: list[str]) -> None:
    scalings = {name: [f"rope={name}"] for name in ("linear", "sharp", "yarn")}
    of = grid(scalings=scalings, untrained_only=["sharp"])

    def scored(job: Job) -> float:
        return sharp if job.scaling == "sharp" else score(job)

    rows = played(of, scored)
    assert {s for s, m, *_ in of_phase(rows, "search") if m != "untrained"} == {"yarn", "linear"}
    assert [scaling for scaling, *_ in of_phase(rows, "baseline")] == tested
    model = own(scalings=["linear", "yarn"], untrained_only=["sharp"])
    assert played(grid(scalings=scalings, **model), scored) == rows
    with pytest.raises(ConfigError, match=r"scalings: \['flat'\] are named and not listed"):
        grid(untrained_only=["flat"])


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_the_first_table_shows_is_tested_first(first: str) -> None:
    methods = {"a": method(1e-4, 3e-4), "b": method(1e-4, 3e-4)}
    rows = played(grid(methods=methods, headline=[first]), score)
    (other,) = {"a", "b"} - {first}
    tested = [(name, seed) for _, name, _, seed in of_phase(rows, "final")]
    assert tested == [(first, 0), (other, 0), (first, 1), (other, 1)]


def test_the_best_scalings_are_kept_wherever_they_stand() -> None:
    untrained = {"llama3": 0.2, "ntk": 0.45, "linear": 0.1, "yarn": 0.4, "abf": 0.3}
    of = grid(scalings={name: [f"rope={name}"] for name in untrained}, scalings_kept=2)

    def scored(job: Job) -> float:
        return untrained[job.scaling] if job.method == "untrained" else 0.3

    rows = played(of, scored)
    assert phases.kept_scalings(of, "m", rows) == ["ntk", "yarn"]
    searched = {(s, m) for s, m, _, _ in of_phase(rows, "search")}
    assert searched == {("ntk", "a"), ("ntk", "b"), ("yarn", "a"), ("yarn", "b"), ("linear", "b")}


def test_a_number_of_nothing_is_above_one_below() -> None:
    rows = [
        {**done(Job("untrained", "m", "linear"), 0.1, 0.0), "native": NATIVE},
        {**done(Job("untrained", "m", "yarn"), 0.0, 0.0), "native": NATIVE},
    ]
    assert scores.choice(rows, rows[0], "linear") == 0.0
    assert phases.kept_scalings(grid(), "m", rows) == ["linear"]


def test_a_method_goes_on_with_its_best_cell_and_the_upper_half_with_all() -> None:
    at = {("ntk", "a"): 0.45, ("ntk", "b"): 0.2, ("yarn", "a"): 0.25, ("yarn", "b"): 0.15}
    of = grid(
        scalings={name: [f"rope={name}"] for name in ("ntk", "linear", "yarn")},
        methods={"a": method(1e-4), "b": method(1e-4)},
        scalings_kept=2,
        proposed=0,
        seeds=[3, 4],
    )

    def scored(job: Job) -> float:
        if job.method == "untrained":
            return {"ntk": 0.45, "linear": 0.1, "yarn": 0.4}[job.scaling]
        return at[job.scaling, job.method]

    whole = of_phase(played(of, scored), "whole")
    assert whole == [(*cell, 1e-4, 3) for cell in (("ntk", "a"), ("yarn", "a"), ("ntk", "b"))], (
        "the best one first; the last is below the median, and its method's best"
    )


def test_what_was_proposed_once_stays() -> None:
    rows = played(grid(), score)
    mine = [
        row
        for row in rows
        if (row["phase"], row["scaling"], row["method"]) == ("search", "yarn", "a")
    ]
    assert len(mine) == 3
    mine[-1]["params"] = {RATE: 2.2e-4}
    assert not [job for job in phases.ready(grid(), rows) if job.phase == "search"]
    mine[-1]["method"] = "b"
    [missing] = [job for job in phases.ready(grid(), rows) if job.phase == "search"]
    assert (missing.scaling, missing.method) == ("yarn", "a")
    assert missing.params[RATE] != pytest.approx(2.2e-4)


def test_the_floor_is_tested_last() -> None:
    tests = [row["scaling"] for row in played(grid(), score) if row.get("phase") == "baseline"]
    assert tests == ["yarn", "linear"]
    assert played(grid(), score)[-1]["scaling"] == "linear"


def test_ablations_are_the_best_settings_with_a_part_changed() -> None:
    about = {"of": "a", "settings": ["+experiment=cpt_long_32k"], "label": "less"}
    of = grid(
        ablations={
            "without": {**about, "without": [RATE]},
            "elsewhere": {**about, "scaling": "linear"},
        }
    )
    rows = played(of, lambda job: 0.3 if job.phase == "ablation" else score(job))
    [without, elsewhere] = [row for row in rows if row["phase"] == "ablation"]
    final = next(row for row in rows if (row["phase"], row["method"]) == ("final", "a"))
    assert (without["params"], without["scaling"]) == ({}, "yarn")
    assert (elsewhere["params"], elsewhere["scaling"]) == (final["params"], "linear")
    assert {without["budget"], elsewhere["budget"]} == {final["budget"]}
    assert "test" not in without


def test_a_method_goes_on_while_others_are_searched() -> None:
    of = grid()
    rows: list[dict[str, Any]] = []
    while waiting := [job for job in phases.ready(of, rows) if "b" not in (job.method, job.phase)]:
        rows.append(done(waiting[0], score(waiting[0]), 0.4))
    assert {s for s, *_ in of_phase(rows, "whole")} == {"yarn"}
    assert len(of_phase(rows, "final")) == 2


def test_half_of_the_cells_stop_after_the_search() -> None:
    wide = grid(scalings_kept=2)
    rows = played(wide, score)
    cells = {(s, m) for s, m, _, _ in of_phase(rows, "search")}
    assert len(cells) == 4
    without_floor = grid(floor="yarn", scalings_kept=2)
    kept = {(s, m) for s, m, _, _ in of_phase(played(without_floor, score), "whole")}
    assert ("linear", "a") not in kept, "the worst of four"


def test_a_model_has_its_own_study() -> None:
    changed = {"settings": ["x=1"], "points": [{RATE: 3e-5}]}
    two = {
        "m": {"settings": [], "native_window": 8192},
        "n": {
            "settings": [],
            "native_window": 32768,
            "scalings": ["linear", "yarn"],
            "methods": {"b": changed},
            "proposed": 0,
            "seeds": [4, 5],
            "search_budget": "2M",
            "budget": "2M",
            "headline": ["b"],
        },
    }
    of = grid(models=two, scalings={k: [f"rope={k}"] for k in ("linear", "yarn", "ntk")})
    second = of.of("n")
    assert second.methods["b"].settings == ("+experiment=cpt_long_32k", "x=1")
    assert second.methods["b"].scalings == (), "not the floor, unless it says so"
    assert (list(second.scalings), second.headline) == (["linear", "yarn"], ("b",))
    assert (list(of.of("m").methods), of.of("m").budget) == (["a", "b"], "4M")

    def by_method(job: Job) -> float:
        return {"linear": 0.1, "yarn": 0.4, "ntk": 0.2}[job.scaling]

    rows = [row for row in played(of.only(["n"], None), by_method) if row["model"] == "n"]
    assert [(r["phase"], r["scaling"], r["budget"], r["seed"]) for r in rows] == [
        ("untrained", "linear", "", 0),
        ("untrained", "yarn", "", 0),
        ("search", "yarn", "2M", 4),
        # No whole run: the search had the whole budget.
        ("baseline", "yarn", "", 0),
        ("final", "yarn", "2M", 4),
        ("final", "yarn", "2M", 5),
        ("baseline", "linear", "", 0),
    ]
    assert Job(**{k: rows[2][k] for k in vars(Job("search", "n", "yarn"))}).run in (
        Job(**{k: rows[4][k] for k in vars(Job("search", "n", "yarn"))}).name
    ), "the first final is the searched run"


def test_the_better_half_alone_goes_on() -> None:
    rates = [3e-4 * (1 + i / 100) for i in range(2)]
    names = "abcd"
    methods = {name: method(*rates) for name in names}
    of = grid(methods=methods, halved=True, proposed=0, seeds=[0])

    def by_name(job: Job) -> float:
        if job.method == "untrained":
            return {"linear": 0.1, "yarn": 0.4}[job.scaling]
        # With more tokens one of the better half gets better, the other worse.
        more = {"c": 0.1, "d": -0.1}[job.method] if job.phase == "whole" else 0
        return 0.2 + names.index(job.method) / 100 + more

    rows = played(of, by_name)
    assert sorted(name for _, name, *_ in of_phase(rows, "whole")) == ["c", "d"]
    finals = {row["method"]: row["budget"] for row in rows if row["phase"] == "final"}
    assert finals == {"a": "1M", "b": "1M", "c": "4M", "d": "1M"}
    order = list(dict.fromkeys(row["phase"] for row in rows))
    assert order == ["untrained", "search", "baseline", "whole", "final"], "halved at the end"


def test_more_tokens_are_tried_and_not_chosen() -> None:
    of = grid(larger="16M", measured=["a"])

    def more_is_better(job: Job) -> float:
        return score(job) + {"16M": 0.2}.get(job.budget, 0)

    rows = played(of, more_is_better)
    larger = [row for row in rows if row["budget"] == "16M"]
    assert [(r["phase"], r["scaling"], r["method"], r["seed"]) for r in larger] == [
        ("whole", "yarn", "a", 0)
    ]
    assert larger[0]["params"] == next(
        row["params"] for row in rows if row["phase"] == "whole" and row["method"] == "a"
    )
    assert {row["budget"] for row in rows if row["phase"] in ("final", "measure")} <= {"1M", "4M"}


def test_a_call_may_name_models_and_methods() -> None:
    of = grid(models={"m": {"settings": [], "native_window": 1}} | own()["models"])
    assert list(of.only(None, ["b"]).of("m").methods) == ["b"]
    narrow = grid(**own(methods={"a": {}, "b": {}}, headline=["a", "b"])).only(["m"], ["b"])
    assert (list(narrow.of("m").methods), narrow.of("m").headline) == (["b"], ("b",))
    with pytest.raises(ValueError, match="--models=x: give some of m"):
        of.only(["x"], None)


def test_a_proposal_follows_from_the_values() -> None:
    about = grid().methods["a"]
    known = [({RATE: 1e-4}, 0.2), ({RATE: 3e-4}, 0.4), ({RATE: 1e-3}, None)]
    first = phases.proposed(about, known)
    assert first == phases.proposed(about, known)
    assert 1e-5 <= first[RATE] <= 1e-3
    assert first != phases.proposed(about, [({RATE: 1e-4}, 0.4), ({RATE: 3e-4}, 0.2)])


def test_what_diverged_is_never_chosen() -> None:
    of = grid()
    rows: list[dict[str, Any]] = []
    while waiting := list(phases.ready(of, rows)):
        job = waiting[0]
        row = done(job, score(job), 0.4)
        if job.phase == "search" and job.params[RATE] == 3e-4:
            row["validation"] = None
        rows.append(row)
    assert of_phase(rows, "final")
    assert 3e-4 not in [rate for _, _, rate, _ in of_phase(rows, "whole")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"floor": "ntk"}, "are named and not listed"),
        (
            {"ablations": {"b": {"label": "l", "of": "a", "settings": []}}},
            "are names of methods",
        ),
        ({"methods": {"a": method(1e-4), "b": method(1e-4, 3e-4)}}, "the same number of points"),
        ({"methods": {"a": method(1.0)}}, "is outside"),
        (own(scalings=["ntk"]), r"models.m.scalings: \['ntk'\] are named and not listed"),
        (own(methods={"c": {}}), r"models.m.methods: \['c'\]"),
        (own(headline=["c"]), r"models.m.headline: \['c'\]"),
        (own(methods={"a": {"points": [{RATE: 1.0}]}}), "is outside"),
        (own(methods={"a": {"points": [{RATE: 1e-4}]}, "b": {}}), "the same number of points"),
        (own(methods={"a": {"scalings": ["ntk"]}}), "are named and not listed"),
    ],
)
def test_a_grid_that_is_unfair_or_unclear_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(**more)


@pytest.mark.parametrize("name", ["grid", "quick"])
def test_every_run_of_the_grids_composes(
    name: str, compose_plain: Callable[..., dict[str, Any]]
) -> None:
    whole = Grid.load(ROOT / "benchmarks" / "study" / f"{name}.yaml")
    for of in map(whole.of, whole.models):
        [model] = of.models.values()
        scaling = of.scalings.get("yarn", of.scalings[of.floor])
        for about in of.methods.values():
            point = [f"{key}={value:g}" for key, value in about.points[0].items()]
            settings = [*about.settings, *model.settings, *scaling, *of.settings]
            plain = compose_plain(*settings, *point, f"budget={of.search_budget}")
            assert f"rope={plain['rope']['type']}" in scaling
            assert plain["model"]["native_window"] == model.native_window
        for split in ("validation", "test"):
            asked = model.validation if split == "validation" else model.test
            compose_plain("run=R", f"eval={split}", *asked, name="evaluate")
    for _, _, *settings in running.preparations(whole):
        plain = compose_plain(*settings)
        assert plain["prepare"]
        assert ("ruler" in plain["eval"]) != ("eval=measures" in settings)
    for split in ("validation", "test"):
        suites = yaml.safe_load((ROOT / f"conf/eval/{split}.yaml").read_text())
        assert [suites[suite]["split"] for suite in ("short", "ruler")] == [split, split]


def test_restore_32k_is_what_the_study_chose(
    compose_plain: Callable[..., dict[str, Any]],
) -> None:
    folder = ROOT / "benchmarks" / "results" / "study"
    rows = [
        row
        for row in json.loads((folder / "runs.json").read_text())["rows"]
        if row["model"] == "smollm2_135m" and row["validation"]
    ]
    of = Grid.load(ROOT / "benchmarks" / "study" / "grid.yaml")
    chosen = scores.best(rows, rows, of.floor)
    assert chosen is not None
    about, model = of.methods[chosen["method"]], of.models["smollm2_135m"]
    assert chosen["method"] == "restore_repeat"
    point = [f"{key}={value:g}" for key, value in chosen["params"].items()]
    asked = [*about.settings, *model.settings, *of.scalings[chosen["scaling"]], *point]
    studied = compose_plain(*asked, f"budget={chosen['budget']}")
    named = compose_plain("+experiment=restore_32k", *model.settings)
    [ours], [theirs] = (list(of_["recipe"]["stages"].values()) for of_ in (named, studied))
    assert ours["streams"]["long"]["repeats"] == {
        "longest": 256,
        **theirs["streams"]["long"]["repeats"],
    }
    for key in ("lr", "warmup_steps", "final_lr_fraction", "parameters"):
        assert ours[key] == theirs[key], key
    for key in ("objective", "length"):
        assert ours["streams"]["long"][key] == theirs["streams"]["long"][key]
    assert ours["tokens_per_step"] == theirs["step_sizes"][0]["tokens_per_step"]
    assert (named["rope"], named["budget"]) == (studied["rope"], studied["budget"])


def test_the_number_is_the_mean_of_both_parts() -> None:
    floor = {"short": {"x": 0.1, "y": 0.3}, "ruler": {"4096": 0.0}}
    native = {"short": {"x": 0.5, "y": 0.5}, "ruler": {"4096": 0.8, "8192": 0.5}}
    student = {"short": {"x": 0.4, "y": 0.4}, "ruler": {"4096": 0.4, "32768": 0.25}}
    assert scores.short_part(student, native, floor) == pytest.approx(2 / 3)
    assert scores.ruler_part(student, native) == pytest.approx(0.5), "at 32K against 8K"
    rows = [
        {"phase": "untrained", "model": "m", "scaling": "linear"}
        | {"native": native, "validation": floor}
    ]
    row = {"model": "m", "validation": student}
    assert scores.choice(rows, row, "linear") == pytest.approx((2 / 3 + 0.5) / 2)
    assert scores.choice(rows, row | {"validation": None}, "linear") is None
    assert scores.short_part(student, floor, floor) is None
    blind = native | {"ruler": {"4096": 0.0}}
    assert scores.ruler_part(student, blind) is None
