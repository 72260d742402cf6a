from __future__ import annotations

import random

import numpy as np
import pytest

from autopar.solve.bounds import windows
from autopar.solve.chain import relaxed_chain
from autopar.solve.columns import relax
from autopar.solve.price import objective_seconds, stages
from autopar.solve.windows import Open, offer_columns
from tests.solve.instances import legal_plans, problem


def _opened(seed: int) -> Open:
    chain = relaxed_chain(problem(random.Random(seed), 4, 2, 3))
    relaxed = relax(chain)
    return Open(chain, relaxed, windows(chain, relaxed).bound, 0)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("budget", [2, 5000])
def test_a_plan_outside_the_columns_is_no_better_than_promised(seed: int, budget: int) -> None:
    opened = _opened(seed)
    given = opened.chain.problem
    values = sorted(objective_seconds(given, *plan) for plan in legal_plans(given))
    if not values:
        return
    target = values[len(values) // 3]
    offer = offer_columns(opened, target, budget, np.inf)
    promise = min(target, offer.residual)
    offered = {(c.stage, c.start, c.end) for c in offer.choices.columns}
    for boundaries, options in legal_plans(given):
        if objective_seconds(given, boundaries, options) < promise * (1 - 1e-9):
            parts = enumerate(stages(given, boundaries))
            assert {(p, r.start, r.stop) for p, r in parts} <= offered


def test_columns_come_in_stage_order_with_transfers() -> None:
    opened = _opened(3)
    columns = offer_columns(opened, np.inf, 5000, np.inf).choices.columns
    assert [c.stage for c in columns] == sorted(c.stage for c in columns)
    transfers = opened.chain.transfer_seconds
    assert all(c.seconds == c.pattern.seconds + transfers[c.stage] for c in columns)
