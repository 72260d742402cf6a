"""Measures in fresh processes, so that nothing is cached between two runs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """What ``script --measure ARGUMENTS`` prints last, as JSON; ``{"error": ...}`` if it fails."""
    command = [sys.executable, script, "--measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"error": next((ln for ln in lines if "Error: " in ln), lines[-1])[:200]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def resident_gib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def decision(plan: Any) -> str:
    """The plan's decision in one line."""
    mesh = plan.mesh
    zero = sorted({layer.zero for layer in plan.layers})
    recompute = sorted({layer.recompute for layer in plan.layers})
    dp = f"{mesh.dp}" if mesh.dp_shard == mesh.dp else f"{mesh.dp // mesh.dp_shard}*{mesh.dp_shard}"
    return (
        f"pp {mesh.pp} x dp {dp} x tp {mesh.tp}, {plan.schedule}"
        f"{f' v={plan.virtual_stages}' if plan.virtual_stages > 1 else ''},"
        f" micro-batch {plan.microbatch_size} x {plan.num_microbatches},"
        f" zero {'/'.join(map(str, zero))}, recompute {'/'.join(recompute)}"
    )
