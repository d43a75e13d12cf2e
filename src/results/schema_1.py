"""Files of results of schema 1, which had no roles, as schema 2.

Schema 1 kept several suites in one file, long.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FORMERLY_LONG = ("ruler", "papers", "needle_depth", "positions")


def converted(plain: Mapping[str, Any], suite: str) -> dict[str, Any] | None:
    """Content of schema 1 as schema 2: models get roles, scores move to their models."""
    roles = _roles([model["name"] for model in plain["models"]])
    by_model = plain.get("scores_by_model") or {}
    if suite == "perplexity":
        # The oldest files have the last model's scores alone.
        last = [name for name, role in roles.items() if role == "final"]
        by_model = {name: plain.get("scores") for name in last} | by_model
    kept = {k: v for k, v in plain.items() if k not in ("scores", "scores_by_model", "models")}
    models = [
        model | {"role": roles[model["name"]]} | _scores(by_model, model["name"])
        for model in plain["models"]
    ]
    if plain.get("suite") == "long":
        models = list(_part_of_long(plain, models, suite))
        if not models:
            return None
    return kept | {"models": models}


def _scores(by_model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"scores": by_model[name]} if by_model.get(name) else {}


def _roles(names: Sequence[str]) -> dict[str, str]:
    """Roles by names as schema 1 gave them."""
    role_of: dict[str, str] = {"native": "native", "scaled": "scaled"}
    trained = [name for name in names if name.startswith("after ") or name == "restored"]
    roles: dict[str, str] = {name: role_of.get(name, "comparison") for name in names}
    roles |= {name: "retrieval" for name in names if name.endswith(" + BM25")}
    roles |= dict.fromkeys(trained, "stage")
    # Where no name says so, the last model is the run's own.
    stages = trained or [name for name in names if roles[name] == "comparison"]
    return {name: "final" if name in stages[-1:] else role for name, role in roles.items()}


def _part_of_long(
    plain: Mapping[str, Any], models: Sequence[Mapping[str, Any]], suite: str
) -> Iterator[dict[str, Any]]:
    """The models of one of the suites that long.json held."""
    for model in models:
        identity = {k: model[k] for k in ("name", "role", "weights", "window") if k in model}
        results = model.get("results", {})
        if suite == "needle_depth" and (cells := plain.get("needle_depth", {}).get(model["name"])):
            yield identity | {"cells": cells}
        if suite == "positions" and model.get("text"):
            yield identity | model["text"]
        if suite == "papers" and "qasper_yesno" in results:
            yield identity | {"results": {"qasper_yesno": results["qasper_yesno"]}}
        if suite == "ruler":
            by_length = {
                length: {"value": mean["value"], "stderr": mean["stderr"]}
                for length, mean in model.get("ruler_by_length", {}).items()
            }
            ruler = {task: r for task, r in results.items() if task != "qasper_yesno"}
            yield {**model, "results": ruler, "by_length": by_length}
