"""A config identifies a job: two jobs with equal settings are the same job."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from src.settings.config import RunConfig

# Settings that do not make a run another one: its place, its launcher, its tracking.
_NOT_PART = (
    "run_dir",
    "resume",
    "dry_run",
    "allow_oversubscribe",
    "plan_for",
    "budget",  # what follows from it is in the recipe
    "tags",
    "tracking",
    "sweep",
    "sweep_resume",
)


def identity(settings: RunConfig) -> str:
    """SHA-256, in hexadecimal, of everything in a config that decides what a run computes."""
    plain = asdict(settings)
    for key in _NOT_PART:
        plain.pop(key)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
