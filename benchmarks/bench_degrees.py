"""Degrees that are not powers of two: 6 to 48 devices on nodes of 6, 8 and 12, and 35 stages.

    python benchmarks/bench_degrees.py [--only gpt2-124m]

Whole plans without pins for GPT-2 and Llama-3-8B, and Megatron-Turing NLG 530B (105 layers, 35
stages, Smith et al. 2022) with its stages pinned. Gap asked for: 1 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import gpt, llama, on_meta, tokens

DEVICES, NODES, SAMPLES = (6, 12, 24, 48), (6, 8, 12), 4
# Name -> model, length of a sample.
FREE: dict[str, tuple[Callable[[], Any], int]] = {
    "gpt2-124m": (lambda: gpt(12, 768, 12, 1024), 1024),
    "llama-3-8b": (lambda: llama(32, 4096, 32, 8, 14336, 4096), 4096),
}
DEEP = "mt-nlg-530b"
DEEP_DEVICES, DEEP_STAGES, DEEP_BATCH = (2240, 2800, 3360), 35, 1920


def cluster_of(base: str, node: int) -> Any:
    """The machine with another number of devices per node."""
    from autopar.cluster import Cluster

    variant = {
        "schema_version": 1, "extends": base, "name": f"{base}-nodes-of-{node}",
        "created": "2026-11-29", "description": f"{base} with {node} devices per node",
        "devices_per_node": node, "source": "vendor", "detail": "other nodes",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variant.json"
        path.write_text(json.dumps(variant), encoding="utf-8")
        return Cluster.load(str(path))


def row(name: str, model: Any, devices: int, length: int, node: int, **more: Any) -> None:
    """Plans, and prints what was chosen."""
    import autopar

    started = time.perf_counter()
    plan = autopar.plan(model, devices, tokens(length), **more)
    seconds, mesh = time.perf_counter() - started, plan.mesh
    blocks = [sum(layer.rpartition(".")[2].isdigit() for layer in s.layers) for s in plan.stages]
    print(f"| {name} | {devices} | {node} | {seconds:.1f} s | {100 * plan.solver.gap:.2f} % |"
          f" pp {mesh.pp} x dp {mesh.dp} x tp {mesh.tp}, micro-batch {plan.microbatch_size} x"
          f" {plan.num_microbatches}{f', blocks {blocks}' if mesh.pp > 1 else ''} |"
          f" {plan.prediction.step_seconds:.3g} s |", flush=True)  # fmt: skip


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*FREE, DEEP])
    args = parser.parse_args()
    for name, (build, length) in FREE.items():
        model = on_meta(build) if args.only in (None, name) else None
        for devices, node in itertools.product(DEVICES, NODES) if model else ():
            cluster = cluster_of("h100-80g", node)
            row(name, model, devices, length, node, cluster=cluster,
                global_batch_size=SAMPLES * devices)  # fmt: skip
    if args.only in (None, DEEP):
        model = on_meta(lambda: gpt(105, 20480, 128, 2048, 51200))
        for devices in DEEP_DEVICES:
            row(DEEP, model, devices, 2048, 8, cluster="a100-80g", global_batch_size=DEEP_BATCH,
                pin={"pp": DEEP_STAGES})  # fmt: skip


if __name__ == "__main__":
    main()
