"""`eval=long`: the suites of long text together, with settings that they share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from src.evals.halves import Split
from src.evals.retrieval import RetrievalConfig
from src.evals.scoring import Count
from src.evals.suite import Suite
from src.evals.suites.needle_depth import NeedleDepthSuite
from src.evals.suites.papers import PapersSuite
from src.evals.suites.positions import PositionsSuite
from src.evals.suites.ruler import RulerSuite

_SHARED = ("lengths", "retrieval", "seed", "limit", "split", "resamples", "batch_tokens")


@dataclass(frozen=True)
class LongConfig:
    """The suites of long text that run; null leaves a suite out.

    Attributes:
        lengths, retrieval, seed, limit, split, resamples, batch_tokens: settings of the suites, for
            all that do not set their own.
    """

    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    ruler: RulerSuite | None = None  # RULER's tasks
    depth: NeedleDepthSuite | None = None  # the needle-depth grid; its material is RULER's
    papers: bool = False  # whether questions on papers are asked
    positions: PositionsSuite | None = None
    """Perplexity by position, of the evaluation's held-out text."""
    retrieval: RetrievalConfig | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    split: Split = "all"
    resamples: Count = 1000
    batch_tokens: Literal["auto"] | Count = "auto"

    def __post_init__(self) -> None:
        # A suite refuses settings that contradict each other.
        self.suites()

    def suites(self) -> list[Suite]:
        """The suites, with the shared settings."""
        depth = self.depth
        if depth is not None and self.ruler is not None:
            depth = replace(depth, material=self.ruler.material)
        papers = PapersSuite() if self.papers else None
        parts: tuple[Any, ...] = (self.ruler, depth, papers, self.positions)
        return [self._with_shared(part) for part in parts if part is not None]

    def _with_shared(self, part: Any) -> Suite:
        unset = [f for f in fields(part) if getattr(part, f.name) == f.default]
        return replace(part, **{f.name: getattr(self, f.name) for f in unset if f.name in _SHARED})
