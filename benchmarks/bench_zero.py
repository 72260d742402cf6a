"""ZeRO-1 against ZeRO-2, predicted and measured by turns in the same processes.

    python benchmarks/bench_zero.py --rounds 60

Two ranks train `examples/llama.py` under both plans, a step of each by turns, so that whatever
else the host does meets both. Prints the 10th percentile and the median of their steps.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
MODES = (0, 1, 2, 3)
SKIPPED = 5  # the first rounds also allocate


def plan_and_emit(folder: Path, microbatch: int) -> dict[int, float]:
    """Writes a program per mode; predicted seconds of each."""
    import autopar
    from examples.llama import make

    predicted = {}
    for zero in MODES:
        made: dict[str, Any] = make()
        pin = {"pp": 1, "tp": 1, "dp": 2, "zero": zero, "recompute": "none",
               "microbatch_size": microbatch}  # fmt: skip
        plan = autopar.plan(made.pop("model"), 2, **made, cluster="cpu", precision="fp32", pin=pin)
        plan.emit(folder / f"zero_{zero}.py", model="examples.llama:make")
        predicted[zero] = plan.prediction.step_seconds
    return predicted


def work(folder: Path, rounds: int) -> None:
    """One rank: a step of each program by turns; rank 0 prints seconds by mode."""
    from examples.llama import batches, make
    from tests.multiprocess.programs import load_program

    trained = {}
    for zero in MODES:
        program = load_program(str(folder / f"zero_{zero}.py"))
        parallel = program.parallelize(make()["model"])
        trained[zero] = parallel, program.optimizer_for(parallel, 1e-3)
    seconds: dict[int, list[float]] = {zero: [] for zero in MODES}
    for number in range(rounds):
        for zero, (parallel, optimizer) in trained.items():
            inputs, target = batches(number, 4, parallel.dp_rank, parallel.dp_size)
            dist.barrier()
            start = time.perf_counter()
            parallel.forward_backward(inputs, target)
            parallel.clip_grad_norm_(1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds[zero].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        for zero, found in seconds.items():
            kept = sorted(found[SKIPPED:])
            print(zero, kept[len(kept) // 10], statistics.median(kept))
    dist.destroy_process_group()


def main() -> None:
    """Plans, starts the ranks, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--microbatch", type=int, default=2, help="samples, of 4 per rank")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        torch.set_num_threads(1)
        work(args.work, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        predicted = plan_and_emit(Path(folder), args.microbatch)
        command = ["torchrun", "--nproc-per-node", "2", __file__, "--work", folder,
                   "--rounds", str(args.rounds)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    print("zero  predicted  10th percentile  median (ms)")
    for line in done.stdout.splitlines():
        zero, low, median = line.split()
        own = predicted[int(zero)]
        print(f"{zero:4}  {1e3 * own:9.1f}  {1e3 * float(low):15.1f}  {1e3 * float(median):6.1f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
