"""Language models that mix tokens in other ways than attention as it is usual."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import TOKENS, VOCABULARY, Case
from tests.multiprocess.unusual import WIDTH, next_tokens, token_loss

HEADS = 4


class Sequence(nn.Module):
    """A language model around a mixer of tokens of any kind."""

    def __init__(self, block: type[nn.Module], layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


class Projected(nn.Module):
    """Queries, keys, values and a way out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        return self.qkv(self.norm(x)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)

    def join(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))


class Linear(Projected):
    """Linear attention, causal by cumulative sums."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        states = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(2)
        total = torch.einsum("bhtd,bhtd->bht", q, k.cumsum(2))
        return self.join(torch.einsum("bhtd,bhtde->bhte", q, states) / total.unsqueeze(-1))


class Retention(Projected):
    """Scores that decay with the distance, a rate for each head."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        t = x.shape[1]
        rate = 1 - 2.0 ** (-5 - torch.arange(HEADS, device=x.device))
        steps = torch.arange(t, device=x.device)
        gap = steps[:, None] - steps[None]
        decay = torch.where(gap >= 0, rate[:, None, None] ** gap.clamp(min=0), 0.0)
        y = (q @ k.transpose(-1, -2)) * decay @ v
        return self.join(
            F.group_norm(y.transpose(1, 2).flatten(0, 1), HEADS)
            .unflatten(0, (-1, t))
            .transpose(1, 2)
        )


class Recurrence(nn.Module):
    """RWKV's time mixing, as a loop over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-1, 1, WIDTH))
        self.first = nn.Parameter(torch.zeros(WIDTH))
        self.mix = nn.Parameter(torch.full((WIDTH,), 0.5))
        self.key, self.value = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.gate, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        x = x * self.mix + before * (1 - self.mix)
        k, v, r = self.key(x), self.value(x), self.gate(x).sigmoid()
        above = torch.zeros_like(k[:, 0])
        below = torch.zeros_like(above)
        decay, found = torch.exp(-torch.exp(self.decay)), []
        for t in range(x.shape[1]):
            now = torch.exp(k[:, t] + self.first)
            found.append((above + now * v[:, t]) / (below + now))
            above = decay * above + torch.exp(k[:, t]) * v[:, t]
            below = decay * below + torch.exp(k[:, t])
        return self.out(r * torch.stack(found, 1))


class Hyena(nn.Module):
    """A long convolution by Fourier transforms, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.filter = nn.Parameter(torch.randn(WIDTH, TOKENS) / TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        u, v, w = self.enter(x).transpose(1, 2).chunk(3, 1)
        n = 2 * u.shape[-1]
        spectrum = torch.fft.rfft(u * v, n=n) * torch.fft.rfft(self.filter, n=n)
        y = torch.fft.irfft(spectrum, n=n)[..., : u.shape[-1]]
        return self.leave((y * w).transpose(1, 2))


class Alibi(Projected):
    """Scores with a slope for each head, and a window."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        steps = torch.arange(x.shape[1], device=x.device)
        gap = steps[None] - steps[:, None]
        slopes = torch.tensor([2.0 ** -(i + 1) for i in range(HEADS)], device=x.device)
        bias = (slopes[:, None, None] * gap).masked_fill((gap > 0) | (gap < -4), float("-inf"))
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
        return self.join(scores.softmax(-1) @ v)


class Depths(Projected):
    """Mixture of depths: only the tokens that a router chooses pass through the block."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).squeeze(-1).topk(TOKENS // 2, dim=-1)
        chosen, order = chosen.sort(-1)
        weights = weights.gather(-1, order).sigmoid().unsqueeze(-1)
        index = chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        rows = x.gather(1, index)
        q, k, v = self.heads(rows)
        y = self.join(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return torch.zeros_like(x).scatter_add(1, index, y * weights)


class Headed(nn.Module):
    """Weights with a dim for heads, whose gradients einsum makes in another order than theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ParameterList(torch.randn(WIDTH, HEADS, 6) / 4 for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btw,wnd->bntd", x, self.ways[i]) for i in range(3))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bntd,wnd->btw", heads, self.ways[3])


class Turned(nn.Module):
    """Mixes tokens first, so that the gradient of what a block receives lies transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(TOKENS, TOKENS)
        self.channels = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.channels(self.tokens(x.transpose(1, 2)).transpose(1, 2).tanh())


class Straight(Sequence):
    """Without residual connections, so that a block alone makes the gradient that is sent."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Gated(Sequence):
    """Whose blocks are scaled by an activation before them that learns nothing from it."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = first = self.embed(tokens)
        for block in self.blocks:
            scale = first.detach()
            x = x + block(x) * scale
        return self.head(self.norm(x))


CASES = {
    "linear-attention": Case(lambda: Sequence(Linear), next_tokens, token_loss),
    "retention": Case(lambda: Sequence(Retention), next_tokens, token_loss),
    "rwkv": Case(lambda: Sequence(Recurrence), next_tokens, token_loss),
    "hyena": Case(lambda: Sequence(Hyena), next_tokens, token_loss),
    "alibi": Case(lambda: Sequence(Alibi), next_tokens, token_loss),
    "headed": Case(lambda: Sequence(Headed), next_tokens, token_loss),
    "turned": Case(partial(Straight, Turned), next_tokens, token_loss),
    "gated": Case(partial(Gated, Turned), next_tokens, token_loss),
    "depths": Case(lambda: Sequence(Depths), next_tokens, token_loss),
}
