"""Finds blocks that are equal, so that few of them have to be traced.

Two blocks are equal if their modules are: the same classes, names, shapes, dtypes and attributes
all the way down. An attribute that counts the blocks (``layer_idx``) may differ. In the copy that
is traced it is replaced by an object which cannot be read, so that a forward that depends on it
is noticed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Traced in any case: the first, which may be called in its own way; the second, which stands
# for all that are left out; and the last, which has to agree with the second.
TRACED = 3
_PLAIN = (bool, float, str, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))


class NotRepeatedError(Exception):
    """Blocks that look equal are not used equally; the model has to be traced in full."""


@dataclass(frozen=True)
class Repeat:
    """Equal blocks of which some are not traced.

    Attributes:
        template: path of the block whose operations the omitted ones take.
        check: path of another traced block, which must have the same operations.
        omitted: paths of the blocks that are not traced.
        counters: attributes that differ between the blocks, as paths below the block.
    """

    template: str
    check: str
    omitted: tuple[str, ...]
    counters: tuple[str, ...]


class Unreadable:
    """Stands for an attribute that differs between blocks; reading its value raises.

    Other uses, such as arithmetic or indexing, raise a TypeError because it supports none.
    """

    def _refuse(self, *_: Any) -> Any:
        raise NotRepeatedError("a block's operations depend on its position")

    __eq__ = __bool__ = __str__ = __repr__ = __format__ = _refuse
    __hash__ = _refuse


def hide_counters(block: nn.Module, counters: Iterable[str]) -> None:
    """Makes a block of the copy, which is thrown away later, raise where it reads its position."""
    for counter in counters:
        owner, _, name = counter.rpartition(".")
        setattr(block.get_submodule(owner), name, Unreadable())


def find_repeats(model: nn.Module, blocks: Iterable[str]) -> tuple[Repeat, ...]:
    """The classes of equal ``blocks`` of ``model`` that are large enough to leave some out.

    A block that shares a tensor with the rest of the model, holds hooks or plain tensors is
    equal to no other.
    """
    groups: dict[Any, list[tuple[str, dict[str, int]]]] = {}
    uses = _count_uses(model)
    for path in blocks:
        block = model.get_submodule(path)
        numbers: dict[str, int] = {}
        form = _form(block, "", numbers)
        if _is_closed(block, uses):
            groups.setdefault(form, []).append((path, numbers))
    split = [part for group in groups.values() for part in _split_by_numbers(group)]
    return tuple(_repeat(*part) for part in split if len(part[0]) > TRACED)


def _repeat(paths: list[str], counters: tuple[str, ...]) -> Repeat:
    return Repeat(paths[1], paths[-1], tuple(paths[2:-1]), counters)


def _split_by_numbers(
    group: list[tuple[str, dict[str, int]]],
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """Integers that rise from block to block count them; any other difference divides the group."""
    columns = {name: [numbers[name] for _, numbers in group] for name in group[0][1]}
    counters = tuple(name for name, column in columns.items() if _rises(column))
    parts: dict[Any, list[str]] = {}
    for path, numbers in group:
        key = tuple(numbers[name] for name in columns if name not in counters)
        parts.setdefault(key, []).append(path)
    for paths in parts.values():
        yield paths, counters


def _rises(column: list[int]) -> bool:
    return len(column) > 1 and all(a < b for a, b in itertools.pairwise(column))


def _count_uses(model: nn.Module) -> dict[int, int]:
    """How often each tensor is registered in the whole model."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for tensor in _registered(module):
            uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    return uses


def _is_closed(block: nn.Module, uses: dict[int, int]) -> bool:
    inside = _count_uses(block)
    return all(uses[key] == count for key, count in inside.items())


def _registered(module: nn.Module) -> Iterator[Tensor]:
    for group in (module._parameters, module._buffers):
        yield from (tensor for tensor in group.values() if tensor is not None)


def _form(module: nn.Module, prefix: str, numbers: dict[str, int]) -> Any:
    """All that a module's forward may depend on, hashable; integers go to ``numbers`` instead."""
    attributes = []
    for name, value in vars(module).items():
        if name in _INTERNAL:
            if "hook" in name and value:
                return (id(module),)
        elif type(value) is int:
            numbers[f"{prefix}{name}"] = value
            attributes.append((name, int))
        else:
            attributes.append((name, _plain(value)))
    children = tuple(
        (name, _form(child, f"{prefix}{name}.", numbers) if child is not None else None)
        for name, child in module._modules.items()
    )
    tensors = tuple(_tensor_form(m) for m in (module._parameters, module._buffers))
    return type(module), module.training, tuple(attributes), tensors, children


def _tensor_form(group: dict[str, Any]) -> Any:
    return tuple(
        (name, None if t is None else (tuple(t.shape), t.dtype, t.requires_grad, type(t)))
        for name, t in group.items()
    )


def _plain(value: Any) -> Any:
    """Plain data by value, any other object (a shared configuration, a function) by identity."""
    if isinstance(value, (*_PLAIN, int)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_plain(item) for item in value)
    if isinstance(value, dict):
        return dict, tuple((_plain(k), _plain(v)) for k, v in value.items())
    if isinstance(value, functools.partial):
        return functools.partial, value.func, _plain(value.args), _plain(value.keywords)
    return id(value)
