from __future__ import annotations

from dataclasses import replace

import pytest

from autopar.solve.alternatives import fastest
from autopar.solve.problem import Configuration, Problem, Solution

PROBLEM = Problem(Configuration(2, 1, 1, 1, 4, "1f1b"), (0, 0), ((),), 0)
SEARCHED = Solution(PROBLEM, (0, 1), (), 10.0, 9.95, 0.005, "optimal", 0.0, {}, "")
UNEVEN = replace(SEARCHED, objective_seconds=10.5, bound_seconds=0.0, gap=1.0)
OUTSIDE = replace(SEARCHED, objective_seconds=9.9)


def of(best: Solution, searched: Solution = SEARCHED, gap: float = 0.01) -> Solution:
    """What is made of two plans the second of which takes 11 instead of 12 simulated seconds."""
    return fastest(searched, [searched, best], lambda s: 12.0 if s is searched else 11.0, gap)


def test_a_plan_that_the_simulation_prefers_has_the_gap_of_its_own_price() -> None:
    best = of(UNEVEN)
    assert best.objective_seconds == 10.5
    assert best.bound_seconds == 9.95
    assert best.gap == pytest.approx(1 - 9.95 / 10.5)
    assert best.runners_up == (SEARCHED,)
    assert best.simulated == 2


def test_a_gap_above_the_one_asked_for_is_not_called_optimal_and_explained() -> None:
    best = of(UNEVEN)
    assert best.status == "feasible"
    (note,) = best.notes
    for figure in ("5.2 %", "1 %", "12 s", "11 s"):
        assert figure in note
    wide = of(UNEVEN, gap=0.06)
    assert (wide.status, wide.notes) == ("optimal", ())


def test_nothing_is_explained_where_the_search_itself_did_not_come_within_the_gap() -> None:
    best = of(UNEVEN, replace(SEARCHED, gap=0.3, bound_seconds=7.0, status="time limit"))
    assert (best.status, best.notes) == ("time limit", ())
    assert best.gap == pytest.approx(1 - 7 / 10.5)


def test_no_gap_is_negative() -> None:
    """A plan that restricts the space elsewhere may be below the bound over it."""
    assert of(OUTSIDE).gap == 0
    assert of(OUTSIDE).bound_seconds == 9.9
