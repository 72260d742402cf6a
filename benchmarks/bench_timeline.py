"""The simulator against recorded pipelines: every action of real ranks, on 2 and 4 gloo ranks.

    python benchmarks/bench_timeline.py [--steps 8] [--json FILE]

Emitted programs run with stages that note when each forward and backward begins and ends. The
simulator gets the mean durations of each stage's actions, and the mean lags of actions behind
what they waited for: behind the neighbour's action, a transfer, or behind the rank's own last
one, which is the runtime's work and occupies the rank. It has to find how long the step's passes
took, from the first start to the last end on any rank. ``predicted`` is the same from the plan's
own durations. Run it on an idle host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import bench_accuracy

WARM_UP = 2
LAYERS, BATCH = 8, 16
CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("gpipe", 2, {"microbatch_size": 4}),
    ("1f1b", 2, {"microbatch_size": 4}),
    ("1f1b", 2, {"microbatch_size": 2}),
    ("interleaved_1f1b", 2, {"microbatch_size": 4, "virtual_stages": 2}),
    ("gpipe", 4, {"microbatch_size": 4}),
    ("1f1b", 4, {"microbatch_size": 2}),
    ("interleaved_1f1b", 4, {"microbatch_size": 4, "virtual_stages": 2}),
)
Record = tuple[str, int, int, float, float]  # kind, stage, micro-batch, start and end in seconds


def main() -> None:
    """Plans, records and compares; with ``--worker`` the part of one rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cluster", default="cpu")
    parser.add_argument("--json", type=Path, help="where to write every case")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        _record(args.worker, args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = [_case(*case, args, Path(folder) / str(i)) for i, case in enumerate(CASES)]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def _case(
    schedule: str, pp: int, pins: dict[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Plans one pipeline, records it and prints how far the simulation is off."""
    import autopar
    from autopar.run.launch import torchrun

    folder.mkdir()
    work = _workload()
    plan = autopar.plan(
        work["model"], pp, work["example_inputs"], work.get("loss_fn"),
        work.get("example_target"), cluster=args.cluster, global_batch_size=BATCH,
        precision="fp32", pin={"pp": pp, "dp": 1, "tp": 1, "schedule": schedule, **pins},
    )  # fmt: skip
    plan.emit(folder / "program.py", model="none:none")
    command = [__file__, "--worker", str(folder / "program.py"), "--steps", str(args.steps)]
    torchrun(command, pp, folder, 300.0)
    text = (folder / "recorded.json").read_text()
    steps = [[[tuple(r) for r in rank] for rank in step] for step in json.loads(text)]
    case = _compare(plan, schedule, steps)
    print(
        f"{schedule:17s} {pp} ranks, {plan.num_microbatches} x {plan.microbatch_size}:"
        f" recorded {1e3 * case['recorded']:6.1f} ms, simulated {1e3 * case['simulated']:6.1f}"
        f" ({100 * (case['simulated'] / case['recorded'] - 1):+.1f} %),"
        f" predicted {1e3 * case['predicted']:6.1f}"
        f" ({100 * (case['predicted'] / case['recorded'] - 1):+.1f} %);"
        f" transfers {1e3 * case['transfer']:.2f} ms, between actions {1e3 * case['between']:.2f}",
        flush=True,
    )
    return case


def _workload() -> dict[str, Any]:
    torch.manual_seed(0)
    return bench_accuracy._gpt(n_layer=LAYERS)


def _compare(plan: Any, schedule: str, steps: list[list[list[Record]]]) -> dict[str, Any]:
    """Recorded passes of the median step, and the simulator's from its own mean durations."""
    from autopar.cost.simulator import simulate

    flat = [[record for rank in step for record in rank] for step in steps]
    spans = [max(r[4] for r in step) - min(r[3] for r in step) for step in flat]
    middle = spans.index(statistics.median_low(spans))
    stages = len(plan.stages)
    transfer, between = _lags(steps[middle])
    forward, backward = (
        [_mean(flat[middle], kind, stage) + between for stage in range(stages)] for kind in "FB"
    )

    def makespan(forward: list[float], backward: list[float], wire: float) -> float:
        return simulate(
            schedule, forward, backward, wire, wire, plan.num_microbatches,
            virtual_stages=stages // plan.mesh.pp,
        ).makespan  # fmt: skip

    each = [stage.prediction for stage in plan.stages]
    priced = [p.forward_seconds for p in each], [p.backward_seconds for p in each]
    return {
        "schedule": schedule, "ranks": plan.mesh.pp, "num_microbatches": plan.num_microbatches,
        "recorded": spans[middle], "simulated": makespan(forward, backward, transfer),
        "transfer": transfer, "between": between,
        "predicted": makespan(*priced, plan.stages[0].prediction.p2p_seconds / 2),
    }  # fmt: skip


def _lags(step: list[list[Record]]) -> tuple[float, float]:
    """Mean seconds behind the action of another rank, and behind the rank's own last action."""
    ends = {record[:3]: record[4] for rank in step for record in rank}
    transfers, own = [0.0], [0.0]
    for rank in step:
        for (*_, ended), (kind, stage, number, start, _) in pairwise(rank):
            source = (kind, stage - 1 if kind == "F" else stage + 1, number)
            arrived = ends.get(source, 0.0)
            (transfers if arrived > ended else own).append(start - max(arrived, ended))
    return statistics.fmean(transfers[1:] or transfers), statistics.fmean(own[1:] or own)


def _mean(step: list[Record], kind: str, stage: int) -> float:
    return statistics.fmean(r[4] - r[3] for r in step if r[:2] == (kind, stage))


def _record(path: Path, steps: int) -> None:
    """One rank: trains, and notes each action by the clock that all ranks of a host share."""
    program = bench_accuracy._load(path)
    records: list[Record] = []

    @contextmanager
    def noted(kind: str, stage: int, number: int) -> Iterator[None]:
        start = time.monotonic()
        yield
        records.append((kind, stage, number, start, time.monotonic()))

    class Noting(program.PipelineStage):  # type: ignore[misc, name-defined]
        """A stage that notes its passes."""

        def forward_one_chunk(self, number: int, *args: Any, **kwargs: Any) -> Any:
            with noted("F", self.stage_index, number):
                return super().forward_one_chunk(number, *args, **kwargs)

        def backward_one_chunk(self, number: int, *args: Any, **kwargs: Any) -> Any:
            with noted("B", self.stage_index, number):
                return super().backward_one_chunk(number, *args, **kwargs)

    program.PipelineStage = Noting
    program.setup()
    torch.manual_seed(program.SEED)
    made = _workload()
    parallel = program.parallelize(made["model"])
    inputs, target = program.example_batch(made)(0, BATCH, 0, 1)
    found = []
    for number in range(WARM_UP + steps):
        records.clear()
        torch.distributed.barrier()
        parallel.forward_backward(inputs, target)
        for parameter in parallel.parameters():
            parameter.grad = None
        everything: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everything, records)
        if number >= WARM_UP:
            found.append(everything)
    if torch.distributed.get_rank() == 0:
        path.with_name("recorded.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
