"""A small convolutional network, and images shaped like MNIST's to train it on.

    autopar plan examples/mnist.py:make --world-size 2 --cluster cpu --precision fp32

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

CLASSES, SIDE = 10, 28


class ConvNet(nn.Module):
    """Two convolutions and two linear layers, as in PyTorch's MNIST example, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(32 * 12 * 12, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 28, 28) to logits (batch, classes)."""
        return self.classifier(self.features(images).flatten(1))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the samples."""
    return F.cross_entropy(logits, target)


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: a class's pattern under noise.

    Returns:
        ``((images,), labels)`` of shapes (batch_size, 1, 28, 28) and (batch_size,).
    """
    patterns = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(step + 1)
    labels = torch.randint(CLASSES, (size * batch_size,), generator=generator)
    noise = torch.randn(size * batch_size, 1, SIDE, SIDE, generator=generator)
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    return ((patterns[labels] + noise)[mine],), labels[mine]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    return {
        "model": ConvNet(),
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 16,
    }
