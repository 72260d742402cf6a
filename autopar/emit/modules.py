"""Calls of modules and functions that could not be traced, and what they return."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autopar.trace.opaque import FUNCTION

FUNCTIONAL = "torch.nn.functional."


def function_of(path: str) -> str:
    """How a program calls a function that stands for itself, "" for a module's path."""
    if not path.startswith(FUNCTION):
        return ""
    name = path.removeprefix(FUNCTION)
    return f"F.{name.removeprefix(FUNCTIONAL)}" if name.startswith(FUNCTIONAL) else name


def assignments(results: Any, names: Sequence[str], text: str, whole: str) -> list[str]:
    """Statements that give names to the tensors that a call returns.

    Args:
        results: the nest that it returns (``trace.nests.describe_results``).
        names: of its tensors, "_" for what nothing reads.
        text: the call.
        whole: a name for all that is returned, used where an assignment cannot take it apart.
    """
    target = _target(results, names)
    if target:
        outer = isinstance(results, tuple) and len(results) > 1
        return [f"{target[1:-1] if outer else target} = {text}"]
    read = [(path, names[k]) for path, k in _places(results) if names[k] != "_"]
    return [f"{whole} = {text}", *(f"{name} = {whole}{path}" for path, name in read)]


def _target(results: Any, names: Sequence[str]) -> str:
    """What an assignment takes the nest apart with, "" if none can."""
    if isinstance(results, int):
        return names[results]
    if results is None:
        return "_"
    items = [_target(item, names) for item in results] if isinstance(results, tuple) else []
    if not items or not all(items):
        return ""
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _places(results: Any) -> Iterator[tuple[str, int]]:
    """(how source reads it, number) of each tensor."""
    if isinstance(results, int):
        yield "", results
    elif isinstance(results, tuple):
        for position, item in enumerate(results):
            yield from ((f"[{position}]{path}", k) for path, k in _places(item))
    elif isinstance(results, dict):
        for key, item in results.items():
            yield from ((f"{key}{path}", k) for path, k in _places(item))
