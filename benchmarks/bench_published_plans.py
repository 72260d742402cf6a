"""What autopar chooses for published models and clusters, beside what was run there.

    python benchmarks/bench_published_plans.py [--only 3.6b] [--time-limit 60]

Both columns of predicted seconds are prices of our own model on the published cost models of
A100 and H100: they say how the two plans compare, not how long the published run took. What that
run took is in the last column, computed from the published throughput.

Sources of the rows:

- Megatron: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
  Megatron-LM", SC 2021, table 1 (layers, hidden, heads, tensor and pipeline parallel size, GPUs,
  batch, achieved teraFLOP/s per GPU) and equation 3 (FLOPs of a step, recomputation included);
  sequence length 2,048, vocabulary 51,200. They recompute all activations and replicate the
  state; the micro-batch is not in the table, so the solver chooses it, and the schedule.
- Llama 3: Llama team, "The Llama 3 Herd of Models", 2024, table 4 (rows without context
  parallelism) and section 3.3.2: tp 8, pp 16, dp 64 or 128, FSDP that keeps parameters between
  forward and backward (zero 2). Micro-batch, schedule and recomputation are left to the solver.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import gpt, llama, on_meta, tokens
from benchmarks.processes import decision, in_fresh_process

MEGATRON_LENGTH, MEGATRON_VOCABULARY = 2048, 51200


@dataclass(frozen=True)
class Run:
    """A published run: model, devices, its plan as pins, and the seconds of a step."""

    build: Callable[[], Any]
    length: int
    devices: int
    cluster: str
    batch: int
    pins: dict[str, Any]
    published_seconds: float


def megatron(layers: int, hidden: int, heads: int, tp: int, pp: int, devices: int, batch: int,
             teraflops: float) -> Run:  # fmt: skip
    """A row of table 1; equation 3 gives the FLOPs of a step."""
    s, v = MEGATRON_LENGTH, MEGATRON_VOCABULARY
    ratio = 1 + s / (6 * hidden) + v / (16 * layers * hidden)
    flops = 96 * batch * s * layers * hidden**2 * ratio
    pins = {"pp": pp, "dp": devices // (tp * pp), "tp": tp, "zero": 0, "recompute": "full"}
    return Run(
        lambda: gpt(layers, hidden, heads, s, v), s, devices, "a100-80g", batch, pins,
        flops / (teraflops * 1e12 * devices),
    )  # fmt: skip


def llama_405b(dp: int, teraflops: float) -> Run:
    """A row of table 4: 16 M tokens a step; 6 FLOPs per parameter and token."""
    devices, batch = 8 * 16 * dp, 2048
    flops = 6 * 405e9 * batch * 8192
    return Run(
        lambda: llama(126, 16384, 128, 8, 53248, 8192), 8192, devices, "h100-80g", batch,
        {"pp": 16, "dp": dp, "tp": 8, "zero": 2}, flops / (teraflops * 1e12 * devices),
    )  # fmt: skip


RUNS = {
    "1.7b": megatron(24, 2304, 24, 1, 1, 32, 512, 137),
    "3.6b": megatron(30, 3072, 32, 2, 1, 64, 512, 138),
    "7.5b": megatron(36, 4096, 32, 4, 1, 128, 512, 142),
    "18b": megatron(40, 6144, 48, 8, 1, 256, 1024, 135),
    "39b": megatron(48, 8192, 64, 8, 2, 512, 1536, 138),
    "76b": megatron(60, 10240, 80, 8, 4, 1024, 1792, 140),
    "145b": megatron(80, 12288, 96, 8, 8, 1536, 2304, 148),
    "310b": megatron(96, 16384, 128, 8, 16, 1920, 2160, 155),
    "530b": megatron(105, 20480, 128, 8, 35, 2520, 2520, 163),
    "1t": megatron(128, 25600, 160, 8, 64, 3072, 3072, 163),
    "llama-405b-8k": llama_405b(64, 430),
    "llama-405b-16k": llama_405b(128, 400),
}


def measure(name: str, pinned: bool, time_limit: float) -> dict[str, Any]:
    """One plan, free or as published."""
    import autopar

    run = RUNS[name]
    plan = autopar.plan(
        on_meta(run.build), run.devices, tokens(run.length), cluster=run.cluster,
        global_batch_size=run.batch, pin=run.pins if pinned else None, time_limit=time_limit,
    )  # fmt: skip
    return {
        "decision": decision(plan),
        "seconds": plan.prediction.step_seconds,
        "gap": plan.solver.gap,
        "memory": plan.prediction.memory_bytes / 2**30,
    }


def cell(found: dict[str, Any]) -> str:
    """Decision, seconds, memory and gap in one cell."""
    if "error" in found:
        return f"no plan: {found['error']}"
    gap = f", gap {100 * found['gap']:.1f} %" if found["gap"] > 0.01 else ""
    return f"{found['decision']}: **{found['seconds']:.3g} s**, {found['memory']:.0f} GiB{gap}"


def row(name: str, time_limit: float) -> str:
    """One line of the table: ours, theirs, and the ratio of both predictions."""
    free, pinned = (
        in_fresh_process(__file__, name, kind, str(time_limit)) for kind in ("free", "pinned")
    )
    both = "seconds" in free and "seconds" in pinned
    ratio = f"{pinned['seconds'] / free['seconds']:.2f}" if both else ""
    run = RUNS[name]
    return (
        f"| {name}, {run.devices:,} {run.cluster[:4]}, batch {run.batch:,} | {cell(free)}"
        f" | {cell(pinned)} | {ratio} | {run.published_seconds:.3g} s |"
    )


def main() -> None:
    """Every row in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, kind, limit = args.measure
        print(json.dumps(measure(name, kind == "pinned", float(limit))))
        return
    print("| run | autopar chooses | published plan, priced by us | ratio | published |")
    print("|---|---|---|---|---|")
    for name in [args.only] if args.only else RUNS:
        print(row(name, args.time_limit), flush=True)


if __name__ == "__main__":
    main()
