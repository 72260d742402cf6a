"""Sharpened figures against every way to fill a stage, and against every plan."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autopar.solve.bounds import windows
from autopar.solve.chain import Chain, relaxed_chain
from autopar.solve.columns import relax, weights
from autopar.solve.grid import sharpen
from autopar.solve.price import objective_seconds
from tests.solve.instances import legal_plans, problem


def chain_of(seed: int) -> Chain:
    return relaxed_chain(problem(random.Random(seed), 5, 2, 4))


def least(chain: Chain, stage: int, content: int, weighting: int) -> float:
    """The least cost of all fillings that fit."""
    layers = [c for c, n in enumerate(chain.counts[content]) for _ in range(n)]
    menus = [np.flatnonzero(chain.owner == c).tolist() for c in layers]
    best, held = np.inf, chain.held_bytes(chain.depths[stage])
    for chosen in itertools.product(*menus):
        options = list(chosen)
        if held[options].sum() + chain.transient_bytes[options].max() <= chain.room_bytes:
            best = min(best, weights(chain)[weighting][options].sum())
    return float(best)


@pytest.mark.parametrize("seed", range(24))
def test_bounds_are_sharper_and_hold(seed: int) -> None:
    chain = chain_of(seed)
    relaxed = relax(chain)
    sharp = sharpen(chain, relaxed, 1e12).relaxed
    for stage, content in itertools.product(range(chain.stages), range(len(chain.counts))):
        assert sharp.lead[stage, content] >= relaxed.lead[stage, content]
        if chain.coupled or chain.stages == 1:
            continue
        assert sharp.lead[stage, content] <= least(chain, stage, content, 0) + 1e-9
        assert sharp.mixed[stage, content] <= least(chain, stage, content, 1) + 1e-9


@pytest.mark.parametrize("seed", range(24))
def test_patterns_fit_and_have_the_reported_figures(seed: int) -> None:
    chain = chain_of(seed)
    sharp = sharpen(chain, relax(chain), 1e12)
    for (place, content, weighting), taken in sharp.taken.items():
        stage = chain.places.index(place)
        held = taken @ chain.held_bytes(place.depth)
        assert held + chain.transient_bytes[taken > 0].max() <= place.fair_bytes
        assert all(
            taken[chain.owner == c].sum() == count for c, count in enumerate(chain.counts[content])
        )
        lead, pace, step = sharp.relaxed.patterns[weighting]
        assert lead[stage, content] == pytest.approx(taken @ chain.lead_seconds)
        assert pace[stage, content] == pytest.approx(taken @ chain.pace_seconds)
        assert step[stage, content] == pytest.approx(taken @ chain.step_seconds)


def test_something_is_sharpened() -> None:
    found = 0
    for seed in range(60):
        chain = chain_of(seed)
        relaxed = relax(chain)
        sharp = sharpen(chain, relaxed, 1e12)
        finite = np.isfinite(sharp.relaxed.lead)
        found += bool((sharp.relaxed.lead[finite] > relaxed.lead[finite] + 1e-9).any())
        found += bool(sharp.taken)
    assert found > 5


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("share", [0.9, 1.1, 1.5])
def test_no_plan_below_the_target_is_cheaper_than_the_bound(seed: int, share: float) -> None:
    given = problem(random.Random(seed), 4, 2, 3)
    chain = relaxed_chain(given)
    prices = [objective_seconds(given, *plan) for plan in legal_plans(given)]
    if not prices:
        return
    target = share * min(prices)
    sharp = sharpen(chain, relax(chain), target)
    assert min(target, windows(chain, sharp.relaxed).bound) <= min(prices) + 1e-9
