"""The loop's figures: what streams share, and what is kept apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from src.models.adapters import FullParameters
from src.models.facts import ModelFacts
from src.objectives.base import Batch, Objective
from src.objectives.language_modeling import LanguageModeling
from src.objectives.longred import LongRed
from src.objectives.relation import Relation
from src.objectives.weighted_sum import WeightedSum
from src.training.batches import Batches
from src.training.engines import Engines
from src.training.launch import World
from src.training.loop import StageRun, StepRecord
from src.training.schedule import StageConfig, StageSchedule, StreamConfig
from src.training.sequence import Place

FACTS = ModelFacts(4, (None,) * 4, 2, 2, 8)
ALL, LAST = Relation("relation"), Relation("relation", layers="last")
LM = LanguageModeling("language_modeling")


class Student:
    """Reports what each stream is given, as an objective would."""

    def __init__(self, metrics: dict[str, dict[str, Tensor]]) -> None:
        self.metrics = metrics

    def loss(self, batch: Batch, stream: str, outputs: None) -> tuple[Tensor, dict[str, Tensor]]:
        del batch, outputs
        return torch.tensor(1.0), self.metrics[stream]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        del loss, last

    def step(self, lr: float) -> float:
        del lr
        return 1.0


def logged(
    objectives: dict[str, Objective], terms: dict[str, Any], metrics: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Losses of a step of one block of each stream."""
    streams = {name: StreamConfig(terms[name], 8) for name in objectives}
    tokens = 8 * len(streams)
    stage = StageConfig(tokens, tokens, 1.0, 0, 1.0, FullParameters("full"), streams)
    reported = {s: {k: torch.tensor(v) for k, v in m.items()} for s, m in metrics.items()}
    records: list[StepRecord] = []
    blocks = cast("Any", {name: [np.zeros(8, dtype=np.int64)] for name in streams})
    schedule, cpu = StageSchedule(stage), torch.device("cpu")
    batches = Batches("mix", schedule, blocks, Place(), cpu, seed=0, window=8)
    engines = Engines(objectives, FACTS, cast("Any", Student(reported)))
    StageRun(batches, engines, World(), micro_batch=1).train(0, records.append)
    return {k: v for k, v in records[0].metrics.items() if k.startswith("loss/")}


def test_other_layers_of_one_kind_are_kept_apart_by_stream() -> None:
    assert logged(
        {"short": ALL, "long": LAST},
        {"short": "relation", "long": "relation_last"},
        {
            "short": {"relation/qq": 1.0, "relation/by_layer": [1.0, 2.0, 3.0, 4.0]},
            "long": {"relation/qq": 5.0, "relation/by_layer": [6.0]},
        },
    ) == {
        "loss/total": 1.0,
        "loss/short/relation/qq": 1.0,
        "loss/short/relation/by_layer": [1.0, 2.0, 3.0, 4.0],
        "loss/long/relation/qq": 5.0,
        "loss/long/relation/by_layer": [6.0],
    }


def test_the_same_term_of_two_streams_is_one_figure() -> None:
    both: WeightedSum = WeightedSum((("relation", ALL, 1.0), ("language_modeling", LM, 0.1)))
    assert logged(
        {"short": both, "long": LM},
        {"short": {"relation": 1.0, "language_modeling": 0.1}, "long": "language_modeling"},
        {
            "short": {"relation/relation/qq": 1.0, "language_modeling/language_modeling": 2.0},
            "long": {"language_modeling": 4.0},
        },
    ) == {"loss/total": 1.0, "loss/relation/qq": 1.0, "loss/language_modeling": 3.0}


def test_terms_of_one_kind_on_one_stream_are_kept_apart_by_term() -> None:
    both = WeightedSum((("all", ALL, 1.0), ("last", LAST, 1.0), ("lm", LM, 0.1)))
    metrics = {"all/relation/qq": 1.0, "last/relation/qq": 2.0, "lm/language_modeling": 3.0}
    terms = {"all": 1.0, "last": 1.0, "lm": 0.1}
    assert logged({"short": both}, {"short": terms}, {"short": metrics}) == {
        "loss/total": 1.0,
        "loss/all/relation/qq": 1.0,
        "loss/last/relation/qq": 2.0,
        "loss/language_modeling": 3.0,
    }
    found = logged(
        {"short": both, "long": ALL},
        {"short": terms, "long": "all"},
        {"short": metrics, "long": {"relation/qq": 5.0}},
    )
    assert {"loss/short/all/relation/qq", "loss/long/relation/qq"} <= found.keys()
    assert "loss/language_modeling" in found


def test_longreds_two_terms_keep_their_names() -> None:
    short, last = LongRed("longred"), LongRed("longred", layers="last")
    named = {"short": {"longred": 1.0}, "s2l": {"longred_last": 2.0}}
    found = logged(
        {"short": short, "s2l": last}, {"short": "longred", "s2l": "longred_last"}, named
    )
    assert found == {"loss/total": 1.0, "loss/longred": 1.0, "loss/longred_last": 2.0}


def test_layers_chosen_by_drift_are_kept_apart_where_they_differ() -> None:
    drawn = LongRed("longred", layers=(1, 4))
    found = logged(
        {"a": drawn, "b": replace(drawn, layers=(2, 4))},
        {"a": "longred", "b": "longred"},
        {"a": {"longred": 1.0}, "b": {"longred": 3.0}},
    )
    assert found == {"loss/total": 1.0, "loss/a/longred": 1.0, "loss/b/longred": 3.0}
