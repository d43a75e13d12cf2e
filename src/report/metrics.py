"""`metrics.jsonl` as columns: one row for each logged step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from src.report.files import read_bytes
from src.results import first_reason


class MetricRow(BaseModel):
    """One line. A further key with a number is a metric, one with a list is one value a layer.

    null: it was not finite.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    step: NonNegativeInt
    tokens: NonNegativeInt
    stage: str

    @property
    def values(self) -> dict[str, float]:
        """The metrics of this line by key; they may be NaN or infinite."""
        extra = self.model_extra or {}
        return {k: _as_float(v) for k, v in extra.items() if _is_number(v)}

    @property
    def layers(self) -> dict[str, tuple[float | None, ...]]:
        """Lists of numbers by key, such as `loss/relation/by_layer`."""
        extra = self.model_extra or {}
        return {
            key: tuple(_finite(_as_float(item)) for item in items)
            for key, items in extra.items()
            if isinstance(items, list) and all(map(_is_number, items))
        }


@dataclass(frozen=True)
class Metrics:
    """Columns of equal length; None in a series: not logged at that step, or not finite."""

    steps: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    series: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    layers: dict[str, tuple[tuple[float | None, ...], ...]] = field(default_factory=dict)
    """By key and logged step, one value a layer; empty: not logged at that step."""
    problems: tuple[str, ...] = ()


def read_metrics(path: Path) -> Metrics:
    """All readable lines of `path`; `problems` describes the others.

    Raises AbsentFile if there is no line, UnreadableFile if access is refused.
    """
    lines = read_bytes(path).split(b"\n")
    rows: list[MetricRow] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = MetricRow.model_validate_json(line)
        except ValidationError as error:
            cut_off = number == len(lines)  # no newline at the end: the writer was stopped
            reason = "is cut off" if cut_off else f"is unreadable ({first_reason(error)})"
            faults.append(f"line {number} {reason}")
            continue
        rows.append(row)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return _columns(rows, [f"{path.name}: {faults[0]}{more}"] if faults else [])


def _is_number(value: object) -> bool:
    """Whether it is a number, or null for one that was not finite."""
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _as_float(value: int | float | None) -> float:
    if value is None:
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON knows integers of any size
        return math.inf if value > 0 else -math.inf


def _columns(rows: list[MetricRow], problems: list[str]) -> Metrics:
    values, layers = [row.values for row in rows], [row.layers for row in rows]
    series: dict[str, tuple[float | None, ...]] = {}
    for key in sorted({key for one in values for key in one}):
        column = [one.get(key) for one in values]
        series[key] = tuple(map(_finite, column))
        bad = [
            row.step
            for row, value, kept in zip(rows, column, series[key], strict=True)
            if value is not None and kept is None
        ]
        if bad:
            more = f" (and at {len(bad) - 1} more)" if len(bad) > 1 else ""
            problems.append(f"metrics.jsonl: {key} is not finite at step {bad[0]}{more}")
    lists = sorted({key for one in layers for key, items in one.items() if items})
    return Metrics(
        steps=tuple(row.step for row in rows),
        tokens=tuple(row.tokens for row in rows),
        stages=tuple(row.stage for row in rows),
        series=series,
        layers={key: tuple(one.get(key, ()) for one in layers) for key in lists},
        problems=tuple(problems),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
