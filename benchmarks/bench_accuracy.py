"""Predicted against measured step time of the example GPT on local gloo ranks.

    python benchmarks/bench_accuracy.py [--steps 20] [--cluster cpu]

Every plan is pinned, emitted and trained; the 10th percentile of its steps is compared, because
the median of a step drifts by 15 % on a shared host. Prints one line per plan, then the median
of the absolute relative errors. Run it on an idle host.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
PLANS: list[dict[str, Any]] = [
    {"pp": 1, "dp": 1, "tp": 1, "microbatch_size": 4},
    {"pp": 1, "dp": 1, "tp": 1, "microbatch_size": 16},
    {"pp": 1, "dp": 1, "tp": 1, "microbatch_size": 16, "recompute": "full"},
    {"pp": 1, "dp": 2, "tp": 1, "zero": 0, "microbatch_size": 8},
    {"pp": 1, "dp": 2, "tp": 1, "zero": 2, "microbatch_size": 8},
    {"pp": 1, "dp": 2, "tp": 1, "zero": 3, "microbatch_size": 8},
    {"pp": 1, "dp": 2, "tp": 1, "zero": 0, "microbatch_size": 2},
    {"pp": 1, "dp": 1, "tp": 2, "sequence_parallel": False, "microbatch_size": 16},
    {"pp": 1, "dp": 1, "tp": 2, "sequence_parallel": True, "microbatch_size": 16},
    {"pp": 2, "dp": 1, "tp": 1, "microbatch_size": 4, "schedule": "1f1b"},
    {"pp": 2, "dp": 1, "tp": 1, "microbatch_size": 4, "schedule": "gpipe"},
]


def main() -> None:
    """Plans, runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cluster", default="cpu")
    args = parser.parse_args()
    os.chdir(EXAMPLES)
    sys.path.insert(0, str(EXAMPLES))
    import gpt

    import autopar
    from autopar.run.launch import run_plan

    errors = []
    for pins in PLANS:
        work = gpt.make()
        world = pins["pp"] * pins["dp"] * pins["tp"]
        plan = autopar.plan(
            work["model"],
            world,
            work["example_inputs"],
            work["loss_fn"],
            work["example_target"],
            cluster=args.cluster,
            global_batch_size=16,
            precision="fp32",
            pin=pins,
        )
        result = run_plan(plan, workload="gpt:make", steps=args.steps, data="gpt:batches")
        predicted, measured = plan.prediction.step_seconds, result.tenth_percentile_seconds
        errors.append(predicted / measured - 1)
        print(
            f"predicted {1e3 * predicted:7.1f} ms  measured {1e3 * measured:7.1f} ms (10th pct)"
            f" {1e3 * result.median_seconds:7.1f} ms (median)  error {100 * errors[-1]:+5.0f} %"
            f"  {pins}",
            flush=True,
        )
    print(f"median absolute error {100 * statistics.median(map(abs, errors)):.0f} %")


if __name__ == "__main__":
    main()
