"""The best plan of a chain against every plan."""

from __future__ import annotations

import random

import numpy as np
import pytest

from autopar.solve import fronts, optimum
from autopar.solve.bounds import least_of, windows
from autopar.solve.chain import relaxed_chain
from autopar.solve.columns import relax
from autopar.solve.optimum import Plan, solve_chain
from autopar.solve.patterns import Pattern
from autopar.solve.price import objective_seconds
from autopar.solve.problem import Problem
from autopar.solve.windows import Open
from tests.solve.instances import legal_plans, problem
from tests.solve.oracles import transfers


def unlinked(seed: int) -> Problem:
    rng = random.Random(seed)
    drawn = (problem(rng, 5, 2, 3) for _ in range(100))
    return next(p for p in drawn if not p.linked)


def opened(given: Problem) -> Open:
    chain = relaxed_chain(given)
    relaxed = relax(chain)
    return Open(chain, relaxed, windows(least_of(chain, relaxed)).bound, 0)


def solved(given: Problem, target: float, budget: int) -> tuple[Plan | None, list[float]]:
    """The last plan, and all bounds on the way."""
    steps = list(solve_chain(opened(given), target, 0.0, budget, np.inf))
    plans = [step.plan for step in steps if step.plan is not None]
    prices = [price(given, *plan) for plan in plans]
    assert prices == sorted(prices, reverse=True)
    return plans[-1] if plans else None, [step.bound for step in steps]


def price(given: Problem, starts: tuple[int, ...], patterns: tuple[Pattern, ...]) -> float:
    """The objective of a plan."""
    boundaries, c = given.fold.boundaries(starts), given.configuration
    moved = [transfers(given, boundaries, stage) for stage in range(c.stages)]
    sent = np.array([sum(moved[rank :: c.pp]) for rank in range(c.pp)])
    seconds = np.array([p.seconds for p in patterns]) + sent
    lead = np.array([p.lead_seconds for p in patterns]) + sent / c.virtual_stages
    pace = given.configuration.num_microbatches * seconds - lead
    return float(lead.sum() + pace.max() + max(p.step_seconds for p in patterns))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("rows", [1, 20_000])
def test_the_best_plan_below_the_target(
    seed: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where stages have more patterns than can be listed at once."""
    monkeypatch.setattr(fronts, "MOST_ROWS", rows)
    given = unlinked(seed)
    exact = min((objective_seconds(given, *plan) for plan in legal_plans(given)), default=np.inf)
    target = 1.2 * exact if np.isfinite(exact) else 1e6
    monkeypatch.setattr(optimum, "PAUSE", 0.0)
    plan, bounds = solved(given, target, 200_000)
    if not np.isfinite(exact):
        assert plan is None
        return
    assert plan is not None
    assert max(bounds) <= exact * (1 + 1e-9)
    assert bounds[-1] >= exact * (1 - 1e-9)
    assert price(given, *plan) == pytest.approx(exact)


@pytest.mark.parametrize("seed", range(40))
def test_what_was_not_listed_costs_the_residual_at_least(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimum, "list_fronts", lambda requests: None)
    given = unlinked(seed)
    prices = [objective_seconds(given, *plan) for plan in legal_plans(given)]
    target = 1.5 * min(prices, default=1e3)
    monkeypatch.setattr(optimum, "PAUSE", 0.0)
    plan, bounds = solved(given, target, 2)
    best = min(prices, default=target)
    assert max(bounds) <= best * (1 + 1e-9)
    assert plan is None or price(given, *plan) >= best * (1 - 1e-9)
