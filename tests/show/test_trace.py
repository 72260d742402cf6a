"""The simulated step of a plan as spans, arrows and memory over time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from autopar.plan import Mesh, Passes, Plan, StagePlan
from autopar.show.trace import memory_over_time, plan_timeline, to_trace

MICROBATCHES = 8
SCHEDULES = {  # stages per rank
    "gpipe": 1, "1f1b": 1, "interleaved_1f1b": 2, "zero_bubble": 2,
}  # fmt: skip


def _stage(plan: Plan, index: int, waiting: int) -> StagePlan:
    """One whose seconds and bytes differ from those of every other; 1 GiB transient."""
    passes = Passes(3.0 + index, 7.0 + index, 2.0, 0.5, 1000 + index, waiting)
    held = MICROBATCHES * (passes.saved_bytes + waiting)
    first = plan.stages[0].prediction
    memory = replace(first.memory, activations=held)
    return StagePlan((f"layer.{index}",), replace(first, memory=memory, passes=passes))


@pytest.fixture(params=SCHEDULES)
def plan(request: pytest.FixtureRequest, sample_plan: Plan) -> Plan:
    v, split = SCHEDULES[request.param], request.param == "zero_bubble"
    stages = tuple(_stage(sample_plan, index, 100 * split) for index in range(2 * v))
    return replace(
        sample_plan, mesh=Mesh(2, 4, 2), schedule=request.param, virtual_stages=v,
        stages=stages, num_microbatches=MICROBATCHES,
    )  # fmt: skip


def test_memory_over_time_has_the_peak_of_the_plan(plan: Plan) -> None:
    timeline = plan_timeline(plan)
    for rank in range(plan.mesh.pp):
        series = memory_over_time(plan, timeline, rank)
        whole, last = plan.rank_memory(rank), series[-1][1]
        assert all(a <= b for (a, _), (b, _) in pairwise(series))
        assert (last.activations, last.transient, last.parameters) == (0, 0, whole.parameters)
        assert min(memory.activations for _, memory in series) == 0
        peak = max(memory.total for _, memory in series)
        # The made-up plan has all micro-batches in memory at once, as gpipe has.
        assert peak == whole.total if plan.schedule == "gpipe" else peak < whole.total


def test_passes_do_not_overlap_on_a_rank_and_add_up(plan: Plan) -> None:
    spans = defaultdict(list)
    for record in to_trace(plan)["traceEvents"]:
        if record["ph"] == "X":
            spans[record["pid"]].append((record["ts"], record["dur"]))
    assert set(spans) == set(range(plan.mesh.pp))
    for rank, each in spans.items():
        assert all(a + duration <= b * (1 + 1e-9) for (a, duration), (b, _) in pairwise(each))
        own = [stage.prediction for stage in plan.stages[rank :: plan.mesh.pp]]
        once = sum(p.sync_seconds + p.optimizer_seconds for p in own)
        work = sum(p.passes.forward_seconds + p.passes.backward_seconds for p in own)
        expected = MICROBATCHES * work + once
        assert sum(duration for _, duration in each) == pytest.approx(1e6 * expected)


def test_every_transfer_is_an_arrow_from_sender_to_receiver(plan: Plan) -> None:
    ends = defaultdict(dict)
    for record in to_trace(plan)["traceEvents"]:
        if record["ph"] in "sf":
            assert record["ph"] not in ends[record["id"]]
            ends[record["id"]][record["ph"]] = record
    for pair in ends.values():
        assert pair["s"]["ts"] < pair["f"]["ts"]
        assert (pair["s"]["pid"] - pair["f"]["pid"]) % plan.mesh.pp
    assert len(ends) == MICROBATCHES * 2 * (len(plan.stages) - 1)
