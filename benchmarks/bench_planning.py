"""Seconds of a whole ``autopar.plan``, trace included: medians over fresh processes.

    python benchmarks/bench_planning.py [--runs 3] [--only gpt2-124m]

Prints for each model the median and the range of the wall-clock seconds of ``autopar.plan``
(imports excluded), the share of the trace, what was chosen, and the peak resident memory.
The trace alone is the baseline: planning can never be faster.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "gpt2-124m": {"devices": 8, "tokens": 1024, "samples": 8},
    "llama-3-8b": {"devices": 64, "tokens": 8192, "samples": 2},
}


def build(name: str) -> Any:
    """The model on meta."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        if name == "gpt2-124m":
            return GPT2LMHeadModel(GPT2Config())
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                vocab_size=128256,
                max_position_embeddings=8192,
            )
        )


def measure(name: str) -> dict[str, Any]:
    """One plan in this process."""
    import torch

    import autopar
    from autopar.trace import trace

    case = CASES[name]
    model = build(name)
    tokens = torch.zeros(case["samples"], case["tokens"], dtype=torch.long, device="meta")
    inputs = {"input_ids": tokens, "labels": tokens}
    started = time.perf_counter()
    plan = autopar.plan(model, case["devices"], inputs, cluster="h100-80g")
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    trace(model, (), inputs, precision="bf16")
    mesh = plan.mesh
    return {
        "seconds": seconds,
        "trace_seconds": time.perf_counter() - started,
        "gap": plan.solver.gap,
        "chosen": f"pp={mesh.pp} dp={mesh.dp} tp={mesh.tp} micro-batch={plan.microbatch_size}",
        "resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Each run in a process of its own, so that nothing is cached between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    for name in [args.only] if args.only else CASES:
        runs = []
        for _ in range(args.runs):
            command = [sys.executable, __file__, "--measure", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.splitlines()[-1]))
        seconds = [run["seconds"] for run in runs]
        trace_seconds = statistics.median(run["trace_seconds"] for run in runs)
        print(
            f"{name} on {CASES[name]['devices']} devices: median {statistics.median(seconds):.2f} s"
            f" (min {min(seconds):.2f}, max {max(seconds):.2f}), trace alone {trace_seconds:.2f} s,"
            f" ratio {statistics.median(seconds) / trace_seconds:.2f};"
            f" gap {100 * runs[0]['gap']:.3f} %, {runs[0]['chosen']},"
            f" {max(run['resident_gib'] for run in runs):.2f} GiB resident",
            flush=True,
        )


if __name__ == "__main__":
    main()
