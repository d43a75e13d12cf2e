"""Parts that are found by their files: objectives, scalings, families, suites.

Each module of a kind's package defines one part under the kind's name, such as `OBJECTIVE`. A file
that holds no part is left out and kept as a fault: commands refuse it in one message, before they
do anything else.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import traceback
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# What is wrong with files that hold no part, one line each.
faults: list[str] = []


def parts(
    package: str,
    folders: Iterable[str],
    name: str,
    problem: Callable[[Any], str | None],
    *,
    key: Callable[[Any], str],
    besides: Sequence[str] = (),
) -> dict[str, Any]:
    """What the modules of a package define under `name`, by its key, in the order of their files.

    Args:
        package: its name.
        folders: its `__path__`.
        problem: says what is wrong with a part and what is expected; None if nothing is.
        key: a part's name in settings, which no other part of the package may have.
        besides: modules that hold no part.
    """
    found: dict[str, Any] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(folders) if m.name not in besides):
        file = f"{package.replace('.', '/')}/{module}.py"
        try:
            part = getattr(importlib.import_module(f"{package}.{module}"), name, None)
        except Exception as error:  # code that is being written fails in any way
            fault = f"it cannot be imported: {_told(error, file)}"
        else:
            fault = f"it defines no {name}" if part is None else problem(part)
            if fault is None and key(part) in found:
                fault = f"{name} is called {key(part)!r}, as that of another file is"
            if fault is None:
                found[key(part)] = part
                continue
        faults.append(
            f"{file}: {fault}; mend the file (CONTRIBUTING.md says what it holds) or move it away"
        )
    return found


def class_problem(
    part: Any, base: type, members: Sequence[str], *, named_by_type: bool = False
) -> str | None:
    """What keeps a part from being a frozen dataclass of a kind; None if it is one.

    Args:
        part: what a file defines.
        base: declares the members; a part derives from it, unless it is a protocol.
        members: what a part must define itself.
        named_by_type: whether its first field, `type`, is its name in settings.
    """
    is_protocol = getattr(base, "_is_protocol", False)
    if not isinstance(part, type) or not (is_protocol or issubclass(part, base)):
        derived = "" if is_protocol else f" that derives from {base.__name__}"
        return f"{part!r} is given; a class{derived} is expected"
    name = f"class {part.__name__}"
    params = part.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        return f"{name} is no @dataclass(frozen=True)"
    if lacks := [m for m in members if getattr(part, m, None) in (None, getattr(base, m, None))]:
        return f"{name} does not define {', '.join(lacks)}"
    if not named_by_type:
        return None
    try:
        hint = typing.get_type_hints(part).get("type")
    except (NameError, TypeError) as error:
        return f"{name} has a field of an unknown type: {error}"
    is_name = typing.get_origin(hint) is typing.Literal and len(typing.get_args(hint)) == 1
    if not is_name or dataclasses.fields(part)[0].name != "type":
        return f'the first field of {name} is not type: Literal["NAME"]'
    return None


def type_of(part: type) -> str:
    """The one value that the field `type` of a class may have."""
    return typing.get_args(typing.get_type_hints(part)["type"])[0]


def _told(error: Exception, file: str) -> str:
    """An error's kind, its last line in a file and its message, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith(file)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    where = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}"
