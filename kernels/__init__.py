"""Our fused operators: ``relation_kl`` (attention-relation distillation) with its benchmark, and
``cached_attention`` (one token over a cache).

This package has the name of Hugging Face's ``kernels`` distribution, which transformers looks for
and, where its metadata is found, imports from. Run from the repository's root, this package comes
first on the path and both must work. So, where that distribution is installed,

* its folder is appended to ``__path__``: ``kernels.layer`` and its other submodules are found,
  while ``relation_kl``, ``cached_attention``, ``bench`` and ``tune`` stay ours;
* its ``__init__`` runs in this namespace the first time one of its names is asked for:
  ``from kernels import get_kernel`` works, and ``import kernels`` costs nothing.

Where it is not installed, transformers finds no version of it here and goes its own way.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

_OURS = frozenset({"relation_kl", "cached_attention", "bench", "tune"})
# The other special names are probed by import machinery, inspect, warnings and mocks: answering
# those must not run a foreign package.
_SPECIAL_NAMES_OF_THEIRS = frozenset({"__version__", "__all__"})


def _installed_distribution() -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution("kernels")
    except importlib.metadata.PackageNotFoundError:
        return None


def _init_file(distribution: importlib.metadata.Distribution) -> Path:
    return Path(str(distribution.locate_file("kernels"))) / "__init__.py"


_their_distribution = _installed_distribution()
_their_init_has_run = False

if _their_distribution is not None and _init_file(_their_distribution).is_file():
    __path__.append(str(_init_file(_their_distribution).parent))


def _run_their_init(distribution: importlib.metadata.Distribution) -> None:
    """Runs the distribution's ``__init__`` in this namespace, like the rest of this file."""
    global _their_init_has_run
    init_file = _init_file(distribution)
    if not init_file.is_file():
        raise ImportError(
            f"Hugging Face's 'kernels' {distribution.version} is installed, but {init_file} does "
            "not exist, so this repository's package of the same name cannot stand in for it: "
            "install it as an ordinary wheel, or uninstall it."
        )
    source = init_file.read_text(encoding="utf-8")
    code = compile(source, str(init_file), "exec", dont_inherit=True)
    # Set first: its submodules may import names from this half-built package, and must then see
    # what is defined so far, as in any import cycle.
    _their_init_has_run = True
    try:
        exec(code, globals())
    except BaseException:
        _their_init_has_run = False
        raise


def __getattr__(name: str) -> object:
    """Finds a name of Hugging Face's ``kernels``, where that distribution is installed."""
    special = name.startswith("__") and name not in _SPECIAL_NAMES_OF_THEIRS
    if _their_distribution is None or _their_init_has_run or special or name in _OURS:
        raise AttributeError(f"module 'kernels' has no attribute {name!r}")
    _run_their_init(_their_distribution)
    if name in globals():
        return globals()[name]
    raise AttributeError(
        f"neither this repository's 'kernels' nor Hugging Face's 'kernels' "
        f"{_their_distribution.version} has an attribute {name!r}"
    )
