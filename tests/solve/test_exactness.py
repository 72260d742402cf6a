"""The search finds the optimum: against every assignment, and against another formulation."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopar.errors import InfeasiblePlanError
from autopar.solve.balance import kinds_bound
from autopar.solve.fold import even_starts, turns_through
from autopar.solve.price import violations
from autopar.solve.problem import Configuration, Problem
from autopar.solve.search import TOLERANCE, solve
from tests.solve.instances import candidates, on_two_kinds, optimum, option, problem
from tests.solve.oracles import counted, tried

SMALL = settings(
    max_examples=320, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


ON_KINDS = settings(SMALL, max_examples=120)


def _small(seed: int) -> list[Problem]:
    """One to three configurations of up to seven layers in up to four classes."""
    rng = random.Random(seed)
    layers, classes = rng.randint(1, 7), rng.randint(1, 4)
    return [problem(rng, layers, classes, rng.randint(2, 4)) for _ in range(rng.randint(1, 3))]


def check(problems: list[Problem], exact: float) -> None:
    """The search proves ``exact`` to be the optimum, or that there is none; so it always said."""
    told: list[tuple[int, int, float | None, float]] = []
    listen = partial(solve, candidates(problems), gap=1e-6, progress=lambda *s: told.append(s))
    if exact == math.inf:
        with pytest.raises(InfeasiblePlanError):
            listen()
        assert all(best is None for _, _, best, _ in told)
        return
    solution = listen()
    check_told(told, exact)
    assert told[-1][2] == solution.objective_seconds
    assert told[-1][3] <= solution.bound_seconds * (1 + TOLERANCE)
    assert solution.status == "optimal"
    assert solution.gap <= 1e-6 + TOLERANCE
    assert solution.objective_seconds == pytest.approx(exact, rel=1e-6 + 2 * TOLERANCE)
    assert solution.bound_seconds <= exact * (1 + TOLERANCE)
    assert violations(solution.problem, solution.boundaries, solution.options) == []


def check_told(told: list[tuple[int, int, float | None, float]], exact: float) -> None:
    """At every moment the bound is one, and no progress is ever taken back."""
    plans = [best for _, _, best, _ in told if best is not None]
    bounds = [bound for _, _, _, bound in told]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= exact * (1 + TOLERANCE)
    assert plans == sorted(plans, reverse=True)
    assert plans[-1] >= exact * (1 - TOLERANCE)
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)


@SMALL
@given(seed=st.integers(0, 2**32))
def test_small_problems_equal_trying_everything(seed: int) -> None:
    problems = _small(seed)
    check(problems, min(tried(p) for p in problems))


@ON_KINDS
@given(seed=st.integers(0, 2**32))
def test_two_kinds_of_device_equal_trying_everything(seed: int) -> None:
    """Chains of up to six layers, each stage on devices of one kind."""
    rng = random.Random(seed)
    problems = [problem(rng, rng.randint(2, 6), rng.randint(1, 3), 3) for _ in range(2)]
    split = [on_two_kinds(rng, p) if p.configuration.pp > 1 else p for p in problems]
    exact = min(tried(p) for p in split)
    assert all(kinds_bound(p) <= tried(p) * (1 + TOLERANCE) for p in split if p.kinds)
    check(split, exact)


@pytest.mark.parametrize("seed", range(8))
def test_the_fast_enumeration_equals_the_definitions(seed: int) -> None:
    rng = random.Random(seed)
    given = problem(rng, rng.randint(1, 5), 2, 3)
    assert tried(given) == pytest.approx(optimum([given]))
    if given.configuration.pp > 1:
        given = on_two_kinds(rng, given)
        assert tried(given) == pytest.approx(optimum([given]))


@pytest.mark.parametrize("seed", range(10))
def test_counting_equals_trying_everything(seed: int) -> None:
    rng = random.Random(seed)
    given = replace(problem(rng, rng.randint(2, 6), 3, 3), linked=(), cuts=())
    assert counted(given) == pytest.approx(tried(given), rel=1e-5)


def _large(seed: int, schedule: str = "") -> Problem:
    """Embedding, head and two kinds of blocks, in turn or one behind the other."""
    rng = random.Random(seed)
    blocks = rng.choice([24, 30, 36, 48])
    inner = [1 + (i % 2) for i in range(blocks)]
    layers = (0, *(inner if seed % 2 else sorted(inner)), 3)
    pp, m = rng.choice([2, 2, 3]), rng.choice([4, 8, 16])
    schedule = schedule or rng.choice(["1f1b", "1f1b", "gpipe", "zero_bubble"])
    v = rng.choice([2, 3, 4]) if schedule == "interleaved_1f1b" else 1
    count = m if schedule in ("1f1b", "gpipe") else m * pp
    configuration = Configuration(pp, 1, 1, 1, count, schedule, virtual_stages=v)
    menus = tuple(tuple(option(rng, f"k{k}") for k in range(3)) for _ in range(4))
    lightest = [min(o.state_bytes + o.activation_bytes * pp for o in menu) for menu in menus]
    room = sum(lightest[c] for c in layers) // pp
    cuts = tuple(rng.choice([0.1, 0.1, 0.5, 2.0]) for _ in layers)
    return Problem(configuration, layers, menus, int(room * rng.uniform(1.2, 2.5)) + 60, cuts,
                   linked=((0, len(layers) - 1),) if rng.random() < 0.5 else (),
                   turns=_by_turns(blocks, configuration) if v > 1 else ())  # fmt: skip


def _by_turns(blocks: int, configuration: Configuration) -> tuple[int, ...]:
    starts = even_starts(blocks, configuration.stages)
    return turns_through(starts, (2, *(1,) * (blocks - 2), 2), configuration.pp)


@pytest.mark.parametrize(
    ("seed", "schedule"),
    [*((s, "") for s in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)),
     *((s, "interleaved_1f1b") for s in range(20, 26)), *((s, "zero_bubble") for s in range(4))],
)  # fmt: skip
def test_large_problems_equal_counting_of_classes(seed: int, schedule: str) -> None:
    given = _large(seed, schedule)
    exact = counted(given)
    if exact < math.inf:
        solution = solve(candidates([given]), gap=1e-4, time_limit=30)
        assert solution.status == "optimal"
        assert exact * (1 - 1e-5) <= solution.objective_seconds <= exact * (1 + 1.1e-4)
        assert solution.bound_seconds <= exact * (1 + 1e-5)
    else:
        with pytest.raises(InfeasiblePlanError):
            solve(candidates([given]), time_limit=30)
