from __future__ import annotations

import random
from typing import Any

import pulp
import pytest

from autopar.solve.engine import run_solver
from autopar.solve.highs import rows_of


def _covering() -> Any:
    """A small set covering with random weights."""
    rng = random.Random(1)
    problem = pulp.LpProblem("covering", pulp.LpMinimize)
    take = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(16)]
    problem += pulp.lpSum(rng.randint(5, 20) * x for x in take)
    for _ in range(5):
        problem += pulp.lpSum(rng.randint(1, 30) * x for x in take) >= 80
    return problem


@pytest.mark.parametrize("capacity", [4.0, 3.5])
def test_relaxing_first_gives_the_same_optimum(capacity: float) -> None:
    def knapsack() -> Any:
        problem = pulp.LpProblem("knapsack", pulp.LpMinimize)
        take = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(3)]
        problem += -5 * take[0] - 4 * take[1] - 3 * take[2]
        problem += 2 * take[0] + 2 * take[1] + 2 * take[2] <= capacity
        return problem

    plain, relaxed = (run_solver(knapsack(), gap=0.0, relax_first=first) for first in (False, True))
    assert relaxed.status == plain.status == "optimal"
    assert relaxed.objective == pytest.approx(plain.objective)
    assert relaxed.bound == pytest.approx(plain.objective)


def test_rows_serve_for_another_objective() -> None:
    problem = _covering()
    rows = rows_of(problem)
    first = run_solver(problem, gap=0.0, rows=rows)
    problem.setObjective(pulp.lpSum(problem.variables()))
    second = run_solver(problem, gap=0.0, rows=rows)
    assert first.objective == pytest.approx(run_solver(_covering(), gap=0.0).objective)
    assert second.objective == pytest.approx(run_solver(problem, gap=0.0).objective)
    assert second.objective < first.objective
