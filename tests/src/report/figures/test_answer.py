from __future__ import annotations

import json
from pathlib import Path

from src.report.figures.answer import Matrix, matrices
from src.report.groups import group_runs
from src.report.noise import Mark
from src.report.runs import read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def matrices_of(outputs: Path, *jobs: Job) -> dict[tuple[str, str], Matrix]:
    for number, job in enumerate(jobs):
        synthetic.write_run(outputs / f"run-{number}", job, number)
    found = [matrix for matrix, _ in matrices(group_runs(read_runs(outputs)))]
    return {(matrix.block, matrix.metric.label): matrix for matrix in found}


def marks_of(matrix: Matrix) -> list[list[str]]:
    return [[entry.mark.value for cell in row.cells for entry in cell] for row in matrix.rows]


def test_scalings_are_compared_but_not_in_gaps_closed(outputs: Path) -> None:
    jobs = [
        Job(method=m, rope=rope) for m in ("linearard", "cpt_long") for rope in ("linear", "yarn")
    ]
    found = matrices_of(outputs, *jobs)
    recovery = found["llama2_7b to 32K", "Recovery, short suite"]
    assert [(row.method, row.scaling) for row in recovery.rows] == [
        *(("LinearARD", "linear x8"), ("LinearARD", "YaRN x8")),
        *(("Long-CPT", "linear x8"), ("Long-CPT", "YaRN x8")),
    ]
    assert sum(marks == ["best"] for marks in marks_of(recovery)) == 1
    gaps = found["llama2_7b to 32K", "Gap closed, short suite"]
    assert [marks[0] for marks in marks_of(gaps)] == ["best", "best", "worse", "worse"]


def test_the_lowest_perplexity_is_the_best(outputs: Path) -> None:
    jobs = [Job(seed=seed, method=m) for m in ("linearard", "cpt_long") for seed in range(2)]
    found = matrices_of(outputs, *jobs)
    matrix = found["llama2_7b to 32K", "Perplexity of pg19, windows of 4,096"]
    assert marks_of(matrix) == [["best"], ["worse"]]
    assert [name for name, _ in matrix.baselines] == ["native model", "linear x8, untrained"]
    (entry,) = matrix.rows[1].cells[0]
    assert entry.standings == "wb"


def test_a_value_alone_is_not_the_best(outputs: Path) -> None:
    for matrix in matrices_of(outputs, Job(), Job(seed=1)).values():
        assert marks_of(matrix) == [[Mark.ALONE.value]]


def test_other_items_are_another_metric(outputs: Path) -> None:
    found = matrices_of(outputs, Job(), Job(method="cpt_long"))
    file = outputs / "run-0" / "evals" / "short.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"limit": 50}))
    found = [matrix for matrix, _ in matrices(group_runs(read_runs(outputs)))]
    labels = {matrix.metric.label: len(matrix.rows) for matrix in found}
    assert labels["Short average, limit=50"] == labels["Short average"] == 1
    assert labels["RULER at 4,096"] == 2


def test_random_weights_begin_with_perplexity(outputs: Path) -> None:
    synthetic.write_run(outputs / "run", Job(), 0)
    for name in ("run.json", "config.yaml"):
        file = outputs / "run" / name
        text = file.read_text().replace("random_weights: false", "random_weights: true")
        file.write_text(text)
    first, *_ = [matrix for matrix, _ in matrices(group_runs(read_runs(outputs)))]
    assert first.block == "llama2_7b (random weights) to 32K"
    assert first.metric.label.startswith("Perplexity of pg19")
    assert first.random
