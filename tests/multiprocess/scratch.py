"""Models as people write them from scratch: minGPT, Llama 2, mixtures of experts."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.multiprocess.case import LAYERS, TOKENS, VOCABULARY, Case

WIDTH, HEADS, EXPERTS = 32, 4, 4


class MaskedAttention(nn.Module):
    """minGPT's: scores, a mask from a buffer, softmax and a product, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.0), nn.Dropout(0.0)
        mask = torch.tril(torch.ones(TOKENS, TOKENS))
        self.register_buffer("bias", mask.view(1, 1, TOKENS, TOKENS))

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.size()
        q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        k = k.view(samples, tokens, HEADS, width // HEADS).transpose(1, 2)
        q = q.view(samples, tokens, HEADS, width // HEADS).transpose(1, 2)
        v = v.view(samples, tokens, HEADS, width // HEADS).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :tokens, :tokens] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        y = y.transpose(1, 2).contiguous().view(samples, tokens, width)
        return self.resid_dropout(self.c_proj(y))


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        cubic = x + 0.044715 * torch.pow(x, 3.0)
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * cubic))


class MinBlock(nn.Module):
    """minGPT's block, whose MLP is a dict of modules and a lambda."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = (
            nn.LayerNorm(WIDTH),
            MaskedAttention(),
            nn.LayerNorm(WIDTH),
        )
        self.mlp = nn.ModuleDict({
            "c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH),
            "act": NewGELU(), "dropout": nn.Dropout(0.0),
        })  # fmt: skip

    def mlpf(self, x: Tensor) -> Tensor:
        m = self.mlp
        return m["dropout"](m["c_proj"](m["act"](m["c_fc"](x))))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlpf(self.ln_2(x))


class MinGPT(nn.Module):
    """Returns (logits, loss), as minGPT does."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(VOCABULARY, WIDTH), "wpe": nn.Embedding(TOKENS, WIDTH),
            "drop": nn.Dropout(0.0), "h": nn.ModuleList([MinBlock() for _ in range(LAYERS)]),
            "ln_f": nn.LayerNorm(WIDTH),
        })  # fmt: skip
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        positions = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device).unsqueeze(0)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        flat = logits.view(-1, logits.size(-1))
        return logits, F.cross_entropy(flat, targets.view(-1), ignore_index=-1)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)
        return norm.type_as(x) * self.weight


