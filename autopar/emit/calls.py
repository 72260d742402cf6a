"""Calls of the user's modules as source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopar.emit.source import literal
from autopar.graph import Call, Ref, Size


def call_arguments(call: Call, name: Callable[[str], str]) -> str:
    """The arguments of a module call, without those that are the defaults.

    ``name`` gives the source of a value.
    """
    positional = list(zip(call.parameters, call.args, strict=False))
    positional += [("", a) for a in call.args[len(positional) :]]
    while positional and _is_default(call, *positional[-1]):
        positional.pop()
    named = {k: v for k, v in call.kwargs.items() if not _is_default(call, k, v)}
    parts = [literal(a, name) for _, a in positional]
    parts += [f"{key}={literal(value, name)}" for key, value in named.items()]
    return ", ".join(parts)


def _is_default(call: Call, name: str, value: Any) -> bool:
    """Whether an argument of a call is what the module takes anyway."""
    default = call.defaults.get(name, ())
    return not isinstance(value, (Ref, Size, tuple, dict)) and (
        type(value) is type(default) and value == default
    )


def unpackable(outputs: Any) -> bool:
    """Whether what a call returns can be taken apart by an assignment: no dicts in it."""
    if isinstance(outputs, tuple):
        return bool(outputs) and all(unpackable(item) for item in outputs)
    return not isinstance(outputs, dict)
