from __future__ import annotations

import random
from typing import Any

import pulp
import pytest

from autopar.errors import UsageError
from autopar.solve.engine import run_solver, solver_name


def _covering(size: int, rows: int) -> Any:
    """A set covering with random weights, hard enough to need branching."""
    rng = random.Random(1)
    problem = pulp.LpProblem("covering", pulp.LpMinimize)
    take = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(size)]
    problem += pulp.lpSum(rng.randint(5, 20) * x for x in take)
    for _ in range(rows):
        problem += pulp.lpSum(rng.randint(1, 30) * x for x in take) >= 5 * size
    return problem


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_both_solvers_give_value_and_bound(solver: str) -> None:
    outcome = run_solver(_covering(16, 5), solver=solver, gap=1e-6)
    reference = run_solver(_covering(16, 5), gap=0.0)
    assert outcome.status == "optimal"
    assert outcome.proven
    assert outcome.objective == pytest.approx(reference.objective)
    assert outcome.bound == pytest.approx(reference.objective, rel=1e-5)


def test_contradictions_are_infeasible() -> None:
    problem = pulp.LpProblem("never", pulp.LpMinimize)
    x = pulp.LpVariable("x", cat="Binary")
    problem += x
    problem += x >= 2
    outcome = run_solver(problem)
    assert (outcome.status, outcome.objective, outcome.bound) == ("infeasible", None, float("inf"))


def test_the_time_limit_leaves_a_bound() -> None:
    outcome = run_solver(_covering(70, 40), gap=0.0, time_limit=0.3)
    assert not outcome.proven
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.bound < outcome.objective


def test_ctrl_c_while_solving_is_a_clean_stop() -> None:
    def press(_bound: float) -> None:
        raise KeyboardInterrupt

    outcome = run_solver(_covering(70, 40), gap=0.0, time_limit=20.0, watch=press)
    assert outcome.interrupted


def test_solvers_have_names_and_others_are_refused() -> None:
    assert (solver_name("highs"), solver_name("cbc")) == ("HiGHS", "CBC")
    with pytest.raises(UsageError, match="highs or cbc"):
        solver_name("gurobi")
