"""Decoder-only transformers as the training systems of published runs compute them.

What their kernels do in one pass is one op here: biases are parts of the kernels beside them
and are left out, scale and mask belong to the softmax, rotary embedding is one kernel. A run
without FlashAttention writes its scores, so the model does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of a model with one class of blocks, and how its system computes them.

    Attributes:
        ffn: width of the hidden layer of the MLP.
        gated: whether the MLP is SwiGLU on top of RMSNorm, as in Llama; otherwise GELU on top of
            LayerNorm, as in GPT.
        flash: attention in one kernel; otherwise scores are written, normalised and read.
        tied: whether the output layer shares the embedding.
        fused_loss: whether one kernel takes the loss of logits as they are, otherwise in float32.
    """

    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tokens: int
    gated: bool
    flash: bool
    tied: bool
    fused_loss: bool = False

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads


class _Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape.hidden))
        self.rms = shape.gated

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-1],)
        if self.rms:
            return F.rms_norm(x, size, self.weight)
        return F.layer_norm(x, size, self.weight)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.sizes = [n * shape.head_dim for n in (shape.heads, shape.kv_heads, shape.kv_heads)]
        self.inner = nn.Linear(shape.hidden, sum(self.sizes), bias=False)
        self.out = nn.Linear(self.sizes[0], shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size = (-1, self.shape.head_dim)
        parts = self.inner(x).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, size).transpose(1, 2) for part in parts)
        if self.shape.flash:
            grouped = self.shape.kv_heads != self.shape.heads
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gated, self.ffn = shape.gated, shape.ffn
        self.up = nn.Linear(shape.hidden, shape.ffn * (2 if shape.gated else 1), bias=False)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up(x)
        if self.gated:
            gate, up = wide.split(self.ffn, dim=-1)
            return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]
        return self.down(F.gelu(wide))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before_attention = _Norm(shape)
        self.attention = _Attention(shape)
        self.before_mlp = _Norm(shape)
        self.mlp = _MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Token numbers (batch, tokens) to logits (batch, tokens, vocabulary)."""

    def __init__(self, shape: Shape, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList([_Block(shape) for _ in range(layers)])
        self.norm = _Norm(shape)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits in the dtype of the computation."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens, in float32."""
    return fused_loss_fn(logits.float(), target)


def fused_loss_fn(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over all tokens, in one kernel that keeps the dtype of the logits."""
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())
