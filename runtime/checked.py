"""Typed reading of JSON: dataclasses whose annotations are checked, and messages that name the field.

The conditions below are annotations for fields; :func:`parse` holds values to them.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from echoir.runtime.errors import ArtifactError

T = TypeVar("T")


@dataclass(frozen=True)
class Must:
    """A condition on a value, in words for the message and as a test."""

    needed: str
    test: Callable[[Any], bool]


Text = Annotated[str, Must("some text", lambda value: bool(value))]
Sha256 = Annotated[str, Must("64 hex digits", lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None)]
Positive = Annotated[int, Must("a whole number from 1 up", lambda value: value >= 1)]
Natural = Annotated[int, Must("a whole number from 0 up", lambda value: value >= 0)]
Seconds = Annotated[float, Must("seconds from 0 up", lambda value: value >= 0)]
FileName = Annotated[
    str, Must("a file name without folders", lambda value: value not in ("", ".", "..") and Path(value).name == value)
]

EDITED = "the file was edited or damaged; export the artifact again"


def parse(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON values into ``kind``, which is a dataclass or a type it uses; refuse what does not fit."""
    if kind is Any:
        _check_finite(value, where)
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        parsed = parse(arguments[0], value, where)
        for must in arguments[1:]:
            if not must.test(parsed):
                raise ArtifactError(where, repr(parsed), must.needed, EDITED)
        return parsed
    if origin in (Union, types.UnionType):  # only ever "X | None"
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else parse(inner, value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ArtifactError(where, repr(value), f"one of {', '.join(arguments)}", EDITED)
        return value
    if origin is tuple:
        return _parse_tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ArtifactError(where, kind_of(value), "an object", EDITED)
        return {key: parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ArtifactError(where, repr(value), "text that can be written", EDITED)
    if type(value) is not kind:  # bool is not an int here
        raise ArtifactError(where, kind_of(value), _NAMES[kind], EDITED)
    return value


def _parse_dataclass(kind: type[T], value: Any, where: str) -> T:
    if not isinstance(value, dict):
        raise ArtifactError(where, kind_of(value), "an object", EDITED)
    prefix = f"{where}." if where else ""
    hints = get_type_hints(kind, include_extras=True)
    if unknown := sorted(set(value) - set(hints)):
        raise ArtifactError(prefix + unknown[0], "an unknown field", f"only {', '.join(hints)}", EDITED)
    for entry in fields(kind):  # type: ignore[arg-type]
        # A file spells everything out; a default is for those who build a manifest in Python.
        if entry.name not in value:
            optional = entry.default is None or entry.default_factory is not MISSING
            raise ArtifactError(prefix + entry.name, "nothing", "null at least" if optional else "a value", EDITED)
    return kind(**{name: parse(hint, value[name], prefix + name) for name, hint in hints.items()})


def _parse_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ArtifactError(where, kind_of(value), "a list", EDITED)
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ArtifactError(where, f"{len(value)} values", f"{len(arguments)}", EDITED)
    return tuple(
        parse(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(arguments, value, strict=True))
    )


def _check_finite(value: Any, where: str) -> None:
    """Free-form parts hold JSON's own types and finite numbers."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_finite(item, f"{where}[{i}]")
    elif type(value) is float and not math.isfinite(value):
        raise ArtifactError(where, value, "a finite number, which JSON can hold")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise ArtifactError(where, kind_of(value), "a JSON value")


_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def kind_of(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return repr(value)
