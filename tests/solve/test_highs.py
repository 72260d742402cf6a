from __future__ import annotations

import random
from typing import Any

import pulp
import pytest

from autopar.solve.engine import run_solver


def _covering() -> Any:
    """A small set covering with random weights."""
    rng = random.Random(1)
    problem = pulp.LpProblem("covering", pulp.LpMinimize)
    take = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(16)]
    problem += pulp.lpSum(rng.randint(5, 20) * x for x in take)
    for _ in range(5):
        problem += pulp.lpSum(rng.randint(1, 30) * x for x in take) >= 80
    return problem


def test_arrays_give_what_pulp_gives() -> None:
    mine, pulps = _covering(), _covering()
    outcome = run_solver(mine, gap=0.0)
    pulps.solve(pulp.HiGHS(msg=False, gapRel=0.0))
    assert outcome.objective == pytest.approx(pulp.value(pulps.objective))
    assert outcome.bound == pytest.approx(outcome.objective)
    assert all(abs(v.varValue - round(v.varValue)) < 1e-6 for v in mine.variables())
