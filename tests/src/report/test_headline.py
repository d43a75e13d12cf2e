from __future__ import annotations

from pathlib import Path

from src.report.groups import group_runs
from src.report.headline import headline, missing_suites
from src.report.noise import Mark
from src.report.runs import read_runs
from src.report.tables import Table
from tests.src.report import synthetic
from tests.src.report.synthetic import Job


def table_of(outputs: Path, *jobs: Job) -> Table:
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
    assert [section.title for section in table.sections] == [
        *("llama2_7b, linear x8", "smollm2_135m, linear x4, limit=200")
    ]
    titles = [column.title for column in table.columns]
    assert titles[:5] == ["method", "tokens", "seeds", "short average", "recovery"]
    assert titles[-3:] == ["perplexity of pg19, 4K", "perplexity of pg19, 32K", "GPU-hours"]
    native, scaled, *rows = table.sections[0].rows
    assert [row.cells[0].text for row in (native, scaled)] == ["native", "scaled"]
    assert [[cell.text for cell in row.cells[:3]] for row in rows] == [
        ["LinearARD", "4.25M", "2"],
        ["Long-CPT", "4.25M", "2"],
    ]
    recovery = [row.cells[4] for row in rows]
    assert [cell.mark for cell in recovery] == [Mark.BEST, Mark.WORSE]
    assert [cell.attributes["data-standings"] for cell in recovery] == ["bw", "wb"]
    assert " to " in recovery[0].detail
    assert all(cell.mark is Mark.ABSENT for row in (native, scaled) for cell in row.cells)


def test_missing_suites_are_named(outputs: Path) -> None:
    table = table_of(outputs, Job(model="tiny"))
    assert missing_suites(group_runs(read_runs(outputs))) == ["short", "long", "perplexity"]
    titles = [column.title for column in table.columns]
    assert titles == ["method", "tokens", "seeds", "GPU-hours"]


def test_hours_of_a_cpu_are_not_taken_for_a_gpus(outputs: Path) -> None:
    table_of(outputs, Job())
    record = outputs / "run-0" / "run.json"
    record.write_text(record.read_text().replace("NVIDIA H100 80GB HBM3", "x86_64 CPU, 2 cores"))
    table = headline(group_runs(read_runs(outputs)))
    assert table.rows[-1].cells[-1].text == "0.12 CPU"
