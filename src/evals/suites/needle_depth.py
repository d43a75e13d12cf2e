"""The needle-depth grid: one needle in prose, at given depths and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import Field

from src.evals.probed import Asked
from src.evals.restoration import Answers
from src.evals.ruler.asking import SampleSuite
from src.evals.ruler.sample import Sample
from src.evals.scoring import Count, Probe, Reader, chosen_lengths
from src.evals.suite import LIMITED, Evaluation, ResultTable
from src.results import NeedleCell, NeedleDepthResults, NeedleModel


@dataclass(frozen=True)
class NeedleDepthSuite(SampleSuite):
    """The grid."""

    depths: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(min_length=1)] = (
        *(0.0, 25.0, 50.0, 75.0, 100.0),
    )
    """Percent of the context's sentences before the needle."""
    samples: Count = 20  # of each depth at each length, in both halves together

    name: ClassVar[str] = "needle_depth"
    record: ClassVar[type[NeedleDepthResults]] = NeedleDepthResults

    def probes(
        self, evaluation: Evaluation, readers: Sequence[Reader], failures: dict[str, str]
    ) -> list[Probe]:
        """A probe for each length."""
        store, depths = self.store(evaluation), tuple(dict.fromkeys(self.depths))
        number = self.number(self.samples)
        makers = [
            (f"needle_depth_{length}", partial(store.depths, length, depths, number))
            for length in chosen_lengths(self.lengths, readers, failures)
        ]
        return self.probes_of(makers, failures)

    def scored(self, asked: Asked) -> NeedleDepthResults:
        """The share of needles found, by length and depth."""
        samples = {probe.name: probe.items for probe in asked.probes}
        models = tuple(
            NeedleModel(**reader.identity, cells=_cells(samples, asked.values[reader.name]))
            for reader in asked.readers
        )
        return NeedleDepthResults(**self.about(asked), models=models, seed=self.seed)

    @staticmethod
    def tables(record: NeedleDepthResults) -> Sequence[ResultTable]:
        """One row per model and length, one column per depth."""
        depths = sorted({cell.depth for model in record.models for cell in model.cells})
        rows = []
        for model in record.models:
            values = {(cell.length, cell.depth): 100 * cell.value for cell in model.cells}
            for length in sorted({cell.length for cell in model.cells}):
                cells = (values.get((length, depth)) for depth in depths)
                rows.append((model.name, str(length), *cells))
        return [
            ResultTable(
                name=record.marked("needle_depth", "_limit_"),
                title="One needle by length in tokens and depth in percent (found, 0 to 100"
                f"{record.marked('', LIMITED)})",
                columns=("model", "length", *(f"{depth:g}" for depth in depths)),
                rows=tuple(rows),
                formats=("", "", *(".0f" for _ in depths)),
            )
        ]

    @staticmethod
    def summary(record: NeedleDepthResults) -> dict[str, float]:
        """Empty: a grid is not a single figure."""
        return {}


def _cells(
    samples: Mapping[str, Sequence[Sample]], values: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[NeedleCell, ...]:
    """The mean score at each length and depth."""
    cells = []
    for name, items in values.items():
        by_depth: dict[float, list[Mapping[str, Any]]] = {}
        for sample, item in zip(samples[name], items, strict=True):
            assert sample.depth is not None
            by_depth.setdefault(sample.depth, []).append(item)
        length = samples[name][0].length
        for depth, items_there in by_depth.items():
            found = Answers.of_items(items_there)
            figures = {"value": found.value, "stderr": found.stderr, "n": len(items_there)}
            cells.append(NeedleCell(length=length, depth=depth, **figures))
    return tuple(cells)


SUITE = NeedleDepthSuite
