"""A small GPT, its synthetic data, and the workload that `autopar plan examples.gpt:make` reads.

    autopar plan examples.gpt:make --world-size 4 --cluster cpu -o plan.json

Nothing here knows of autopar: a plan splits this model as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of the model; the default is small enough for two laptop cores."""

    vocab_size: int = 512
    block_size: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    bias: bool = True


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and what came before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        batch, tokens, channels = x.shape
        shape = (batch, tokens, self.n_head, channels // self.n_head)
        q, k, v = (y.view(shape).transpose(1, 2) for y in self.c_attn(x).split(channels, dim=2))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, tokens, channels)))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a residual connection."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, channels) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A decoder-only language model whose output layer shares the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        for block in self.transformer["h"]:
            # What adds to the residual stream starts smaller, so that depth does not widen it.
            block.attn.c_proj.init_scale = block.mlp.c_proj.init_scale = (
                2 * config.n_layer
            ) ** -0.5
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            scale = getattr(module, "init_scale", 1.0)
            nn.init.normal_(module.weight, mean=0.0, std=0.02 * scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Token numbers (batch, tokens) to logits (batch, tokens, vocabulary)."""
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.transformer["drop"](
            self.transformer["wte"](idx) + self.transformer["wpe"](positions)
        )
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def batches(
    step: int, batch_size: int, rank: int = 0, size: int = 1
) -> tuple[tuple[Tensor], Tensor]:
    """The share of rank ``rank`` of ``size`` in the global batch of ``step``.

    Each sample counts upwards from a random token with a random stride, so the next token can
    be told from the two before it and the loss falls well below that of guessing.

    Args:
        step: number of the optimizer step; equal steps give equal data.
        batch_size: samples of this rank.
        rank: which share to return.
        size: number of shares.

    Returns:
        ``((idx,), target)``, both (batch_size, block_size) token numbers.
    """
    config = GPTConfig()
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(config.vocab_size, (size * batch_size, 1), generator=generator)
    stride = torch.randint(1, 4, (size * batch_size, 1), generator=generator)
    tokens = (start + stride * torch.arange(config.block_size + 1)) % config.vocab_size
    tokens = tokens[rank * batch_size : (rank + 1) * batch_size]
    return (tokens[:, :-1],), tokens[:, 1:]


def make() -> dict[str, object]:
    """The workload: model, example batch, loss and the samples of one optimizer step."""
    inputs, target = batches(step=0, batch_size=2)
    return {
        "model": GPT(GPTConfig()),
        "example_inputs": inputs,
        "example_target": target,
        "loss_fn": loss_fn,
        "global_batch_size": 16,
    }
