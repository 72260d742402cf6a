"""Values that follow from numbers and sizes alone are known while a model is traced.

``nn.Transformer`` asks a mask whether it is the causal one: ``if (mask == causal).all()``. On
``meta`` there is no answer, though nothing but sizes went into either. So whatever is made of
numbers is remembered as an expression, which is computed when somebody asks for its value.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from autopar.trace.private import tree_flatten, tree_unflatten

FACTORIES = frozenset(
    {torch.arange, torch.eye, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros}
)
ASKED = frozenset({Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.item, Tensor.tolist})
CHANCE = ("bernoulli", "dropout", "empty", "multinomial", "normal", "poisson", "rand")


class Made(NamedTuple):
    """How a tensor is made; tensors among the arguments are ``Made`` themselves."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any


class KnownValues(TorchFunctionMode):
    """While active, tensors that are made of numbers answer what their values are."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, Made]] = {}  # the tensor keeps its id taken

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called for every torch function."""
        kwargs = kwargs or {}
        if func in ASKED and id(args[0]) in self.made:
            return compute(Made(func, *self._described((args, kwargs))))
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if _changes(name) or kwargs.get("out") is not None:
            self.made.clear()  # views of what is changed would answer what they were before
        elif isinstance(result, Tensor) and not any(word in name for word in CHANCE):
            self._remember(func, args, kwargs, result)
        return result

    def _remember(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        leaves, _ = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        known = all(id(tensor) in self.made for tensor in tensors)
        plain = not any(isinstance(leaf, (torch.SymInt, torch.SymFloat)) for leaf in leaves)
        if known and plain and (tensors or func in FACTORIES):
            self.made[id(result)] = result, Made(func, *self._described((args, kwargs)))

    def _described(self, tree: Any) -> Any:
        leaves, spec = tree_flatten(tree)
        found = [self.made[id(leaf)][1] if id(leaf) in self.made else leaf for leaf in leaves]
        return tree_unflatten(found, spec)


def _changes(name: str) -> bool:
    """Whether a function of this name changes a tensor."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def compute(made: Made) -> Any:
    """The value, on the CPU, in a thread of its own: the modes of the trace are not in force."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_compute, made).result()


def _compute(made: Made) -> Any:
    leaves, spec = tree_flatten((made.args, made.kwargs), is_leaf=lambda x: isinstance(x, Made))
    args, kwargs = tree_unflatten([_value(leaf) for leaf in leaves], spec)
    return made.function(*args, **kwargs)


def _value(leaf: Any) -> Any:
    if isinstance(leaf, Made):
        return _compute(leaf)
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf
