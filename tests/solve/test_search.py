from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from autopar.errors import InfeasiblePlanError
from autopar.solve import optimum, search
from autopar.solve.price import objective_seconds, violations
from autopar.solve.problem import Candidate, Configuration, Option, Problem, Solution
from autopar.solve.search import TOLERANCE, solve
from tests.solve.instances import candidates, problem
from tests.solve.instances import optimum as least


def _instance(seed: int) -> list[Problem]:
    rng = random.Random(seed)
    return [
        problem(rng, rng.randint(1, 6), rng.randint(1, 3), rng.randint(2, 3))
        for _ in range(rng.randint(1, 3))
    ]


def _check(solution: Solution, exact: float) -> None:
    """A legal plan with its own price, and a bound that the optimum respects."""
    plan = solution.boundaries, solution.options
    assert violations(solution.problem, *plan) == []
    priced = objective_seconds(solution.problem, *plan)
    assert solution.objective_seconds == pytest.approx(priced)
    assert solution.bound_seconds <= exact * (1 + TOLERANCE)
    assert exact <= solution.objective_seconds * (1 + 1e-12)
    assert solution.gap == pytest.approx(1 - solution.bound_seconds / priced, abs=1e-12)


@pytest.mark.parametrize("seed", range(80))
def test_equal_to_trying_everything(seed: int) -> None:
    problems = _instance(seed)
    exact = least(problems)
    if exact == math.inf:
        with pytest.raises(InfeasiblePlanError):
            solve(candidates(problems))
        return
    solution = solve(candidates(problems), gap=1e-6)
    assert solution.objective_seconds == pytest.approx(exact, rel=2 * TOLERANCE)
    assert solution.status == "optimal"
    _check(solution, exact)


@pytest.mark.parametrize("seed", range(60))
def test_stages_that_share_a_rank_are_chosen_together(seed: int) -> None:
    """Memory couples the stages of a rank, and bytes left by one may serve another."""
    rng = random.Random(seed)
    drawn = (problem(rng, rng.randint(4, 6), rng.randint(1, 2), 2) for _ in range(1000))
    given = replace(next(p for p in drawn if p.configuration.virtual_stages > 1), idle=frozenset())
    exact = least([given])
    if exact == math.inf:
        with pytest.raises(InfeasiblePlanError, match=r"stages \d, \d"):
            solve(candidates([given]))
        return
    solution = solve(candidates([given]), gap=1e-6)
    assert solution.objective_seconds == pytest.approx(exact, rel=2 * TOLERANCE)
    _check(solution, exact)


@pytest.mark.parametrize("seed", range(0, 80, 5))
def test_cbc_agrees(seed: int) -> None:
    problems = _instance(seed)
    exact = least(problems)
    if exact < math.inf:
        solution = solve(candidates(problems), gap=1e-6, solver="cbc")
        assert solution.objective_seconds == pytest.approx(exact, rel=2 * TOLERANCE)
        assert solution.solver == "CBC"


@pytest.mark.parametrize("seed", range(200, 240))
def test_the_gap_is_honest_when_it_is_wide(seed: int) -> None:
    problems = _instance(seed)
    exact = least(problems)
    if exact < math.inf:
        solution = solve(candidates(problems), gap=0.1)
        assert solution.gap <= 0.1 + TOLERANCE
        _check(solution, exact)


def _deep(layers: int = 40, pp: int = 4, options: int = 6) -> Problem:
    rng = random.Random(9)
    menu = tuple(
        Option(f"k{k}", 0, 0, "none", rng.uniform(1, 2), 2.0, rng.uniform(1, 3),
               rng.randint(20, 60), rng.randint(5, 20), rng.randint(0, 9))
        for k in range(options)
    )  # fmt: skip
    configuration = Configuration(pp, 1, 1, 1, 16, "1f1b")
    return Problem(configuration, (0,) * layers, (menu,), 70 * layers // pp, (0.1,) * layers)


def test_rivals_are_other_plans_within_the_gap() -> None:
    number = 0
    for seed in range(80):
        problems = _instance(seed)
        exact = least(problems)
        if exact == math.inf:
            continue
        solution = solve(candidates(problems), gap=0.3, runners=True)
        for rival in solution.rivals:
            _check(rival, exact)
            assert rival.gap <= 0.3 + TOLERANCE
            assert rival.objective_seconds >= solution.objective_seconds
            assert rival.bound_seconds == pytest.approx(solution.bound_seconds, rel=1e-12)
        number += len(solution.rivals)
    assert number > 3


def test_candidates_that_cannot_win_are_never_built() -> None:
    def refuse() -> Problem:
        raise AssertionError("built")

    given = _deep(8, 2, 3)
    hopeless = Candidate(given.configuration, 1e9, refuse)
    solution = solve([hopeless, *candidates([given]), hopeless])
    assert solution.candidates == {
        "considered": 3, "bounded out": 2, "infeasible": 0, "solved": 1,
    }  # fmt: skip


def test_every_candidate_is_counted_once() -> None:
    for seed in range(30):
        problems = _instance(seed)
        if least(problems) < math.inf:
            counts = solve(candidates(problems), gap=1e-3).candidates
            assert counts["considered"] == len(problems)
            assert sum(counts.values()) == 2 * counts["considered"]
            assert counts["solved"] >= 1


def test_progress_reports_a_rising_bound_below_the_plan() -> None:
    seen: list[tuple[int, int, float | None, float]] = []
    given = [_deep(12, pp, 4) for pp in (1, 2, 4)]
    solution = solve(candidates(given), gap=1e-4, progress=lambda *state: seen.append(state))
    assert seen
    assert all(done <= total == 3 for done, total, _, _ in seen)
    assert all(best is None or bound <= best for _, _, best, bound in seen)
    assert [bound for *_, bound in seen] == sorted(bound for *_, bound in seen)
    best, bound = seen[-1][2:]
    assert best == solution.objective_seconds
    assert 1 - bound / best == pytest.approx(solution.gap, abs=1e-9), "the gap of the plan itself"


Told = tuple[int, int, float | None, float]


def _told(given: Problem, stop_at: int = -1) -> tuple[list[Told], Solution]:
    """What progress is told while one chain is solved, by ``stop_at`` interrupted."""
    seen: list[Told] = []

    def listen(*state: float | None) -> None:
        seen.append(state)  # type: ignore[arg-type]
        if len(seen) == stop_at:
            raise KeyboardInterrupt

    return seen, solve(candidates([given]), gap=1e-9, progress=listen)


def test_the_bound_rises_within_the_solve_of_one_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans as well; an interrupted solve keeps both."""
    for module in (optimum, search):
        monkeypatch.setattr(module, "PAUSE", 0.0)
    seen, solution = _told(_deep(12, 4, 4))
    inside = seen[2:-2]  # between the relaxation's bound and the proof
    bounds, plans = [bound for *_, bound in inside], [best for _, _, best, _ in inside]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) > 3
    assert plans == sorted(plans, reverse=True)
    assert len(set(plans)) > 1
    assert seen[1][3] < bounds[-1] <= solution.objective_seconds
    for stop_at in range(3, len(seen)):
        same, stopped = _told(_deep(12, 4, 4), stop_at)
        _, _, best, bound = same[-1]
        assert (stopped.objective_seconds, stopped.bound_seconds) == (best, bound)
        assert stopped.gap == pytest.approx(1 - bound / best)
        assert bound <= solution.objective_seconds


def test_the_time_limit_returns_what_there_is() -> None:
    given = [_deep(), replace(_deep(), cut_seconds=(0.2,) * 40)]
    bounds = [0.0, 1.0]
    slow = candidates(given, bounds)

    def later() -> Problem:
        # stands for expensive pricing
        import time

        time.sleep(0.3)
        return given[0]

    slow[0] = Candidate(given[0].configuration, 0.0, later)
    solution = solve(slow, gap=1e-9, time_limit=0.2)
    assert solution.status == "time limit"
    assert solution.candidates["not reached"] == 1
    assert solution.bound_seconds <= 1.0
    assert violations(solution.problem, solution.boundaries, solution.options) == []


def test_ctrl_c_returns_what_there_is() -> None:
    def press(_done: int, _total: int, best: float | None, _bound: float) -> None:
        if best is not None:
            raise KeyboardInterrupt

    solution = solve(candidates([_deep(), _deep(40, 8)]), gap=1e-9, progress=press)
    assert solution.status == "interrupted"
    assert solution.gap > 0


def test_nothing_in_time_is_not_called_infeasible() -> None:
    with pytest.raises(InfeasiblePlanError, match="none excluded"):
        solve(candidates([_deep()]), time_limit=-1.0)


def test_forty_layers_on_four_stages_take_no_time() -> None:
    solution = solve(candidates([_deep()]), gap=1e-3)
    assert solution.status == "optimal"
    assert solution.seconds < 10
