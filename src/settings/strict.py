"""Plain data to frozen dataclasses, strictly, with messages that a user can act on.

An unknown key, a wrong type, a missing or a contradictory value is refused with the key's full path
and what is allowed.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

T = typing.TypeVar("T")


# Of the dataclasses that a command's settings are turned into.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
# A list of thousands of wrong values is one mistake.
_MOST_FAULTS = 50
_SHOULD_BE = re.compile(r"(\S+: input should be )(.*)( \(got .*\))", re.DOTALL)


class ConfigError(ValueError):
    """A setting that was refused. The message names the key, the value and what is allowed."""


@contextmanager
def refused_at(path: str = "") -> Iterator[None]:
    """Inside the block, a `ValueError` becomes a `ConfigError` whose message begins with a path.

    Raises:
        ConfigError: in place of the original error.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{path}{error}") from error


def load_plain(
    cls: type[T],
    plain: Mapping[str, Any],
    derived: Callable[[], Collection[str]] = frozenset,
) -> T:
    """Turn a plain mapping, such as a run folder's config.yaml, into the frozen dataclass `cls`.

    Args:
        cls: the dataclass.
        plain: its fields, as YAML has them.
        derived: gives the keys whose values follow from other keys. A fault of such a key is not
            named beside the fault that it follows from.

    Raises:
        ConfigError: anything refused; one line for each fault.
    """
    for path, value in leaves(plain):
        # Arithmetic in floating point could not hold it.
        if isinstance(value, int) and abs(value) > 2**63:
            raise ConfigError(f"{path}: a number of this size; give one between -2**63 and 2**63")
        if isinstance(value, bytes):
            raise ConfigError(f"{path}: binary data; give a number or a text, without !!binary")
    try:
        adapter = _adapter(cls)
    except PydanticSchemaGenerationError as error:
        reason = error.message.partition(". ")[0]
        raise ConfigError(
            f"a class of settings has a field of a type that YAML cannot hold: {reason}; use "
            "bool, int, float, str, Literal, or tuples, mappings and frozen dataclasses of these"
        ) from error
    try:
        # Strict validation of JSON takes a list for a tuple, and is as strict as ever otherwise.
        return adapter.validate_json(json.dumps(plain))
    except ValidationError as error:
        details = error.errors()[:_MOST_FAULTS]
        paths = [_locate(cls, detail["loc"])[0] for detail in details]
        # For a union pydantic lists the fault inside one member and "is not" of all the others.
        faults = [
            (".".join(path), _explain(cls, detail))
            for detail, path in zip(details, paths, strict=True)
            if not any(len(p) > len(path) > 0 and p[: len(path)] == path for p in paths)
        ]
        follows = derived()
        typed = [line for key, line in faults if key not in follows]
        lines = _alternatives(typed or [line for _, line in faults])
        if more := error.error_count() - len(details):
            lines.append(f"and {more} more faults")
        raise ConfigError("\n".join(lines)) from error


def _alternatives(lines: Sequence[str]) -> list[str]:
    """Lines about one key that name a kind of value each, as one line that names all kinds."""
    allowed: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        match = _SHOULD_BE.fullmatch(line)
        key, kind, got = match.groups() if match else (line, "", "")
        kinds = allowed.setdefault((key, got), [])
        if kind not in kinds:
            kinds.append(kind)
    return [f"{key}{' or '.join(kinds)}{got}" for (key, got), kinds in allowed.items()]


def to_containers(settings: Any) -> dict[str, Any]:
    """A dataclass as containers for YAML, which `load_plain` accepts again."""
    return json.loads(json.dumps(asdict(settings)))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested containers, by dotted path."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def no_boolean(value: Any) -> Any:
    """For a `Literal` with integers, which Python's `True` and `1.0` equal.

    Raises:
        ValueError: the value is one of these.
    """
    if isinstance(value, (bool, float)):
        raise ValueError(f"a whole number is expected, not {value!r}")
    return value


# Building an adapter takes a hundred times as long as using it.
_adapter = functools.cache(TypeAdapter)


def _explain(cls: type, detail: Any) -> str:
    path, parent = _locate(cls, detail["loc"])
    name = ".".join(path) or "config"
    kind = detail["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name}: {unknown_key(path[-1], allowed_keys(parent))}"
    if kind in ("missing", "missing_argument"):
        return f"{name}: a value is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{name}: {message}" if path else message
    if kind == "union_tag_invalid":
        context = detail["ctx"]
        return f"{name}.type: {context['tag']!r} is not one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{name}.type: a value is missing"
    if kind in ("list_type", "tuple_type") and isinstance(detail["input"], str):
        message = f"input should be a list; write {name}=[{detail['input'][:80]}]"
    if kind == "too_short":
        message = f"at least {detail['ctx']['min_length']} is needed"
    got = repr(detail["input"])
    return f"{name}: {message[0].lower()}{message[1:]} (got {got[:200]})"


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {key!r}; {hint}allowed: {', '.join(allowed) or 'nothing'}"


def allowed_keys(kind: Any) -> list[str]:
    """Field names of a dataclass type; nothing for other types."""
    if isinstance(kind, type) and is_dataclass(kind):
        return [f.name for f in fields(kind)]
    return []


def keys_at(cls: type, path: Sequence[str]) -> list[str]:
    """Keys allowed below a dotted path, over all variants where the type there has several."""
    kinds = [cls]
    for part in path:
        kinds = [child for kind in kinds for child in _children(kind, part)]
    return list(dict.fromkeys(name for kind in kinds for name in allowed_keys(kind)))


def _locate(cls: type, loc: Sequence[str | int]) -> tuple[list[str], Any]:
    """A pydantic location as a config path without union tags, and the type with its last key."""
    path: list[str] = []
    kinds: list[Any] = [cls]
    parent: Any = cls
    for part in loc:
        tagged = [k for k in kinds if _tag(k) == part]
        if tagged and len(kinds) > 1:
            kinds = tagged
            continue
        member = isinstance(part, str) and len(kinds) > 1
        if member or not (
            isinstance(part, int)
            or any(is_dataclass(k) or typing.get_origin(k) in (dict, Mapping) for k in kinds)
        ):
            # pydantic's name for a member of a union, such as dict[str,int].
            named = str(part).partition("[")[0]
            kinds = [k for k in kinds if _plain_name(k) == named] or kinds
            continue
        parent = kinds[0] if kinds else None
        path.append(str(part))
        kinds = [child for kind in kinds for child in _children(kind, part)]
    return path, parent


def _plain_name(kind: Any) -> str:
    return getattr(typing.get_origin(kind) or kind, "__name__", "")


def _tag(kind: Any) -> str | None:
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return None
    literal = typing.get_type_hints(kind).get("type")
    arguments = typing.get_args(literal) if typing.get_origin(literal) is Literal else ()
    return arguments[0] if arguments else None


def _children(kind: Any, part: str | int) -> list[Any]:
    if isinstance(kind, type) and is_dataclass(kind):
        hint = typing.get_type_hints(kind, include_extras=True).get(str(part))
        return _variants(hint) if hint is not None else []
    if typing.get_origin(kind) in (dict, Mapping):
        return _variants(typing.get_args(kind)[1])
    if typing.get_origin(kind) is tuple:
        return _variants(typing.get_args(kind)[0])
    return []


def _variants(hint: Any) -> list[Any]:
    """The concrete types in a hint: Annotated unwrapped, unions spread, None left out."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _variants(typing.get_args(hint)[0])
    if origin in (Union, types.UnionType):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        return [v for m in members for v in _variants(m)]
    return [hint]
