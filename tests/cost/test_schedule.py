from __future__ import annotations

import itertools
import random

import pytest

from autopar.cost.schedule import Action, actions, max_in_flight, simulate
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
    ("schedule", "pp", "m"), list(itertools.product(SCHEDULES, (1, 2, 3, 5, 8), (1, 2, 4, 8, 13)))
)
def test_every_pass_runs_once_and_uniform_stages_have_the_closed_form(
    schedule: str, pp: int, m: int
) -> None:
    stages = actions(schedule, pp, m)
    for p, stage in enumerate(stages):
        assert {(a.kind, a.microbatch) for a in stage} == {(k, i) for k in "FB" for i in range(m)}
        assert len(stage) == 2 * m
        assert all(a.stage == p for a in stage)
    timeline = simulate(schedule, [2.0] * pp, [5.0] * pp, 0.0, 0.0, m)
    assert timeline.makespan == pytest.approx((m + pp - 1) * 7.0)
    assert timeline.idle_seconds == pytest.approx([(pp - 1) * 7.0] * pp)


@pytest.mark.parametrize(
    ("schedule", "pp", "m"), list(itertools.product(SCHEDULES, (1, 2, 4), (1, 2, 4, 9)))
)
def test_in_flight_is_what_the_memory_model_assumes(schedule: str, pp: int, m: int) -> None:
    configuration = Configuration(pp, 1, 1, 1, m, schedule)
    assumed = tuple(configuration.in_flight(p) for p in range(pp))
    assert max_in_flight(actions(schedule, pp, m)) == assumed


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_objective_of_the_solver_is_an_upper_bound_without_transfers(schedule: str) -> None:
    rng = random.Random(3)
    for _ in range(50):
        pp, m = rng.randint(1, 5), rng.randint(1, 9)
        forward = [rng.uniform(1, 4) for _ in range(pp)]
        backward = [rng.uniform(1, 6) for _ in range(pp)]
        total = [f + b for f, b in zip(forward, backward, strict=True)]
        makespan = simulate(schedule, forward, backward, 0.0, 0.0, m).makespan
        assert m * max(total) <= makespan * (1 + 1e-9)
        # the slowest forward and the slowest backward may be on different stages under gpipe
        slowest = max(total) if schedule == "1f1b" else max(forward) + max(backward)
        assert makespan <= (sum(total) + (m - 1) * slowest) * (1 + 1e-9)


def test_transfers_delay_what_depends_on_them() -> None:
    timeline = simulate("1f1b", [1.0, 1.0], [2.0, 2.0], 0.5, 0.25, 1)
    starts = {(e.action.kind, e.action.stage): e.start for stage in timeline.events for e in stage}
    assert starts == {("F", 0): 0.0, ("F", 1): 1.5, ("B", 1): 2.5, ("B", 0): 4.75}
    assert timeline.makespan == pytest.approx(6.75)


def test_events_of_a_stage_do_not_overlap() -> None:
    timeline = simulate("1f1b", [1.0, 3.0, 2.0], [2.0, 2.0, 7.0], 0.3, 0.2, 6)
    for stage, idle in zip(timeline.events, timeline.idle_seconds, strict=True):
        assert all(a.end <= b.start for a, b in itertools.pairwise(stage))
        busy = sum(e.end - e.start for e in stage)
        assert busy + idle == pytest.approx(timeline.makespan)


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(UsageError, match="gpipe or 1f1b"):
        actions("dualpipe", 2, 2)
    with pytest.raises(UsageError, match="1 or more"):
        actions("1f1b", 2, 0)
    with pytest.raises(UsageError, match="one of each per stage"):
        simulate("1f1b", [1.0], [1.0, 2.0], 0.0, 0.0, 1)
