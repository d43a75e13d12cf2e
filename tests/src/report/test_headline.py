from __future__ import annotations

from pathlib import Path

from src.report.groups import group_runs
from src.report.headline import Headline, headline
from src.report.noise import Mark
from src.report.runs import read_runs
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def table_of(outputs: Path, *jobs: Job) -> Headline:
    for number, job in enumerate(jobs):
        synthetic.write_run(outputs / f"run-{number}", job, number)
    return headline(group_runs(read_runs(outputs)))


def test_methods_are_compared_within_a_model_and_scaling(outputs: Path) -> None:
    table = table_of(
        outputs,
        *(Job(seed=seed) for seed in range(2)),
        *(Job(method="cpt_long", seed=seed) for seed in range(2)),
        Job(model="smollm2_135m", factor=4),
    )
    assert [block.title for block in table.blocks] == [
        *("llama2_7b, linear x8", "smollm2_135m, linear x4")
    ]
    assert [block.limit for block in table.blocks] == [None, 200]
    titles = [column.title for column in table.columns]
    assert titles[:2] == ["short average", "recovery"]
    assert titles[-1] == "RULER 32K"
    first = table.blocks[0]
    assert [row.name for row in first.baselines] == ["native", "scaled"]
    assert [(row.name, row.tokens, row.seeds) for row in first.rows] == [
        ("linearard", "4.25M", 2),
        ("cpt_long", "4.25M", 2),
    ]
    recovery = [row.cells[1] for row in first.rows]
    assert [cell.mark for cell in recovery] == [Mark.BEST, Mark.WORSE]
    assert " to " in recovery[0].interval
    assert all(cell.mark is Mark.ABSENT for row in first.baselines for cell in row.cells)


def test_missing_suites_are_named(outputs: Path) -> None:
    table = table_of(outputs, Job(model="tiny"))
    assert table.missing == ("short", "long", "perplexity")
    assert table.columns == ()


def test_hours_of_a_cpu_are_not_taken_for_a_gpus(outputs: Path) -> None:
    table_of(outputs, Job())
    record = outputs / "run-0" / "run.json"
    record.write_text(record.read_text().replace("NVIDIA H100 80GB HBM3", "x86_64 CPU, 2 cores"))
    (block,) = headline(group_runs(read_runs(outputs))).blocks
    assert block.rows[0].hours == "0.12 CPU"
