"""Cross entropies that are not reduced, traced in the shape that they have.

On ``meta`` torch 2.13 gives ``F.cross_entropy(..., reduction="none")`` no dims at all where the
number of samples is symbolic, and what reads the losses fails.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from autopar.graph import Op

_SIGNATURE = inspect.signature(F.cross_entropy)
_UNREDUCED = 0


@torch.library.custom_op("autopar::cross_entropy", mutates_args=())
def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> Tensor:
    """The loss of every target; it stands for torch's own while a model is traced."""
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction="none",
        label_smoothing=smoothing,
    )  # fmt: skip


@cross_entropy.register_fake
def _(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> Tensor:
    return logits.new_empty(target.shape)


class UnreducedLosses(TorchFunctionMode):
    """Calls ``cross_entropy`` for torch's where classes are given and nothing is reduced."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.cross_entropy:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            logits, target, weight, _, ignored, _, reduction, smoothing = given.arguments.values()
            if reduction == "none" and not target.is_floating_point():
                return cross_entropy(logits, target, weight, ignored, smoothing)
        return func(*args, **(kwargs or {}))


def as_torch_does(op: Op) -> Op:
    """The operation under torch's own name."""
    if op.target != "autopar.cross_entropy.default":
        return op
    logits, target, weight, ignored, smoothing = op.args
    arguments = (logits, target, weight, _UNREDUCED, ignored, smoothing)
    return dataclasses.replace(op, target="aten.cross_entropy_loss.default", args=arguments)
