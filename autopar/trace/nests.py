"""Nests of arguments and results of the user's modules as plain data, with places for tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autopar.graph import Ref, Size

PLAIN = (bool, int, float, str, type(None))


def describe_arguments(tree: Any, tensors: list[Tensor], size: Callable[[Any], Size]) -> Any:
    """Arguments of a call as source can write them: ``Ref("2")`` for the third tensor.

    Args:
        tree: tuples, lists and dicts of tensors, numbers, texts, dtypes and None.
        tensors: those that are found are put behind it.
        size: of a symbolic number.

    Raises:
        TypeError: something else is among them.
    """
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return Ref(str(len(tensors) - 1))
    if isinstance(tree, torch.SymInt):
        return size(tree)
    if type(tree) in (tuple, list, torch.Size):
        return tuple(describe_arguments(item, tensors, size) for item in tree)
    if type(tree) is dict and all(type(key) is str for key in tree):
        return {key: describe_arguments(item, tensors, size) for key, item in tree.items()}
    if isinstance(tree, torch.dtype):
        return str(tree)
    if type(tree) in PLAIN:
        return tree
    raise TypeError(f"a {type(tree).__name__} is passed")


def fill(tree: Any, tensors: Sequence[Tensor], batch: int) -> Any:
    """The arguments that ``describe_arguments`` describes, for a micro-batch of ``batch``."""
    if isinstance(tree, Ref):
        return tensors[int(tree.name)]
    if isinstance(tree, Size):
        return tree.at(batch)
    if isinstance(tree, tuple):
        return tuple(fill(item, tensors, batch) for item in tree)
    if isinstance(tree, dict):
        return {key: fill(item, tensors, batch) for key, item in tree.items()}
    if isinstance(tree, str) and tree.startswith("torch."):
        return getattr(torch, tree.removeprefix("torch."))
    return tree


def describe_results(tree: Any, tensors: list[Tensor], others: list[Any]) -> Any:
    """What a call returns: 2 for the third tensor, None for all else, and how source reads it.

    Items of tuples and lists stand in a tuple, those of dicts under keys such as ``["loss"]``, and
    those of objects of a dataclass under ``.loss``. Tensors are put behind ``tensors``, numbers
    and the like behind ``others``.

    Raises:
        TypeError: something else is among them.
    """
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return len(tensors) - 1
    if isinstance(tree, (tuple, list)):
        return tuple(describe_results(item, tensors, others) for item in tree)
    if type(tree) in PLAIN:
        return others.append(tree)
    return {key: describe_results(item, tensors, others) for key, item in _items(tree).items()}


def rebuild(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The nest of results with other tensors, in the order of ``describe_results``."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, (tuple, list)):
        items = [rebuild(item, tensors) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if type(tree) in PLAIN:
        return tree
    made = copy.copy(tree)
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            made[key] = rebuild(item, tensors)
        return made
    for field in dataclasses.fields(tree):
        object.__setattr__(made, field.name, rebuild(getattr(tree, field.name), tensors))
    return made


def _items(tree: Any) -> dict[str, Any]:
    """What is in a dict or dataclass, by the source that reads it."""
    if isinstance(tree, Mapping) and all(type(key) in (str, int) for key in tree):
        keys = {key: f'"{key}"' if isinstance(key, str) else str(key) for key in tree}
        return {f"[{keys[key]}]": item for key, item in tree.items()}
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return {f".{f.name}": getattr(tree, f.name) for f in dataclasses.fields(tree)}
    raise TypeError(f"a {type(tree).__name__} is returned")
