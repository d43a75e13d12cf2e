from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from src.multirun.composition import Job
from src.multirun.table import sweep_table


def planned(number: int, lr: str, *, fits: bool = True, state: str | None = None) -> Job:
    plan: Any = SimpleNamespace(
        tokens=1000, steps=4, flops=2e15, seconds=1800.0, peak=3 * 2**30, fits=fits
    )
    return Job(number, (), (f"recipe.stages.ard.lr={lr}",), plan=plan, state=state)


def test_one_row_for_each_job_and_one_for_all() -> None:
    refused = Job(3, (), ("recipe.stages.ard.lr=-1",), refusal="lr=-1: must be positive")
    table = sweep_table("rates", [planned(1, "0.1"), planned(2, "[x]", fits=False), refused])
    assert table.title == "Sweep rates"
    assert [column.title for column in table.columns] == [
        *("job", "lr", "tokens", "steps", "PFLOP", "hours", "GiB a rank")
    ]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["1", "0.1", "1,000", "4", "2", "0.5", "3.00"],
        ["2", "[x]", "1,000", "4", "2", "0.5", "3.00"],
        ["3", "-1", "refused", "", "", "", ""],
        ["all", "", "2,000", "8", "4", "1", ""],
    ]
    assert [row.cells[-1].fault for row in table.rows] == ["", "does not fit", "", ""]


def test_states_have_a_column_where_they_are_known() -> None:
    table = sweep_table("s", [planned(1, "0.1", state="finished"), planned(2, "1")])
    assert table.columns[-1].title == "state"
    assert [row.cells[-1].text for row in table.rows] == ["finished", "", ""]
