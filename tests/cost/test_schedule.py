from __future__ import annotations

import itertools
from typing import Any

import pytest
from torch.distributed import pipelining

from autopar.cost.schedule import (
    Action,
    Depth,
    actions,
    check_schedule,
    depths,
    gather_events,
    schedule_depths,
)
from autopar.errors import UsageError
from autopar.solve.problem import Configuration

SCHEDULES = ("gpipe", "1f1b")


def _text(stage: tuple[Action, ...]) -> str:
    return " ".join(f"{a.kind}{a.microbatch}" for a in stage)


def test_1f1b_is_the_order_that_torch_executes() -> None:
    stages = actions("1f1b", 3, 4)
    assert [_text(s) for s in stages] == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_gpipe_runs_backwards_in_the_order_of_the_forwards() -> None:
    assert [_text(s) for s in actions("gpipe", 2, 3)] == ["F0 F1 F2 B0 B1 B2"] * 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_stage_accumulates_gradients(schedule: str) -> None:
    assert _text(actions(schedule, 1, 3)[0]) == "F0 B0 F1 B1 F2 B2"


@pytest.mark.parametrize(
    ("schedule", "pp", "m"), list(itertools.product(SCHEDULES, (1, 2, 4), (1, 2, 4, 9)))
)
def test_in_flight_is_what_the_memory_model_assumes(schedule: str, pp: int, m: int) -> None:
    configuration = Configuration(pp, 1, 1, 1, m, schedule)
    assumed = tuple(configuration.in_flight(p) for p in range(pp))
    assert tuple(d.forwarded for d in depths(actions(schedule, pp, m))) == assumed


class _Stage:
    """As much of a pipeline stage as the constructors of torch's schedules look at."""

    def __init__(self, pp: int, stages: int, index: int) -> None:
        self.num_stages, self.group_size, self.group_rank = stages, pp, 0
        self.stage_index, self.submod = index, None


TORCH = {
    "interleaved_1f1b": pipelining.ScheduleInterleaved1F1B,
    "zero_bubble": pipelining.ScheduleInterleavedZeroBubble,
}
SHAPES = [(2, 1, 2), (2, 1, 6), (2, 2, 4), (2, 3, 8), (3, 1, 6), (3, 2, 9), (4, 2, 4), (4, 4, 12)]


def _torch_schedule(schedule: str, pp: int, v: int, m: int) -> Any:
    stages: list[Any] = [_Stage(pp, pp * v, chunk * pp) for chunk in range(v)]
    return TORCH[schedule](stages, m)


@pytest.mark.parametrize("schedule", TORCH)
@pytest.mark.parametrize(("pp", "v", "m"), SHAPES)
def test_the_lists_are_those_of_torchs_schedule_objects(
    schedule: str, pp: int, v: int, m: int
) -> None:
    held = _torch_schedule(schedule, pp, v, m).pipeline_order
    for rank, ours in enumerate(actions(schedule, pp, m, v)):
        theirs = [str(action) for action in held[rank] if action is not None]
        assert [f"{a.stage}{a.kind}{a.microbatch}" for a in ours] == theirs


@pytest.mark.parametrize(("pp", "v", "m"), [*SHAPES, (2, 5, 6), (3, 4, 6)])
def test_parameters_are_gathered_when_torchs_runtime_gathers_them(pp: int, v: int, m: int) -> None:
    lowered = _torch_schedule("interleaved_1f1b", pp, v, m).pipeline_order_with_comms
    for rank, ours in enumerate(actions("interleaved_1f1b", pp, m, v)):
        found = [str(a) for a in lowered[rank] if "SHARD" in str(a)]
        expected: list[str] = []
        active: set[int] = set()
        for gathered, freed in gather_events(ours):
            expected += sorted(f"{s}RESHARD" for s in freed)
            expected += sorted(f"{s}UNSHARD" for s in gathered)
            active = (active - freed) | gathered
        assert sorted(expected + [f"{s}RESHARD" for s in active]) == sorted(found)
        if v > 3:
            assert len([x for x in found if x.endswith("UNSHARD")]) > v


def test_zero_bubble_makes_the_gradients_of_parameters_later() -> None:
    first, last = (_text(rank) for rank in actions("zero_bubble", 2, 4))
    assert first == "F0 F1 I0 W0 F2 I1 W1 F3 I2 W2 I3 W3"
    assert last == "F0 I0 F1 I1 W0 F2 I2 W1 F3 I3 W2 W3"


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
@pytest.mark.parametrize(("pp", "v", "m"), [(2, 2, 4), (3, 2, 6), (4, 3, 8)])
def test_every_pass_of_every_chunk_runs_once_in_order(
    schedule: str, pp: int, v: int, m: int
) -> None:
    for rank, listed in enumerate(actions(schedule, pp, m, v)):
        assert {a.stage for a in listed} == set(range(rank, pp * v, pp))
        kinds = "FB" if schedule == "interleaved_1f1b" else "FIW"
        assert len(set(listed)) == len(listed) == len(kinds) * v * m
        for stage in range(rank, pp * v, pp):
            for microbatch in range(m):
                places = [listed.index(Action(k, stage, microbatch)) for k in kinds]  # type: ignore[arg-type]
                assert places == sorted(places)


def test_depths_of_two_chunks_on_two_ranks() -> None:
    """Rank 0 is five forwards ahead of its first backward: four of chunk 0, one of chunk 1."""
    found = depths(actions("interleaved_1f1b", 2, 4, 2))
    assert found == (Depth(4, 0), Depth(3, 0), Depth(2, 0), Depth(1, 0))


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved_1f1b", "zero_bubble"])
@pytest.mark.parametrize(("pp", "v"), [(2, 1), (2, 3), (4, 1), (4, 2), (8, 2)])
def test_more_micro_batches_than_a_few_rounds_are_not_held(schedule: str, pp: int, v: int) -> None:
    v = 1 if schedule == "1f1b" else v
    assert schedule_depths(schedule, pp, 9 * pp, v) == depths(actions(schedule, pp, 9 * pp, v))


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "zero_bubble"])
@pytest.mark.parametrize("pp", [1, 2, 3, 5])
def test_depths_by_arithmetic_are_those_of_the_lists(schedule: str, pp: int) -> None:
    for v in (1,) if pp == 1 else (1, 2, 3, 5):
        for m in range(pp, 6 * pp, pp):
            listed = depths(actions(schedule, pp, m, v))
            assert schedule_depths(schedule, pp, m, v) == listed, (v, m)


def test_zero_bubble_holds_as_many_micro_batches_on_every_rank() -> None:
    assert depths(actions("zero_bubble", 4, 8)) == (
        Depth(4, 0),
        *(Depth(4, r + 1) for r in (1, 2, 3)),
    )


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(UsageError, match="gpipe or 1f1b"):
        actions("dualpipe", 2, 2)
    with pytest.raises(UsageError, match="1 or more"):
        actions("1f1b", 2, 0)
    with pytest.raises(UsageError, match="a multiple of 4"):
        check_schedule("interleaved_1f1b", 4, 6, 2)
    with pytest.raises(UsageError, match="virtual stages with schedule=1f1b"):
        check_schedule("1f1b", 2, 4, 2)
