"""Bytes of live tensors beside the plan's, where activations are most of them, on one CPU rank.

    python benchmarks/bench_memory.py [--models llama gpt2-eager] [--tokens 512]

Four blocks of width 64 on 4 samples, micro-batches of 2, without and with recomputation: one line
each, then the mean and the extremes. The tests' models are too small to tell activations from
parameters.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import autopar
from autopar.run.live import PeakBytes
from tests.multiprocess.programs import load_program
from tests.multiprocess.test_fidelity import these_cpus

SAMPLES, MICROBATCH, VOCABULARY, WIDTH, LAYERS, HEADS = 4, 2, 64, 64, 4, 4


def llama(tokens: int) -> nn.Module:
    """Root-mean-square norms, rotary positions, gated products."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=176, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=tokens, use_cache=False,
    ))  # fmt: skip


def gpt2(tokens: int, attention: str = "sdpa") -> nn.Module:
    """Layer norms and GELU, without dropout."""
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=tokens,
        use_cache=False, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=0,
        eos_token_id=0, attn_implementation=attention,
    ))  # fmt: skip


def bert(tokens: int) -> nn.Module:
    """Attention written out, in both directions."""
    return BertForMaskedLM(BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=4 * WIDTH, max_position_embeddings=tokens,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
    ))  # fmt: skip


def t5(tokens: int) -> nn.Module:
    """Two trunks; position biases with gradients, for which CPUs have no fused attention."""
    return T5ForConditionalGeneration(T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=2,
        num_heads=HEADS, dropout_rate=0.0, decoder_start_token_id=0, use_cache=False,
    ))  # fmt: skip


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "llama": llama,
    "gpt2": gpt2,
    "gpt2-eager": lambda tokens: gpt2(tokens, "eager"),
    "bert-eager": bert,
    "t5": t5,
}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    print("| model | recompute | held | planned | planned / held |\n|---|---|---|---|---|")
    ratios = []
    for name in arguments.models:
        for mode in ("none", "selective", "full"):
            held, planned = measure(MODELS[name](arguments.tokens), mode, arguments.tokens)
            ratios.append(planned / held)
            print(f"| {name} | {mode} | {held / 2**20:.1f} MiB | {planned / 2**20:.1f} MiB"
                  f" | {ratios[-1]:.3f} |", flush=True)  # fmt: skip
    print(f"mean {statistics.mean(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


def measure(model: nn.Module, mode: str, tokens: int) -> tuple[int, int]:
    """Bytes that two steps held at most, and the plan's."""
    ids = torch.randint(0, VOCABULARY, (SAMPLES, tokens))
    inputs: Any = {"input_ids": ids, "labels": ids}
    plan = autopar.plan(
        model, 1, inputs, cluster=these_cpus(), global_batch_size=SAMPLES, precision="fp32",
        pin={"recompute": mode, "microbatch_size": MICROBATCH},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "program.py")
        plan.emit(path, model="benchmarks:none")
        program = load_program(path)
        parallel = program.parallelize(copy.deepcopy(model))
        optimizer = program.optimizer_for(parallel, 1e-3)
        memory = PeakBytes([*parallel.parameters(), *parallel.buffers()])
        for _ in range(2):
            with memory:
                parallel.forward_backward(inputs)
                optimizer.step()
                optimizer.zero_grad()
    return memory.peak, plan.rank_memory(0).live


if __name__ == "__main__":
    main()
