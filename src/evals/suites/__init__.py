"""Evaluation suites, one small file each.

A file in this folder that defines `SUITE`, a class as `src.evals.suite.Suite` describes it, is
discovered. Configs accept it as `eval.NAME`, and `python -m src.evaluate` and the end of a run run
it. Nothing else has to know about it.
"""

from __future__ import annotations

import importlib
import pkgutil

from src.evals.suite import Suite

_MODULES = sorted(m.name for m in pkgutil.iter_modules(__path__))

# Every suite's class by its name, in the order of their files' names.
SUITES: dict[str, type[Suite]] = {
    suite.name: suite
    for name in _MODULES
    for suite in [importlib.import_module(f"{__name__}.{name}").SUITE]
}