def rotated(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotary positions as complex numbers, as Meta's code has them."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freqs[None, :, None, :]).flatten(3).type_as(x)


class LlamaBlock(nn.Module):
    """Llama 2's block: grouped queries, rotary positions, SwiGLU or a mixture of experts."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.wq, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))
        self.attention_norm, self.ffn_norm = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.feed_forward = feed_forward

    def attention(self, x: Tensor, freqs: Tensor, mask: Tensor) -> Tensor:
        samples, tokens, _ = x.shape
        q = rotated(self.wq(x).view(samples, tokens, HEADS, -1), freqs).transpose(1, 2)
        k = rotated(self.wk(x).view(samples, tokens, HEADS // 2, -1), freqs)
        v = self.wv(x).view(samples, tokens, HEADS // 2, -1)
        k, v = (torch.repeat_interleave(y, 2, dim=2).transpose(1, 2) for y in (k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + mask
        output = F.softmax(scores.float(), dim=-1).type_as(q) @ v
        return self.wo(output.transpose(1, 2).contiguous().view(samples, tokens, -1))

    def forward(self, x: Tensor, freqs: Tensor, mask: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class SwiGLU(nn.Module):
    def __init__(self, inner: int = 64) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class DenseExperts(nn.Module):
    """Every expert sees every token; a product over stacked weights, weighted by the router."""

    def __init__(self, inner: int = 24) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH, inner))
        self.down = nn.Parameter(0.2 * torch.randn(EXPERTS, inner, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        dense = torch.zeros_like(self.gate(x)).scatter(-1, chosen, weights)
        hidden = F.gelu(torch.einsum("btd,edi->btei", x, self.up))
        made = torch.einsum("btei,eid->bted", hidden, self.down)
        return torch.einsum("bte,bted->btd", dense, made)


class SortedExperts(nn.Module):
    """Tokens sorted by expert, each times the matrix of its expert.

    The experts leave the first column alone: no degree divides their odd widths.
    """

    def __init__(self, inner: int = 25) -> None:
        import transformers.integrations.moe  # noqa: F401  registers the operator

        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH - 1, inner))
        self.down = nn.Parameter(0.2 * torch.randn(EXPERTS, inner, WIDTH - 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights, chosen = self.gate(rows).softmax(-1).topk(2)
        expert = chosen.flatten()
        order = expert.argsort()
        ends = (expert.unsqueeze(-1) == torch.arange(EXPERTS, device=x.device)).sum(0).cumsum(0)
        grouped = torch.ops.transformers.grouped_mm_fallback
        hidden = F.silu(grouped(rows[order // 2, 1:], self.up, ends))
        made = grouped(hidden, self.down, ends) * weights.flatten()[order].unsqueeze(-1)
        mixed = made[order.argsort()].view(-1, 2, WIDTH - 1).sum(1)
        return F.pad(mixed, (1, 0)).view_as(x)


class LoopedExperts(nn.Module):
    """A loop over the experts, each of which sees every token, under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList([SwiGLU(24) for _ in range(EXPERTS)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.gate(x), 2)
        weights = F.softmax(weights, dim=-1, dtype=torch.float).to(x.dtype)
        results = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = torch.where(chosen == i, weights, 0.0).sum(-1, keepdim=True)
            results += share * expert(x)
        return results


class RoutedExperts(LoopedExperts):
    """As Mistral published it: each expert sees the tokens that were sent to it, however many."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(-1, x.shape[-1])
        weights, chosen = torch.topk(self.gate(rows), 2)
        weights = F.softmax(weights, dim=1, dtype=torch.float).to(rows.dtype)
        results = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            index, nth = torch.where(chosen == i)
            results[index] += weights[index, nth, None] * expert(rows[index])
        return results.view_as(x)


class Llama2(nn.Module):
    def __init__(self, feed_forward: Any = SwiGLU) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([LlamaBlock(feed_forward()) for _ in range(LAYERS)])
        self.norm = RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, WIDTH // HEADS, 2).float() / 8))
        angles = torch.outer(torch.arange(TOKENS).float(), frequencies)
        self.register_buffer("freqs", torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        freqs = self.freqs[: tokens.shape[1]]
        mask = torch.full((1, 1, tokens.shape[1], tokens.shape[1]), float("-inf"), device=h.device)
        mask = torch.triu(mask, diagonal=1).type_as(h)
        for layer in self.layers:
            h = layer(h, freqs, mask)
        return self.output(self.norm(h)).float()


def next_tokens(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Tokens, and those that follow."""
    tokens = torch.randint(VOCABULARY, (samples, TOKENS + 1), generator=generator)
    return (tokens[:, :-1],), tokens[:, 1:]


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def returned_loss(output: tuple[Tensor, Tensor], target: Any) -> Tensor:
    return output[1]


def both(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Tokens and targets are arguments of the model; the loss function picks its result."""
    (tokens,), targets = next_tokens(generator, samples)
    return (tokens, targets.contiguous()), tokens


CASES = {
    "mingpt": Case(MinGPT, both, returned_loss),
    "llama2": Case(Llama2, next_tokens, token_loss),
    "moe-dense": Case(partial(Llama2, DenseExperts), next_tokens, token_loss),
    "moe-odd": Case(partial(Llama2, partial(DenseExperts, 25)), next_tokens, token_loss),
    "moe-sorted": Case(partial(Llama2, SortedExperts), next_tokens, token_loss),
    "moe-loop": Case(partial(Llama2, LoopedExperts), next_tokens, token_loss),
    "moe-routed": Case(partial(Llama2, RoutedExperts), next_tokens, token_loss),
}
