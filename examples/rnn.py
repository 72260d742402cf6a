"""A recurrent language model, and text to train it on.

    autopar plan examples/rnn.py:make --world-size 2 --cluster cpu --precision fp32

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

VOCABULARY, TOKENS, WIDTH = 16, 16, 64


class Recurrent(nn.Module):
    """Embedding, two LSTM layers, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, idx: Tensor) -> Tensor:
        """Token numbers (batch, tokens) to logits (batch, tokens, vocabulary)."""
        hidden, _ = self.lstm(self.embedding(idx))
        return self.output(hidden)


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: text that counts upwards.

    The stride is 1 to 3, so the next token can be told from the two before it.

    Returns:
        ``((idx,), target)``, both (batch_size, tokens) token numbers.
    """
    generator = torch.Generator().manual_seed(step + 1)
    start = torch.randint(VOCABULARY, (size * batch_size, 1), generator=generator)
    stride = torch.randint(1, 4, (size * batch_size, 1), generator=generator)
    tokens = (start + stride * torch.arange(TOKENS + 1)) % VOCABULARY
    tokens = tokens[rank * batch_size : (rank + 1) * batch_size]
    return (tokens[:, :-1],), tokens[:, 1:]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    return {
        "model": Recurrent(),
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 16,
    }
