"""All figures of the report, in the order in which a panel shows them."""

from src.report.figures import benchmarks, layers, long, scores, swept

FIGURES = (*scores.FIGURES, *swept.FIGURES, *long.FIGURES, *layers.FIGURES, *benchmarks.FIGURES)
