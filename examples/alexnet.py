"""AlexNet, and the workload that `autopar plan examples.alexnet:make` reads.

    autopar plan examples.alexnet:make --world-size 8 --cluster a100-80g --precision fp32

The classic of mixed parallelism (Krizhevsky, One weird trick, 2014): its convolutions hold a
twentieth of the parameters and do nearly all of the work, its linear layers the reverse.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

IMAGE, CLASSES = 224, 1000


class AlexNet(nn.Module):
    """Five convolutions and three linear layers.

    Args:
        classes: number of classes.
        width: channels of the first convolution; the others keep their proportions.
        hidden: width of the linear layers.
        pooled: height and width of what the convolutions hand to them.
        dropout: in front of the first two linear layers.
    """

    def __init__(
        self, classes: int = CLASSES, width: int = 64, hidden: int = 4096, pooled: int = 6,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(width, 3 * width, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(3 * width, 6 * width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(6 * width, 4 * width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * width, 4 * width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(4 * width * pooled**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) to logits (batch, classes)."""
        return self.classifier(torch.flatten(self.pool(self.features(images)), 1))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the samples."""
    return F.cross_entropy(logits, target)


SMALL_CLASSES, SMALL_IMAGE = 10, 64


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: a class's pattern under noise.

    Returns:
        ``((images,), labels)`` for the model of ``make_small``.
    """
    coarse = torch.randn(SMALL_CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(coarse, size=SMALL_IMAGE)
    generator = torch.Generator().manual_seed(step + 1)
    labels = torch.randint(SMALL_CLASSES, (size * batch_size,), generator=generator)
    noise = torch.randn(size * batch_size, *patterns.shape[1:], generator=generator)
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    return ((patterns[labels] + noise)[mine],), labels[mine]


def make_small() -> dict[str, object]:
    """The same in small, without dropout: the linear layers still weigh most.

    It starts so that signals keep their size from layer to layer; from PyTorch's own start
    it would take hundreds of steps until the loss falls.
    """
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    model = AlexNet(SMALL_CLASSES, width=16, hidden=512, pooled=2, dropout=0.0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight, gain=2**0.5)
            nn.init.zeros_(module.bias)
    return {
        "model": model,
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 16,
    }


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    return {
        "model": AlexNet(),
        "example_inputs": (torch.zeros(2, 3, IMAGE, IMAGE),),
        "example_target": torch.zeros(2, dtype=torch.int64),
        "loss_fn": loss_fn,
        "global_batch_size": 1024,
    }
