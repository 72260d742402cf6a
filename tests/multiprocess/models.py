"""The models that emitted programs are compared on, small and with dropout off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY, TOKENS, LAYERS, SAMPLES = 128, 16, 3, 8


def make_gpt() -> nn.Module:
    from examples.gpt import GPT, GPTConfig

    return GPT(GPTConfig(VOCABULARY, TOKENS, LAYERS, n_head=4, n_embd=32))


def make_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    config = GPT2Config(
        n_layer=LAYERS, n_head=4, n_embd=32, vocab_size=VOCABULARY, n_positions=TOKENS,
        bos_token_id=0, eos_token_id=0, **dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=TOKENS,
    )  # fmt: skip
    return LlamaForCausalLM(config)


MAKERS = {"gpt": make_gpt, "gpt2": make_gpt2, "llama": make_llama}


def build(name: str) -> nn.Module:
    """The same model on every rank. Norms and biases are off their start, so that they count."""
    torch.manual_seed(7)
    model = MAKERS[name]()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def batch(name: str, step: int, samples: int = SAMPLES) -> tuple[Any, Tensor | None]:
    """(inputs, target) of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (samples, TOKENS + 1), generator=generator)
    if name == "gpt":
        return (tokens[:, :-1],), tokens[:, 1:]
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, :-1]}, None


def loss_fn(name: str) -> Any:
    """The user's loss function, None where the model returns its loss."""
    if name != "gpt":
        return None
    from examples.gpt import loss_fn as function

    return function


def loss_of(name: str, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
    """The loss on one device."""
    function = loss_fn(name)
    return function(model(*inputs), target) if function else model(**inputs).loss
