"""Blocks that are causal without a mask are called without one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from autopar.graph import Ref
from autopar.trace.trace import trace

T, C, HEADS = 8, 16, 2


class Block(nn.Module):
    """Attention, told by ``how`` what to do without a mask."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x, mask=None):
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2)
                   for t in self.qkv(self.norm(x)).chunk(3, 2))  # fmt: skip
        told = {}
        if mask is not None:
            told = {"attn_mask": mask[:, :, :, :T] if self.how == "sliced" else mask}
        elif self.how != "full":
            told = {"is_causal": True}
        if mask is None and self.how == "scaled":
            told["scale"] = 0.5
        y = F.scaled_dot_product_attention(q, k, v, **told)
        if self.how == "in place":
            y.mul_(1.0)
        if mask is None and self.how == "more":
            y = y + 1
        return x + self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, how: str, diagonal: int = 0) -> None:
        super().__init__()
        self.diagonal = diagonal
        self.embedding = nn.Embedding(16, C)
        self.blocks = nn.ModuleList(Block(how) for _ in range(5))

    def forward(self, ids):
        x = self.embedding(ids)
        mask = torch.ones(T, T, dtype=torch.bool, device=ids.device)
        mask = mask.tril(self.diagonal).expand(1, 1, T, T)
        for block in self.blocks:
            x = block(x, mask)
        return x.mean((1, 2))


def traced(model):
    ids = torch.zeros(2, T, dtype=torch.long)
    return trace(model, (ids,), {}, target=torch.zeros(2), loss_fn=lambda y, t: (y * y).mean())


@pytest.mark.parametrize("how", ["causal", "sliced"])
def test_blocks_that_are_causal_without_a_mask_get_none(how):
    graph = traced(Model(how))
    assert all(graph.calls[f"blocks.{i}"].args[1] is None for i in range(5))
    assert not any("tril" in op.target for op in graph.ops)
    attention = [op for op in graph.ops if "attention" in op.target]
    assert all(op.kwargs["is_causal"] for op in attention)


@pytest.mark.parametrize("how", ["full", "scaled", "more", "in place"])
def test_blocks_that_do_something_else_without_a_mask_keep_it(how):
    graph = traced(Model(how))
    assert all(isinstance(graph.calls[f"blocks.{i}"].args[1], Ref) for i in range(5))


def test_other_masks_stay():
    graph = traced(Model("causal", diagonal=1))
    assert isinstance(graph.calls["blocks.0"].args[1], Ref)


GPT2 = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=32)
LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=5,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip


@pytest.mark.parametrize("model", [GPT2LMHeadModel(GPT2), LlamaForCausalLM(LLAMA)])
def test_hugging_face_decoders_ask_attention_to_be_causal(model):
    """Grouped queries too, whose keys are repeated for a mask and shared without one."""
    ids = torch.zeros(2, T, dtype=torch.long)
    graph = trace(model, (), {"input_ids": ids, "labels": ids})
    masks = {name for name, value in graph.values.items() if value.dtype == "bool"}
    for layer in graph.layers:
        if layer.kind == "block":
            call = graph.calls[layer.name]
            passed = [*call.args, *call.kwargs.values()]
            assert not masks.intersection(p.name for p in passed if isinstance(p, Ref))
