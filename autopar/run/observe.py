"""The part of one rank that looks into a few steps of a program: see ``observe_plan``.

It is started by torchrun in place of the program, and runs what its ``main`` would.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import profile

from autopar.run.live import PeakBytes
from autopar.run.load import import_program
from autopar.run.split import split

# The first step allocates the optimizer's state, so the second is the first that has its peak.
LIVE_STEPS, PROFILED_STEPS = 2, 3


def main() -> None:
    """Writes what rank 0 gathers to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--data")
    args = parser.parse_args()
    program = import_program(args.program)
    program.setup()
    mine = observe(program, args.workload, args.data)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    if dist.get_rank() == 0:
        args.out.write_text(json.dumps(ranks))
    dist.destroy_process_group()


def observe(program: ModuleType, workload: str, data: str | None) -> dict[str, float]:
    """Bytes of live tensors at the peak of a step, and the seconds of steps by kind."""
    torch.manual_seed(program.SEED)
    made = program.load(workload)()
    made = made if isinstance(made, dict) else vars(made)
    parallel = program.parallelize(made["model"])
    optimizer = program.optimizer_for(parallel, 0.0)
    batches = program.load(data) if data else program.example_batch(made)

    def steps(count: int) -> list[float]:
        options = Namespace(steps=count, clip=1.0, checkpoint=None, checkpoint_every=None)
        _, seconds = program.train(parallel, optimizer, batches, options)
        return list(seconds)

    peak = _live_peak(steps, program, parallel)
    with profile() as profiler:
        seconds = sum(steps(PROFILED_STEPS))
    found = split(profiler.events(), seconds)
    return {
        "live_bytes": peak,
        "computing_seconds": found.computing / PROFILED_STEPS,
        "communicating_seconds": found.communicating / PROFILED_STEPS,
        "rest_seconds": found.rest / PROFILED_STEPS,
    }


def _live_peak(steps: Callable[[int], object], program: Any, parallel: torch.nn.Module) -> int:
    """The allocator's peak on a GPU; on a CPU that of the tensors which operators made.

    What the program keeps in host memory counts on neither.
    """
    if torch.cuda.is_available():
        steps(LIVE_STEPS)
        return int(torch.cuda.max_memory_allocated())
    seen = PeakBytes([*parallel.parameters(), *parallel.buffers()])
    if hasattr(program, "host_like"):
        program.host_like = seen.elsewhere(program.host_like)
    with seen:
        steps(LIVE_STEPS)
    return int(seen.peak)


if __name__ == "__main__":
    main()
