"""The needle-depth grid on the tiny model and own text."""

from __future__ import annotations

import json
from dataclasses import replace

from src.evals.ruler.loading import MaterialConfig
from src.evals.suite import Evaluation
from src.evals.suites.needle_depth import NeedleDepthSuite
from src.results import NeedleDepthResults, parse

NATIVE, SCALED = 1024, 2048


def test_every_depth_is_scored_at_every_length(
    evaluation: Evaluation, material_config: MaterialConfig
) -> None:
    # A depth that is named twice is asked once.
    depths = (0.0, 100.0, 0.0)
    suite = NeedleDepthSuite(
        lengths=(NATIVE, SCALED), depths=depths, samples=1, material=material_config
    )
    result = suite.run(evaluation)
    assert result.record is not None
    record = parse(json.dumps(result.record.plain(), allow_nan=False), NeedleDepthResults)
    assert record == result.record
    assert record is not None
    assert not record.failures
    by_name = {m.name: [(c.length, c.depth, c.n) for c in m.cells] for m in record.models}
    short = [(NATIVE, 0, 1), (NATIVE, 100, 1)]
    both = [*short, (SCALED, 0, 1), (SCALED, 100, 1)]
    assert by_name == {"native": short, "scaled": both, "after ard": both}
    (table,) = suite.tables(record)
    assert table.columns == ("model", "length", "0", "100")
    assert len(table.rows) == 5
    assert all(table.cells(row) for row in table.rows)
    assert suite.summary(record) == {}
    assert [i["depth"] for i in result.items if i["model"] == "native"] == [0.0, 100.0]


def test_a_limit_is_marked_and_lengths_beyond_every_window_are_named(
    evaluation: Evaluation, material_config: MaterialConfig
) -> None:
    suite = NeedleDepthSuite(
        lengths=(NATIVE, 9999), depths=(50.0,), samples=3, material=material_config, limit=1
    )
    (problem,) = suite.problems(evaluation)
    assert "beyond the longest window of the models, 2048" in problem
    record = suite.run(replace(evaluation, candidates=evaluation.candidates[:1])).record
    assert isinstance(record, NeedleDepthResults)
    assert record.models[0].cells[0].n == 1
    (table,) = suite.tables(record)
    assert "limit=1" in table.title
    assert table.name == "needle_depth_limit_1"


def test_halves_ask_different_samples_and_say_so(
    evaluation: Evaluation, material_config: MaterialConfig
) -> None:
    alone = replace(evaluation, candidates=evaluation.candidates[:1])
    asked = {}
    for split in ("all", "validation", "test"):
        suite = NeedleDepthSuite(
            lengths=(NATIVE,), depths=(50.0,), samples=3, material=material_config, split=split
        )
        result = suite.run(alone)
        record = result.record
        assert isinstance(record, NeedleDepthResults)
        assert record.split == (None if split == "all" else split)
        number = {"all": 3, "validation": 2, "test": 1}[split]
        assert {cell.n for cell in record.models[0].cells} == {number}
        asked[split] = [tuple(item["outputs"]) for item in result.items]
        (table,) = suite.tables(record)
        assert ("half=" in table.title) == (split != "all")
        assert table.name == {"all": "needle_depth"}.get(split, f"needle_depth_{split}")
    assert sorted(asked["validation"] + asked["test"]) == sorted(asked["all"])
    assert not set(asked["validation"]) & set(asked["test"])
