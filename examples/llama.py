"""A small Llama 2, written out, and text to train it on.

    autopar plan examples/llama.py:make --world-size 4 --cluster cpu -o plan.json

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of the model; the weights outweigh the tokens of a step, as in a large one."""

    vocab_size: int = 64
    tokens: int = 16
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 2
    n_embd: int = 128
    n_inner: int = 256


class Attention(nn.Module):
    """Causal attention with rotary positions, in which several queries share a key."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.n_embd // config.n_head
        self.groups = config.n_head // config.n_kv_head
        narrow = config.n_kv_head * self.head_dim
        self.wq = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.wk = nn.Linear(config.n_embd, narrow, bias=False)
        self.wv = nn.Linear(config.n_embd, narrow, bias=False)
        self.wo = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.wq, self.wk, self.wv)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (y.repeat_interleave(self.groups, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): pairs (x1, x2) are turned by angles (tokens, dim / 2)."""
    x1, x2 = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


class Block(nn.Module):
    """Attention and a gated MLP (SwiGLU), each behind an RMS norm and beside a residual."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.n_embd)
        self.attention = Attention(config)
        self.mlp_norm = nn.RMSNorm(config.n_embd)
        self.gate = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Embedding, blocks, norm, output layer; nothing is tied."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.norm = nn.RMSNorm(config.n_embd)
        self.output = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        dim = config.n_embd // config.n_head
        speeds = 1e4 ** (-torch.arange(0, dim, 2) / dim)
        angles = torch.arange(config.tokens)[:, None] * speeds
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, idx: Tensor) -> Tensor:
        """Token numbers (batch, tokens) to logits (batch, tokens, vocabulary)."""
        x = self.embedding(idx)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.output(self.norm(x))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """Share ``rank`` of ``size`` in the global batch of ``step``: text of a Markov chain.

    Two tokens can follow each token, three times out of four it is the first of them. Who knows
    the chain reaches a loss of 0.56; guessing costs ln 64 = 4.16.

    Returns:
        ``((idx,), target)``, both (batch_size, tokens) token numbers.
    """
    config = LlamaConfig()
    chain = torch.Generator().manual_seed(0)
    likely, other = (torch.randperm(config.vocab_size, generator=chain) for _ in range(2))
    generator = torch.Generator().manual_seed(step + 1)
    text = [torch.randint(config.vocab_size, (size * batch_size,), generator=generator)]
    for _ in range(config.tokens):
        surprise = torch.rand(size * batch_size, generator=generator) < 0.25
        text.append(torch.where(surprise, other[text[-1]], likely[text[-1]]))
    tokens = torch.stack(text, dim=1)[rank * batch_size : (rank + 1) * batch_size]
    return (tokens[:, :-1],), tokens[:, 1:]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    torch.manual_seed(0)
    inputs, target = batches(step=0, batch_size=2)
    return {
        "model": Llama(LlamaConfig()),
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 8,
    }
