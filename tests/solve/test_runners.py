from __future__ import annotations

import time

import pytest

from autopar.errors import InfeasiblePlanError
from autopar.solve.price import violations
from autopar.solve.problem import Configuration, Option, Problem, Solution
from autopar.solve.runners import COUNT, PER_FAMILY, family, runners_up
from autopar.solve.search import solve
from tests.solve.instances import candidates


def _problem(pp: int, dp: int, seconds: float, microbatch: int = 1, limit: int = 100) -> Problem:
    option = Option("k", 0, 0, "none", seconds, 0.0, 0.0, 10, 0, 0)
    config = Configuration(pp, dp, 1, microbatch, 4, "1f1b")
    return Problem(config, (0,) * 4, ((option,),), limit)


def _solution(problem: Problem) -> Solution:
    if problem.memory_limit_bytes < 10:
        raise InfeasiblePlanError("no")
    seconds = problem.menus[0][0].forward_seconds
    return Solution(problem, (0,), (), seconds, 0, 0, "", 0, {}, "")


def test_the_best_of_each_other_family_fastest_first() -> None:
    problems = [
        _problem(1, 4, 1.0), _problem(2, 2, 5.0), _problem(2, 2, 4.0, microbatch=2),
        _problem(4, 1, 3.0), _problem(1, 8, 2.0, limit=1),
    ]  # fmt: skip
    best = problems[0].configuration
    found = runners_up(best, problems, _solution, time.monotonic() + 9)
    assert [(s.objective_seconds, s.problem.configuration.pp) for s in found] == [
        (3.0, 4),
        (4.0, 2),
    ]
    assert runners_up(best, problems, _solution, time.monotonic() - 1) == ()


def test_few_of_a_family_are_tried_and_few_families_returned() -> None:
    tried = []

    def find(problem: Problem) -> Solution:
        tried.append(family(problem.configuration))
        return _solution(problem)

    problems = [_problem(1, dp, dp) for dp in (2, 3, 4, 5, 6) for _ in range(9)]
    found = runners_up(_problem(1, 1, 0.0).configuration, problems, find, time.monotonic() + 9)
    assert [s.objective_seconds for s in found] == [2, 3, 4][:COUNT]
    assert max(map(tried.count, tried)) == PER_FAMILY


@pytest.mark.parametrize("asked", [False, True])
def test_a_search_returns_legal_runners_up_on_request(asked: bool) -> None:
    problems = [_problem(1, 4, 1.0), _problem(2, 2, 1.5), _problem(4, 1, 1.6)]
    solution = solve(candidates(problems), runners=asked)
    found = solution.runners_up
    assert len(found) == 2 * asked
    for runner in found:
        assert not violations(runner.problem, runner.boundaries, runner.options)
        assert runner.objective_seconds >= solution.objective_seconds * (1 - 1e-9)
