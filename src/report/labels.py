"""How runs and groups are told apart: by the settings in which they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from src.report import formatting
from src.report.charts import binary_tokens
from src.report.names import method_name, scaling_name
from src.report.runs import Run

# Settings that do not change what is trained, by their first key.
_NOT_TRAINING = {
    *("seed", "run_dir", "resume", "sweep_resume", "dry_run", "prepare", "plan_for"),
    *("allow_oversubscribe", "profile"),
    *("tags", "tracking", "launch", "checkpoint", "eval", "experiment", "sweep"),
}
# Settings with their own columns; `model.tuning` holds values that other settings take.
_SHOWN_ELSEWHERE = ("rope.", "model.", "recipe.name", "budget")
_MAX_NAMED_DIFFERENCES = 3
_RELATIONS = {"qq": "Q", "kk": "K", "vv": "V", "qk": "QKᵀ", "av": "AV"}

Settings = Mapping[str, Any]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full keys; an empty mapping or a list is a value."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def canonical(value: Any) -> str:
    """The value as text that equal values share."""
    return json.dumps(value, sort_keys=True, default=str)


def usual_settings(family: Sequence[tuple[Settings, bool]]) -> dict[str, str]:
    """The value that most of a family have of each setting, by sorted keys.

    Args:
        family: settings of runs or groups, and whether each is a job of a sweep.
    """
    keys = {
        key
        for settings, _ in family
        for key in settings
        if not key.startswith(_SHOWN_ELSEWHERE) and not key.endswith(".tokens")
    }
    usual: dict[str, str] = {}
    for key in sorted(keys):
        # The most frequent value; of equals, the one more frequent outside sweeps.
        values = [(_compared(settings, key), swept) for settings, swept in family]
        votes = Counter(value for value, _ in values)
        outside = Counter(value for value, swept in values if not swept)
        usual[key] = max(votes, key=lambda value: (votes[value], outside[value], value))
    return usual


def unusual_settings(settings: Settings, usual: Mapping[str, str]) -> list[str]:
    """The keys whose values differ from the usual ones."""
    return [key for key, value in usual.items() if _compared(settings, key) != value]


def _compared(settings: Settings, key: str) -> str:
    """A setting for comparison; one that follows the target length is the same at every target."""
    value, target = settings.get(key), settings.get("rope.target_length")
    return "target" if value is not None and value == target else canonical(value)


def variant(settings: Settings, unusual: Sequence[str]) -> str:
    """The unusual settings in a few words."""
    others = [key for key in unusual if ".weights." not in key]
    named = weights_label(settings) if len(others) < len(unusual) else None
    parts = [named] if named else []
    parts += [f"{short_key(key)}={setting_text(settings.get(key))}" for key in others]
    more = len(parts) - _MAX_NAMED_DIFFERENCES
    return ", ".join(parts[:_MAX_NAMED_DIFFERENCES]) + (f", and {more} more" if more > 0 else "")


def short_key(key: str) -> str:
    """`recipe.stages.ard.lr` -> `ard.lr`."""
    return ".".join(key.split(".")[-2:])


def setting_text(value: Any) -> str:
    """`0.0002`, `all`, `[1, 2]`."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def weights_label(settings: Settings) -> str | None:
    """`Q+K+2V` from flat settings; None without a relation objective."""
    terms = [
        key.removesuffix(".type")
        for key, value in settings.items()
        if key.startswith("objective.terms.") and key.endswith(".type") and value == "relation"
    ]
    if not terms:
        return None
    parts = []
    for relation, label in _RELATIONS.items():
        weight = settings.get(f"{terms[0]}.weights.{relation}")
        if isinstance(weight, int | float) and weight > 0:
            parts.append(label if weight == 1 else f"{weight:g}{label}")
    return "+".join(parts) or None


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A label for each run: what differs among them, or its folder where nothing does.

    Runs that differ in nothing but when they were made get their folder's name.
    """
    facts = [_facts(run) for run in runs]
    varied = [name for name in _FACTS if len({one[name] for one in facts}) > 1]
    families: dict[tuple[str, str], list[int]] = {}
    for place, one in enumerate(facts):
        if runs[place].config.values:
            families.setdefault((one["model"], one["method"]), []).append(place)
    variants = [""] * len(runs)
    for places in families.values():
        settings = {place: flat(training_settings(runs[place])) for place in places}
        usual = usual_settings([(settings[place], bool(runs[place].sweep)) for place in settings])
        for place, one in settings.items():
            variants[place] = variant(one, unusual_settings(one, usual))
    labels = []
    for run, one, different in zip(runs, facts, variants, strict=True):
        parts = [*(one[name] for name in varied if name != "seed"), different]
        parts += [f"seed {one['seed']}"] if "seed" in varied and one["seed"] else []
        labels.append(", ".join(part for part in parts if part) or run.name)
    shared = Counter(labels)
    return [
        formatting.text(label if shared[label] == 1 else f"{label}, {run.name}")
        for label, run in zip(labels, runs, strict=True)
    ]


_FACTS = ("method", "model", "scaling", "tokens", "seed")


def _facts(run: Run) -> dict[str, str]:
    record, settings = run.record, run.settings
    return {
        "method": method_name(run.method or run.name),
        "model": run.model_name,
        "scaling": scaling_name(settings.rope.type or "", settings.factor),
        "tokens": binary_tokens(run.tokens) if run.tokens else "",
        "seed": "" if record is None or record.seed is None else str(record.seed),
    }


def training_settings(run: Run) -> dict[str, Any]:
    """The settings that decide what is trained."""
    return {k: v for k, v in run.config.values.items() if k not in _NOT_TRAINING}
