"""Seconds of a whole ``autopar.plan``, trace included: medians over fresh processes.

    python benchmarks/bench_planning.py [--runs 3] [--only gpt2-124m]

Prints a table: the target, the median and the range of the wall-clock seconds of ``autopar.plan``
(imports and building the model excluded), the trace's share, the proven gap, the peak
resident memory and what was chosen. The trace alone is the baseline: planning can never be faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import CASES, on_meta
from benchmarks.processes import decision, in_fresh_process, resident_gib


def measure(name: str) -> dict[str, Any]:
    """One plan in this process."""
    import autopar
    from autopar import planner

    case = CASES[name]
    model, inputs = on_meta(case.build), case.inputs()
    traced = _timed(planner, "trace")
    started = time.perf_counter()
    plan = autopar.plan(model, case.devices, inputs, cluster=case.cluster,
                        global_batch_size=case.global_batch_size)  # fmt: skip
    return {
        "seconds": time.perf_counter() - started,
        "trace_seconds": sum(traced),
        "gap": plan.solver.gap,
        "status": plan.solver.status,
        "configurations": plan.solver.candidates,
        "step_seconds": plan.prediction.step_seconds,
        "mfu": plan.prediction.mfu,
        "decision": decision(plan),
        "resident_gib": resident_gib(),
    }


def _timed(module: Any, name: str) -> list[float]:
    """Makes ``module.name`` append its seconds to the list that is returned."""
    seconds: list[float] = []
    original = getattr(module, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = original(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(module, name, timed)
    return seconds


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    case = CASES[name]
    label = f"| {name} | {case.devices} {case.cluster} | {case.target_seconds:g} s |"
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        return f"{label} no plan: {errors[0]} | | | | |"
    seconds = [run["seconds"] for run in runs]
    share = statistics.median(run["trace_seconds"] for run in runs)
    return (
        f"{label} {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"
        f" | {share:.1f} s | {100 * runs[0]['gap']:.2f} %"
        f" | {max(run['resident_gib'] for run in runs):.2f} GiB"
        f" | {runs[0]['decision']}; {runs[0]['step_seconds']:.3g} s per step |"
    )


def main() -> None:
    """Each run in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    print("| model | devices | target | plan | trace of it | gap | resident | chosen |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [args.only] if args.only else CASES:
        print(row(name, [in_fresh_process(__file__, name) for _ in range(args.runs)]), flush=True)


if __name__ == "__main__":
    main()
