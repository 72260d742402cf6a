from __future__ import annotations

import itertools
import random

import pytest

from autopar.cost.schedule import actions
from autopar.cost.simulator import play, simulate
from autopar.errors import UsageError

SINGLE = ("gpipe", "1f1b")


@pytest.mark.parametrize(
    ("schedule", "pp", "m"), list(itertools.product(SINGLE, (1, 2, 3, 5, 8), (1, 2, 4, 8, 13)))
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
    assert timeline.makespan == pytest.approx((m + pp - 1) * 7.0, rel=1e-12)
    assert timeline.idle_seconds == pytest.approx([(pp - 1) * 7.0] * pp)


@pytest.mark.parametrize(
    ("pp", "v", "rounds"), list(itertools.product((2, 3, 4, 8), (1, 2, 3), (1, 2, 5)))
)
def test_interleaving_divides_the_bubble(pp: int, v: int, rounds: int) -> None:
    """(m + (pp - 1) / v) (F + B) with the times of a whole rank (Narayanan et al. 2021)."""
    m, stages = pp * rounds, pp * v
    timeline = simulate(
        "interleaved_1f1b", [2.0] * stages, [5.0] * stages, 0.0, 0.0, m, virtual_stages=v
    )
    assert timeline.makespan == pytest.approx((m + (pp - 1) / v) * 7.0 * v, rel=1e-12)


@pytest.mark.parametrize(
    ("pp", "v", "rounds"), list(itertools.product((2, 3, 4, 8), (1, 2, 3), (1, 2, 5)))
)
@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (2.0, 3.0, 1.0), (1.0, 1.0, 3.0)])
def test_zero_bubble_keeps_what_parameter_gradients_do_not_fill(
    pp: int, v: int, rounds: int, times: tuple[float, float, float]
) -> None:
    """ZB-H1 idles (pp - 1) (F + I - W) seconds (Qi et al. 2023, table 1), F where I < W."""
    forward, gradient, weight = times
    m, stages = pp * rounds, pp * v
    makespan = simulate(
        "zero_bubble", [forward] * stages, [gradient + weight] * stages, 0.0, 0.0, m,
        virtual_stages=v, weight_seconds=[weight] * stages,
    ).makespan  # fmt: skip
    bubble = (pp - 1) * (forward + max(0.0, gradient - weight))
    assert makespan == pytest.approx(m * v * sum(times) + bubble, rel=1e-12)


@pytest.mark.parametrize("schedule", SINGLE)
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


def test_every_boundary_takes_its_own_time() -> None:
    """Forward across the second boundary takes 3, backward across it 5; the last is no boundary."""
    sent, back = [0.5, 3.0, 99.0], [0.25, 5.0, 99.0]
    timeline = simulate("1f1b", [1.0] * 3, [2.0] * 3, sent, back, 1)
    starts = {(e.action.kind, e.action.stage): e.start for stage in timeline.events for e in stage}
    assert [starts["F", s] for s in range(3)] == [0.0, 1.5, 5.5]
    assert [starts["B", s] for s in range(3)] == [15.75, 13.5, 6.5]


@pytest.mark.parametrize(("schedule", "v"), [("1f1b", 1), ("interleaved_1f1b", 2)])
def test_events_of_a_rank_do_not_overlap(schedule: str, v: int) -> None:
    forward, backward = [1.0, 3.0, 2.0] * v, [2.0, 2.0, 7.0] * v
    timeline = simulate(schedule, forward, backward, 0.3, 0.2, 6, virtual_stages=v)
    for rank, idle in zip(timeline.events, timeline.idle_seconds, strict=True):
        assert all(a.end <= b.start for a, b in itertools.pairwise(rank))
        busy = sum(e.end - e.start for e in rank)
        assert busy + idle == pytest.approx(timeline.makespan)


def test_the_first_stage_makes_all_its_gradients_at_once() -> None:
    """torch leaves its input's gradient out and runs the whole backward pass in W."""
    timeline = simulate(
        "zero_bubble", [1.0, 1.0], [5.0, 5.0], 0.0, 0.0, 2, weight_seconds=[2.0, 2.0]
    )
    length = {
        (e.action.kind, e.action.stage): e.end - e.start for rank in timeline.events for e in rank
    }
    assert length == pytest.approx(
        {("F", 0): 1, ("I", 0): 0, ("W", 0): 5, ("F", 1): 1, ("I", 1): 3, ("W", 1): 2}
    )


def test_a_gradient_does_not_wait_for_those_of_the_parameters() -> None:
    seconds = {"F": [1.0, 1.0], "I": [1.0, 1.0], "W": [1.0, 8.0]}
    timeline = play(actions("zero_bubble", 2, 2), seconds, 0.0, 0.0)
    first = next(e for e in timeline.events[0] if e.action.kind == "I")
    assert first.start == 3.0


def test_times_that_do_not_agree_are_refused() -> None:
    with pytest.raises(UsageError, match="one of each per stage"):
        simulate("1f1b", [1.0], [1.0, 2.0], 0.0, 0.0, 1)
    with pytest.raises(UsageError, match="0 weight times"):
        simulate("zero_bubble", [1.0, 1.0], [1.0, 2.0], 0.0, 0.0, 2)
    with pytest.raises(UsageError, match="2 stages per rank"):
        simulate("interleaved_1f1b", [1.0] * 3, [1.0] * 3, 0.0, 0.0, 2, virtual_stages=2)
