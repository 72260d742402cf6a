"""Three small models, traced once: the example GPT, Hugging Face's GPT-2 and Llama."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from autopar.graph import Graph
from autopar.strategies.patterns import ENDS, Classes, find_classes, reduce
from autopar.trace import trace
from examples.gpt import GPT, GPTConfig, loss_fn

TOKENS, CHANNELS, HEADS, VOCABULARY = 16, 32, 4, 64
NAMES = ("gpt", "gpt2", "llama")


def tokens() -> torch.Tensor:
    return torch.arange(2 * TOKENS).reshape(2, TOKENS) % VOCABULARY


def gpt(layers: int = 2) -> GPT:
    return GPT(GPTConfig(VOCABULARY, TOKENS, layers, HEADS, CHANNELS))


def gpt2(layers: int = 2) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=CHANNELS, n_layer=layers, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def llama(layers: int = 2) -> nn.Module:
    """Two heads of keys and values for four of queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=CHANNELS, intermediate_size=48,
        num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=2,
        max_position_embeddings=2 * TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config)


MODELS = {"gpt": gpt, "gpt2": gpt2, "llama": llama}


def call(name: str) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """(args, kwargs, further arguments of ``trace``) for a model."""
    if name == "gpt":
        return (tokens(),), {}, {"target": tokens(), "loss_fn": loss_fn}
    return (), {"input_ids": tokens(), "labels": tokens()}, {}


@cache
def traced(name: str, layers: int = 2) -> Graph:
    with torch.device("meta"):
        model = MODELS[name](layers)
    args, kwargs, more = call(name)
    return trace(model, args, kwargs, **more)


@cache
def reduced(name: str, layers: int = 2) -> tuple[Graph, Classes]:
    """One layer of each class."""
    graph = traced(name, layers)
    return reduce(graph, find_classes(graph))


def block_of(name: str) -> str:
    """The name of the pattern of the model's blocks."""
    return next(key for key in reduced(name)[1].patterns if key != ENDS)
