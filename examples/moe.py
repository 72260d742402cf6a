"""A small mixture of experts, and text to train it on.

    autopar plan examples/moe.py:make --world-size 2 --cluster cpu --precision fp32

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

VOCABULARY, TOKENS, WIDTH, HEADS, BLOCKS = 64, 16, 64, 4, 2
EXPERTS, INNER = 4, 128


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self) -> None:
        super().__init__()
        linears = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.wq, self.wk, self.wv, self.wo = linears

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """Networks of one shape, stacked; the router weighs the two that suit a token best.

    All of them are computed for every token, as is usual for few and small ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.empty(EXPERTS, WIDTH, INNER))
        self.down = nn.Parameter(torch.empty(EXPERTS, INNER, WIDTH))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Products keep the scale of what they read."""
        nn.init.normal_(self.up, std=WIDTH**-0.5)
        nn.init.normal_(self.down, std=INNER**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        scores = self.router(x).softmax(-1)
        best, chosen = scores.topk(2)
        weights = torch.zeros_like(scores).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.silu(torch.einsum("btd,edi->btei", x, self.up))
        results = torch.einsum("btei,eid->bted", hidden, self.down)
        return torch.einsum("bte,bted->btd", weights, results)


class Block(nn.Module):
    """Attention, then experts, each beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.experts = Attention(), Experts()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        x = x + self.attention(self.norm_1(x))
        return x + self.experts(self.norm_2(x))


class Mixture(nn.Module):
    """Embeddings of tokens and positions, blocks, output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.empty(TOKENS, WIDTH))
        self.reset_parameters()
        self.blocks = nn.ModuleList([Block() for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def reset_parameters(self) -> None:
        """Positions are small beside tokens."""
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, idx: Tensor) -> Tensor:
        """Token numbers (batch, tokens) to logits (batch, tokens, vocabulary)."""
        x = self.tokens(idx) + self.positions[: idx.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: text that counts upwards.

    Returns:
        ``((idx,), target)``, both (batch_size, tokens) token numbers.
    """
    generator = torch.Generator().manual_seed(step + 1)
    start = torch.randint(VOCABULARY, (size * batch_size, 1), generator=generator)
    tokens = (start + torch.arange(TOKENS + 1)) % VOCABULARY
    tokens = tokens[rank * batch_size : (rank + 1) * batch_size]
    return (tokens[:, :-1],), tokens[:, 1:]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    return {
        "model": Mixture(),
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 8,
    }
