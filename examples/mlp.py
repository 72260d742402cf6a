"""A plain stack of linear layers, and vectors to train it on.

    autopar plan examples/mlp.py:make --world-size 2 --cluster cpu --precision fp32

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

WIDTH, INNER, CLASSES = 64, 256, 10


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the samples."""
    return F.cross_entropy(logits, target)


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: points around class centres.

    Returns:
        ``((vectors,), labels)`` of shapes (batch_size, width) and (batch_size,).
    """
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step + 1)
    labels = torch.randint(CLASSES, (size * batch_size,), generator=generator)
    noise = torch.randn(size * batch_size, WIDTH, generator=generator)
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    return ((centres[labels] + noise)[mine],), labels[mine]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    model = nn.Sequential(
        nn.Linear(WIDTH, INNER),
        nn.ReLU(),
        nn.Linear(INNER, INNER),
        nn.ReLU(),
        nn.Linear(INNER, INNER),
        nn.ReLU(),
        nn.Linear(INNER, CLASSES),
    )
    return {
        "model": model,
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 32,
    }
