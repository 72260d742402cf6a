"""Modules that cannot be traced, because of values or of autograd functions with a backward.

Each becomes one operation, which a program runs by calling the user's module. What the operation
makes and costs is observed: the module is run on small random inputs on the CPU. Each of its
weights is one number, expanded to the weight's shape, which takes no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from autopar.errors import TraceError
from autopar.graph import Op, Size

OPAQUE = "autopar.opaque.default"
# The weights' values do not matter, as long as no result grows or vanishes.
WEIGHT = 0.02
Described = tuple[tuple[Size, ...], torch.dtype]


@torch.library.custom_op("autopar::opaque", mutates_args=())
def opaque(
    inputs: list[Tensor], held: list[Tensor], path: str, shape: Sequence[int], flops: int,
    saved_bytes: int,
) -> Tensor:  # fmt: skip
    """A call of the module at ``path``, which holds parameters and buffers."""
    raise NotImplementedError(f"{path} is run by the module that it stands for")


@opaque.register_fake
def _(
    inputs: list[Tensor], held: list[Tensor], path: str, shape: Sequence[int], flops: int,
    saved_bytes: int,
) -> Tensor:  # fmt: skip
    return inputs[0].new_empty(tuple(shape))


class UntraceableError(TraceError):
    """A trace stopped in the module at ``path``, which may be run as one operation instead."""

    path: str = ""


class HiddenBackwardError(Exception):
    """A function of the user's has a backward of its own, which a trace would lose."""


class OwnBackwards:
    """While active, calls of the user's ``torch.autograd.Function``s raise.

    The operations of their forward would be traced, and autograd's backward of these be run.

    Raises:
        HiddenBackwardError: one was called.
    """

    def __enter__(self) -> None:
        self._apply = vars(torch.autograd.Function)["apply"]

        def refuse(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
            if function.__module__.startswith("torch."):  # checkpoints, which repeat operations
                return self._apply.__get__(None, function)(*args, **kwargs)
            raise HiddenBackwardError(
                f"the backward of the autograd function {function.__name__} is not seen"
            )

        torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign,assignment]

    def __exit__(self, *_: object) -> None:
        torch.autograd.Function.apply = self._apply  # type: ignore[method-assign]


@dataclass(frozen=True)
class Observed:
    """What running a module told.

    Attributes:
        arguments: shape and dtype of each argument.
        shape: that of the result.
        flops: of the forward of one sample.
        saved_bytes: kept for backward per sample, besides inputs and weights.
    """

    arguments: tuple[Described, ...]
    shape: tuple[Size, ...]
    flops: int
    saved_bytes: int


def observe(module: nn.Module, arguments: Sequence[Described]) -> Observed | None:
    """Runs ``module`` on two and on four samples.

    Args:
        module: its weights may be on ``meta``.
        arguments: of its call, which has positional tensors alone.

    Returns:
        None if it cannot be run so, or does not return one tensor that has a gradient.
    """
    try:
        small, large = (_run(module, arguments, batch) for batch in (2, 4))
    except Exception:  # a user's module, which may raise anything
        return None
    pairs = list(zip(small[0], large[0], strict=True))
    if any(b not in (a, 2 * a) for a, b in pairs):
        return None
    shape = tuple(Size(a // 2, 1) if b == 2 * a else Size(a) for a, b in pairs)
    flops, saved_bytes = (max(0, b - a) // 2 for a, b in zip(small[1:], large[1:], strict=True))
    return Observed(tuple(arguments), shape, flops, saved_bytes)


def _run(
    module: nn.Module, arguments: Sequence[Described], batch: int
) -> tuple[tuple[int, ...], int, int]:
    """(shape of the result, flops, bytes kept for backward) for a micro-batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = [_draw([s.at(batch) for s in shape], dtype) for shape, dtype in arguments]
    named = [*module.named_parameters(), *module.named_buffers()]
    weights = {name: _expanded(tensor) for name, tensor in named}
    known = {_storage(tensor) for tensor in (*inputs, *weights.values())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        result: Tensor = functional_call(module, weights, tuple(inputs))
    if not result.requires_grad:
        raise TypeError("the result has no gradient")
    saved = sum(size for storage, size in kept.items() if storage not in known)
    return tuple(result.shape), counter.get_total_flops(), saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _draw(shape: list[int], dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype).requires_grad_()
    return torch.zeros(shape, dtype=dtype)


def _expanded(tensor: Tensor) -> Tensor:
    value = WEIGHT if tensor.is_floating_point() else 0
    whole = torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)
    return whole.requires_grad_(tensor.requires_grad)


def find_opaque(
    model: nn.Module, path: str, calls: dict[str, tuple[Described, ...]], known: Iterable[str]
) -> dict[str, Observed]:
    """What is to become one operation for the trace to get past ``path``, {} if nothing helps.

    That is the innermost module around ``path`` that can be run alone, and all that equal it.
    ``calls`` has the arguments of modules that were called with describable ones; those in
    ``known`` are operations already.
    """
    parts = path.split(".") if path else []
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name not in calls or name in known:
            continue
        facts = observe(model.get_submodule(name), calls[name])
        if facts is not None:
            form = _form(model.get_submodule(name))
            return {p: facts for p, m in model.named_modules() if _form(m) == form}
    return {}


def _form(module: nn.Module) -> Any:
    return type(module), [(name, tuple(p.shape)) for name, p in module.named_parameters()]


def attach_opaque(model: nn.Module, observed: dict[str, Observed], describe: Any) -> None:
    """Prepares ``model``, a private copy; ``describe`` gives shape and dtype of an argument."""
    for path, facts in observed.items():
        module: Any = model.get_submodule(path)
        module.forward = _forward(path, facts, module, describe)


def _forward(path: str, facts: Observed, module: nn.Module, describe: Any) -> Any:
    def forward(*args: Tensor) -> Tensor:
        found = tuple(describe(argument) for argument in args)
        if found != facts.arguments:
            raise TraceError(
                f"{path} is called with {found}", expected=f"{facts.arguments}, as elsewhere",
                where=path, hint="make its shapes independent of values, so that it can be traced",
            )  # fmt: skip
        held = [*module.parameters(), *module.buffers()]
        shape = [_size(size, facts, args) for size in facts.shape]
        made: Tensor = opaque(list(args), held, path, shape, facts.flops, facts.saved_bytes)
        return made

    return forward


def _size(size: Size, facts: Observed, args: tuple[Tensor, ...]) -> Any:
    """A dim of the result in terms of those of the arguments."""
    if size.power == 0:
        return size.coefficient
    for (shape, _), tensor in zip(facts.arguments, args, strict=True):
        for dim, own in enumerate(shape):
            if own.power and size.coefficient % own.coefficient == 0:
                return tensor.shape[dim] * (size.coefficient // own.coefficient)
    raise TraceError(f"the result of {type(args[0]).__name__} grows with the batch in its own way")


def moved(op: Op, old: str, new: str) -> tuple[Any, ...]:
    """The arguments of an opaque op of the block ``old`` as those of the block ``new``."""
    return tuple(
        new + a.removeprefix(old) if isinstance(a, str) and a.startswith(f"{old}.") else a
        for a in op.args
    )
