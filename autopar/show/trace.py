"""The simulated step of a plan as a trace that timeline viewers open (Perfetto, chrome://tracing).

One row per position along the pipeline, whose ranks all do the same: passes, exposed
communication over dp and the optimizer; arrows are transfers between stages. Beside each row
stands its memory over time, by kind.

Trace Event Format: times and durations are in microseconds, "X" is a span, "C" a counter, "s" and
"f" are the ends of an arrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from autopar.cost.schedule import Action, held_change
from autopar.cost.simulator import Event, Timeline, simulate_passes
from autopar.plan import Memory, Plan

PASSES = {"F": "forward", "B": "backward", "I": "input gradients", "W": "parameter gradients"}
MICROSECONDS = 1e6
Record = dict[str, Any]


def plan_timeline(plan: Plan) -> Timeline:
    """The schedule as it was simulated for the plan: its makespan and each rank's actions."""
    passes = [stage.prediction.passes for stage in plan.stages]
    return simulate_passes(plan.schedule, passes, plan.num_microbatches, plan.virtual_stages)


def memory_over_time(plan: Plan, timeline: Timeline, rank: int) -> list[tuple[float, Memory]]:
    """(seconds, bytes by kind from then on) of a rank at position ``rank`` along the pipeline.

    Saved activations come with the begin of a forward and go with the end of the backward;
    ``transient`` bytes are there while a pass runs. All else is there for the whole step.
    """
    found = []
    whole = plan.rank_memory(rank)
    held = {stage: [0, 0] for stage in range(rank, len(plan.stages), plan.mesh.pp)}

    def now(transient: int) -> Memory:
        each = [(plan.stages[stage].prediction.passes, counts) for stage, counts in held.items()]
        activations = sum(p.saved_bytes * m + p.waiting_bytes * w for p, (m, w) in each)
        return replace(whole, activations=activations, transient=transient)

    for event in timeline.events[rank]:
        stage, change = event.action.stage, held_change(event.action)
        begins = event.action.kind == "F"
        held[stage][0] += begins
        found.append((event.start, now(plan.stages[stage].prediction.memory.transient)))
        held[stage][0] += change[0] - begins
        held[stage][1] += change[1]
        found.append((event.end, now(0)))
    return found


def to_trace(plan: Plan) -> Record:
    """The whole trace as plain JSON data."""
    timeline = plan_timeline(plan)
    records = [record for rank in range(plan.mesh.pp) for record in _rank(plan, timeline, rank)]
    about = {
        "plan": plan.plan_id,
        "model": plan.model,
        "cluster": plan.cluster.name,
        "step_seconds": plan.prediction.step_seconds,
    }
    return {"traceEvents": records, "displayTimeUnit": "ms", "otherData": about}


def _rank(plan: Plan, timeline: Timeline, rank: int) -> Iterator[Record]:
    """All that is shown of one position along the pipeline."""
    width = plan.mesh.dp * plan.mesh.tp
    ranks = f"ranks {rank * width}-{(rank + 1) * width - 1}" if width > 1 else f"rank {rank}"
    yield _record("M", "process_name", rank, args={"name": ranks})
    yield _record("M", "process_sort_index", rank, args={"sort_index": rank})
    for event in timeline.events[rank]:
        if event.end > event.start:
            yield from _pass(plan, event, rank)
    yield from _behind(plan, timeline.makespan, rank)
    for seconds, memory in memory_over_time(plan, timeline, rank):
        yield _record("C", "memory in bytes", rank, seconds, args=asdict(memory))


def _pass(plan: Plan, event: Event, rank: int) -> Iterator[Record]:
    """A pass of one micro-batch, and the ends of the transfers that it waits for and begins."""
    action = event.action
    args = {
        "stage": action.stage,
        "microbatch": action.microbatch,
        "layers": ", ".join(plan.stages[action.stage].layers),
    }
    name = f"{PASSES[action.kind]} {action.microbatch}"
    yield _span(name, rank, event.start, event.end - event.start, args)
    if action.kind == "W" and action.stage > 0:
        return  # waits for the same rank alone; the first stage makes all its gradients in W
    last, step = len(plan.stages) - 1, 1 if action.kind == "F" else -1
    middle = (event.start + event.end) / 2
    if 0 <= action.stage - step <= last:
        yield _arrow("f", action, action.stage - step, rank, middle)
    if 0 <= action.stage + step <= last:
        yield _arrow("s", action, action.stage, rank, middle)


def _behind(plan: Plan, start: float, rank: int) -> Iterator[Record]:
    """What follows the passes: communication that nothing hides, and the optimizer."""
    each = [stage.prediction for stage in plan.stages[rank :: plan.mesh.pp]]
    parts = {
        "gradients and parameters over dp": sum(p.sync_seconds for p in each),
        "optimizer": sum(p.optimizer_seconds for p in each),
    }
    for name, seconds in parts.items():
        if seconds > 0:
            yield _span(name, rank, start, seconds, {})
        start += seconds


def _arrow(phase: str, action: Action, source: int, rank: int, seconds: float) -> Record:
    """One end of a transfer, which is recognised by the stage that sends, and the micro-batch."""
    kind = "activations" if action.kind == "F" else "gradients"
    number = f"{kind} {source} {action.microbatch}"
    return {**_record(phase, kind, rank, seconds), "cat": "transfer", "id": number, "bp": "e"}


def _span(name: str, rank: int, start: float, seconds: float, args: Record) -> Record:
    return {**_record("X", name, rank, start, args=args), "dur": seconds * MICROSECONDS}


def _record(
    phase: str, name: str, rank: int, seconds: float = 0.0, args: Record | None = None
) -> Record:
    found = {"ph": phase, "name": name, "pid": rank, "tid": 0, "ts": seconds * MICROSECONDS}
    return found if args is None else {**found, "args": args}
