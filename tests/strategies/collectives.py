"""The moves of the emitted program, done for all ranks at once in one process.

Every function takes what each rank holds, and the states in front and behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autopar.strategies.states import State

Parts = list[Tensor]


def halves(parts: Parts, dim: int) -> Parts:
    """Each rank keeps its share of what it holds."""
    return [part.chunk(len(parts), dim)[rank] for rank, part in enumerate(parts)]


def joined(parts: Parts, dim: int) -> Parts:
    return [torch.cat(parts, dim)] * len(parts)


def summed(parts: Parts) -> Parts:
    return [torch.stack(parts).sum(0)] * len(parts)


def zeros_around(parts: Parts, dim: int) -> Parts:
    blank = torch.zeros_like(parts[0])
    ranks = range(len(parts))
    return [torch.cat([part if k == rank else blank for k in ranks], dim)
            for rank, part in enumerate(parts)]  # fmt: skip


Step = Callable[[Parts, State, State], Parts]
FORWARD: dict[str, Step] = {
    "enter": lambda parts, a, b: parts,
    "scatter": lambda parts, a, b: halves(parts, b.dim),
    "narrow": lambda parts, a, b: halves(parts, b.dim),
    "gather": lambda parts, a, b: joined(parts, a.dim),
    "all_gather": lambda parts, a, b: joined(parts, a.dim),
    "all_reduce": lambda parts, a, b: summed(parts),
    "all_reduce_enter": lambda parts, a, b: summed(parts),
    "reduce_scatter": lambda parts, a, b: halves(summed(parts), b.dim),
    "all_to_all": lambda parts, a, b: halves(joined(parts, a.dim), b.dim),
}
BACKWARD: dict[str, Step] = {
    "enter": lambda grads, a, b: summed(grads),
    "scatter": lambda grads, a, b: joined(grads, b.dim),
    "narrow": lambda grads, a, b: zeros_around(grads, b.dim),
    "gather": lambda grads, a, b: halves(grads, a.dim),
    "all_gather": lambda grads, a, b: halves(summed(grads), a.dim),
    "all_reduce": lambda grads, a, b: grads,
    "all_reduce_enter": lambda grads, a, b: summed(grads),
    "reduce_scatter": lambda grads, a, b: joined(grads, b.dim),
    "all_to_all": lambda grads, a, b: halves(joined(grads, b.dim), a.dim),
}


class Moving(torch.autograd.Function):
    """One move with the backward that the states promise."""

    @staticmethod
    def forward(ctx: Any, function: str, source: State, target: State, *parts: Tensor) -> Any:
        ctx.move = function, source, target
        return tuple(part.clone() for part in FORWARD[function](list(parts), source, target))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        function, source, target = ctx.move
        return None, None, None, *BACKWARD[function](list(grads), source, target)
