"""What a model that programs are compared on needs: how it is made, its batches, its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, TOKENS, LAYERS, SAMPLES, CLASSES = 128, 16, 3, 8, 10
Batch = Callable[[torch.Generator, int], tuple[Any, Tensor | None]]


@dataclass(frozen=True)
class Case:
    """How a model is made, what it is fed, and its loss function, None if it returns its loss.

    ``mixes`` says that samples influence each other (statistics, losses that are no means over
    samples): the single device then runs the plan's micro-batches one after the other.
    """

    make: Callable[..., nn.Module]
    batch: Batch
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    mixes: bool = False
