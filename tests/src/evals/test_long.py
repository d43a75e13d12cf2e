"""`eval=long`: which suites it stands for, and the settings that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from src.evals.long import LongConfig
from src.evals.retrieval import RetrievalConfig
from src.evals.ruler.loading import MaterialConfig
from src.evals.suites.needle_depth import NeedleDepthSuite
from src.evals.suites.papers import PapersSuite
from src.evals.suites.positions import PositionsSuite
from src.evals.suites.ruler import RulerSuite
from src.settings.config import EvaluateConfig
from src.settings.strict import ConfigError, load_plain


def test_suites_share_settings_that_they_do_not_set_themselves() -> None:
    own = MaterialConfig(words="words")
    retrieval = RetrievalConfig(64)
    config = LongConfig(
        lengths=(4096,),
        ruler=RulerSuite(tasks=("fwe",), material=own, seed=3),
        depth=NeedleDepthSuite(samples=2),
        papers=True,
        positions=PositionsSuite(last=64, sliding=64),
        retrieval=retrieval,
        seed=1,
        limit=5,
        resamples=70,
        batch_tokens=100,
    )
    assert config.suites() == [
        RulerSuite(
            lengths=(4096,),
            tasks=("fwe",),
            material=own,
            retrieval=retrieval,
            seed=3,
            limit=5,
            resamples=70,
            batch_tokens=100,
        ),
        NeedleDepthSuite(
            lengths=(4096,),
            samples=2,
            material=own,
            retrieval=retrieval,
            seed=1,
            limit=5,
            batch_tokens=100,
        ),
        PapersSuite(retrieval=retrieval, seed=1, limit=5, resamples=70),
        PositionsSuite(lengths=(4096,), last=64, sliding=64, limit=5),
    ]
    assert LongConfig().suites() == []


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions\.last=256 .* the length 200 has no room"):
        LongConfig(lengths=(200, 1024), positions=PositionsSuite())
    assert LongConfig(lengths=(200, 1024)).lengths == (200, 1024)


def test_eval_long_is_its_suites(compose_plain: Callable[..., dict], tmp_path: Path) -> None:
    def chosen(*typed: str) -> list[str]:
        plain = compose_plain("model=tiny", *typed, f"out={tmp_path}", name="evaluate")
        return [suite.name for suite in load_plain(EvaluateConfig, plain).eval.suites()]

    assert chosen("eval=long") == ["needle_depth", "papers", "positions", "ruler"]
    assert chosen("eval=long", "eval.long.papers=false", "eval.long.depth=null") == [
        *("positions", "ruler")
    ]
    for name in ("needle_depth", "papers", "positions", "ruler"):
        assert chosen(f"eval={name}") == [name]
    assert chosen("eval=long", "eval.long.ruler=null", "+eval.ruler.samples=2")[-1] == "ruler"
    with pytest.raises(ConfigError, match="ruler is set, and long runs it too"):
        chosen("eval=long", "+eval.ruler.samples=2")
