"""Dataclasses as plain JSON data and back, by their type hints.

``encode``, ``decode`` and ``schema`` walk the hints of a dataclass, so a new field of a plan
is saved, read back and validated without a word here.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autopar.errors import PlanFormatError

_SCALARS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    bool: ("boolean", bool),
    int: ("integer", operator.index),
    float: ("number", float),
    str: ("string", str),
}


def _shape(hint: Any) -> str:
    """Which row of the tables below a type hint belongs to."""
    if is_dataclass(hint):
        return "record"
    if hint is Any or hint in _SCALARS:
        return "any" if hint is Any else "scalar"
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return "sequence" if args[-1] is Ellipsis else "row"
    if origin in (Union, types.UnionType):
        return "optional"
    return {Literal: "choice", dict: "map"}[origin]


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _inner(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    return next(arg for arg in get_args(hint) if arg is not type(None))


# --- values to JSON data ---


def encode(hint: Any, value: Any, where: str = "plan") -> Any:
    """Turns a value of type ``hint`` into plain JSON data.

    Raises:
        PlanFormatError: the value does not survive a round trip through JSON
            (a tuple or an object where plain data is declared, NaN, infinity).
    """
    try:
        return _ENCODE[_shape(hint)](hint, value, where)
    except (TypeError, ValueError, AttributeError) as error:
        raise _unsavable(value, str(hint), where) from error


def _unsavable(value: Any, expected: str, where: str) -> PlanFormatError:
    return PlanFormatError(
        f"{value!r} of type {type(value).__name__} cannot be saved",
        expected=expected,
        where=where,
        hint="store finite numbers, strings, booleans, None, lists and dicts with string keys",
    )


def _encode_scalar(hint: Any, value: Any, where: str) -> Any:
    plain = _SCALARS[hint][1](value)
    if hint is float and not math.isfinite(plain):
        raise _unsavable(value, "a finite number", where)
    return plain


def _encode_any(hint: Any, value: Any, where: str) -> Any:
    if type(value) is list:
        return [_encode_any(hint, item, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _encode_any(hint, item, f"{where}.{key}") for key, item in value.items()}
    if type(value) is float:
        return _encode_scalar(float, value, where)
    if value is None or type(value) in (bool, int, str):
        return value
    raise _unsavable(value, "plain JSON data", where)


_ENCODE: dict[str, Callable[[Any, Any, str], Any]] = {
    "scalar": _encode_scalar,
    "any": _encode_any,
    "choice": lambda hint, value, where: value,
    "optional": lambda hint, value, where: (
        None if value is None else encode(_inner(hint), value, where)
    ),
    "record": lambda hint, value, where: {
        name: encode(kind, getattr(value, name), f"{where}.{name}")
        for name, kind in _hints(hint).items()
    },
    "sequence": lambda hint, value, where: [
        encode(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value)
    ],
    "row": lambda hint, value, where: [
        encode(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(get_args(hint), value, strict=True))
    ],
    "map": lambda hint, value, where: {
        key: encode(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()
    },
}


# --- JSON data to values ---


def decode(hint: Any, data: Any) -> Any:
    """Builds the value of type ``hint`` from data that matches ``schema(hint)``."""
    return _DECODE[_shape(hint)](hint, data)


_DECODE: dict[str, Callable[[Any, Any], Any]] = {
    "scalar": lambda hint, data: hint(data),
    "any": lambda hint, data: data,
    "choice": lambda hint, data: data,
    "optional": lambda hint, data: None if data is None else decode(_inner(hint), data),
    "record": lambda hint, data: hint(
        **{name: decode(kind, data[name]) for name, kind in _hints(hint).items()}
    ),
    "sequence": lambda hint, data: tuple(decode(get_args(hint)[0], item) for item in data),
    "row": lambda hint, data: tuple(
        decode(kind, item) for kind, item in zip(get_args(hint), data, strict=True)
    ),
    "map": lambda hint, data: {key: decode(get_args(hint)[1], item) for key, item in data.items()},
}


# --- JSON schema ---


def schema(hint: Any) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of what ``encode(hint, ...)`` writes."""
    return _SCHEMA[_shape(hint)](hint)


def _record_schema(hint: Any) -> dict[str, Any]:
    properties = {name: schema(kind) for name, kind in _hints(hint).items()}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_SCHEMA: dict[str, Callable[[Any], dict[str, Any]]] = {
    "scalar": lambda hint: {"type": _SCALARS[hint][0]},
    "any": lambda hint: {},
    "choice": lambda hint: {"enum": list(get_args(hint))},
    "optional": lambda hint: {"anyOf": [schema(_inner(hint)), {"type": "null"}]},
    "record": _record_schema,
    "sequence": lambda hint: {"type": "array", "items": schema(get_args(hint)[0])},
    "row": lambda hint: {
        "type": "array",
        "prefixItems": [schema(kind) for kind in get_args(hint)],
        "minItems": len(get_args(hint)),
        "items": False,
    },
    "map": lambda hint: {"type": "object", "additionalProperties": schema(get_args(hint)[1])},
}
