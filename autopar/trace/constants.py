"""Tensors that a forward makes from numbers, ``torch.tensor(0.5)``, as operations of the graph.

On ``meta`` their numbers would be lost, and ``torch.export`` takes them for tensors that the model
holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("autopar::constant", mutates_args=())
def constant(
    data: Sequence[float], shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The numbers ``data``, in row-major order, as a tensor of ``shape``."""
    return torch.tensor(data, dtype=dtype, device=device).reshape(tuple(shape))


@constant.register_fake
def _(
    data: Sequence[float], shape: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device=device)


class Constants(TorchFunctionMode):
    """While active, ``torch.tensor`` and ``torch.as_tensor`` of numbers keep the numbers.

    They are on ``device`` unless another one is named.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called for every torch function."""
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args and not kwargs.get("requires_grad"):
            data = list(_numbers(args[0]))
            if all(type(number) in (bool, int, float) for number in data):
                return _made(
                    args[0], data, **{**kwargs, "device": kwargs.get("device") or self.device}
                )
        if func is Tensor.__getitem__:
            args = (args[0], _index(args[1], args[0].device))
        return func(*args, **kwargs)


def _index(index: Any, device: torch.device) -> Any:
    """An index such as ``x[:, [0, 1]]``: its only list as a range, or lists as constants."""
    items = index if isinstance(index, tuple) else (index,)
    lists = [item for item in items if _is_list_of_integers(item)]
    if not lists:
        return index
    others = any(isinstance(item, (Tensor, list)) and item is not lists[0] for item in items)
    if not others and (span := _range(lists[0])):
        return tuple(span if item is lists[0] else item for item in items)
    return tuple(
        _made(item, item, device=device) if _is_list_of_integers(item) else item for item in items
    )


def _is_list_of_integers(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(type(n) is int for n in item)


def _range(numbers: list[int]) -> slice | None:
    """The slice of consecutive numbers."""
    first, last = numbers[0], numbers[-1]
    if numbers != list(range(first, last + 1)) or first < 0 <= last:
        return None
    return slice(first, None if last == -1 else last + 1)


def _made(
    tree: Any, data: list[Any], dtype: torch.dtype | None = None, device: Any = "cpu",
    pin_memory: bool = False,
) -> Tensor:  # fmt: skip
    """The operation for ``tree``, a nest of lists of the numbers ``data``."""
    if dtype is None:
        kinds = {type(number) for number in data}
        default = torch.get_default_dtype()
        dtype = torch.bool if kinds == {bool} else torch.int64 if kinds <= {bool, int} else default
        dtype = dtype if data else default
    made: Tensor = constant(
        [float(n) for n in data], _shape(tree), dtype=dtype, device=torch.device(device)
    )
    return made


def _numbers(tree: Any) -> Iterator[Any]:
    """The leaves of a nest of lists."""
    if isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _numbers(item)
    else:
        yield tree


def _shape(tree: Any) -> list[int]:
    """The lengths of a nest of lists of equal lengths."""
    if not isinstance(tree, (list, tuple)):
        return []
    return [len(tree), *(_shape(tree[0]) if tree else [])]
