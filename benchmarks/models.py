"""The published models that the benchmarks plan, on ``meta``, with their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model on a cluster.

    ``global_batch_size`` None leaves autopar's default; ``target_seconds`` is what a whole plan
    may take on 2 cores.
    """

    build: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    devices: int
    cluster: str
    global_batch_size: int | None = None
    target_seconds: float = 0.0


def on_meta(build: Callable[[], Any]) -> Any:
    """The model without its weights."""
    import torch

    with torch.device("meta"):
        return build()


def tokens(length: int, samples: int = 2, *, decoder: bool = False) -> dict[str, Any]:
    """Input ids that are labels as well, and what a decoder reads."""
    import torch

    ids = torch.zeros(samples, length, dtype=torch.long, device="meta")
    found = {"input_ids": ids, "labels": ids}
    return found | {"decoder_input_ids": ids} if decoder else found


def gpt(layers: int, hidden: int, heads: int, length: int, vocabulary: int = 50257) -> Any:
    """GPT-2's architecture, which is also GPT-3's and that of Megatron's models."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_layer=layers, n_embd=hidden, n_head=heads, n_positions=length,
                   vocab_size=vocabulary)
    )  # fmt: skip


def llama(layers: int, hidden: int, heads: int, kv_heads: int, inner: int, length: int) -> Any:
    """Llama 3."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                    num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=128256,
                    max_position_embeddings=length)
    )  # fmt: skip


def t5_11b() -> Any:
    """T5-11B (Raffel et al. 2020): 24 + 24 layers."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(d_model=1024, d_kv=128, num_heads=128, d_ff=65536, vocab_size=32128,
                 num_layers=24, num_decoder_layers=24, decoder_start_token_id=0)
    )  # fmt: skip


CASES = {
    "gpt2-124m": Case(lambda: gpt(12, 768, 12, 1024), lambda: tokens(1024, 8), 8,
                      "h100-80g", None, 3.0),
    "llama-3-8b": Case(lambda: llama(32, 4096, 32, 8, 14336, 8192), lambda: tokens(8192), 64,
                       "h100-80g", None, 5.0),
    "gpt-3-175b": Case(lambda: gpt(96, 12288, 96, 2048), lambda: tokens(2048), 1024,
                       "a100-80g", 1536, 15.0),
    "llama-3.1-405b": Case(lambda: llama(126, 16384, 128, 8, 53248, 8192), lambda: tokens(8192),
                           16384, "h100-80g", 2048, 30.0),
    "t5-11b": Case(t5_11b, lambda: tokens(512, decoder=True), 256, "h100-80g", 2048, 20.0),
}  # fmt: skip
