from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autopar.solve.chain import Chain, relaxed_chain
from autopar.solve.columns import hull, may_fit, relax, rounded_pattern, weights
from tests.solve.instances import problem


def _fillings(chain: Chain, rank: int, content: int) -> list[tuple[float, float, float]]:
    """(lead, pace, step seconds) of every way to fill the content within the room."""
    found = []
    layers = [c for c, n in enumerate(chain.counts[content]) for _ in range(n)]
    menus = [np.flatnonzero(chain.owner == c).tolist() for c in layers]
    for chosen in itertools.product(*menus):
        options = list(chosen)
        held = chain.held_bytes(chain.places[rank].depths)[options].sum()
        if held + chain.transient_bytes[options].max() <= chain.room_bytes:
            figures = chain.lead_seconds, chain.pace_seconds, chain.step_seconds
            lead, pace, step = (figure[options].sum() for figure in figures)
            found.append((lead, pace, step))
    return found


def test_hull_keeps_the_lower_left_corners() -> None:
    option_bytes, cost = np.array([1.0, 2.0, 3.0, 4.0, 2.0]), np.array([9.0, 8.0, 2.0, 1.0, 7.0])
    assert hull(option_bytes, cost) == [0, 2, 3]


@pytest.mark.parametrize("seed", range(24))
def test_bounds_and_patterns_hold_against_every_filling(seed: int) -> None:
    chain = relaxed_chain(problem(random.Random(seed), 4, 2, 3))
    relaxed = relax(chain)
    for rank, content in itertools.product(range(chain.pp), range(len(chain.counts))):
        fillings = _fillings(chain, rank, content)
        least = [min((f(*x) for x in fillings), default=np.inf) for f in (
            lambda a, b, g: a, lambda a, b, g: b, lambda a, b, g: g,
            lambda a, b, g: a + b + g)]  # fmt: skip
        bounds = (relaxed.lead, relaxed.pace, relaxed.step_seconds, relaxed.mixed)
        for figure, exact in zip(bounds, least, strict=True):
            assert figure[rank, content] <= exact + 1e-9
        for pattern in relaxed.patterns:
            real = [figure[rank, content] for figure in pattern]
            if np.isfinite(real[0]):
                assert np.isclose(real, fillings).all(axis=1).any()


@pytest.mark.parametrize("seed", range(6))
def test_a_rounded_pattern_has_the_reported_figures(seed: int) -> None:
    chain = relaxed_chain(problem(random.Random(100 + seed), 5, 2, 4))
    relaxed = relax(chain)
    for weighting in range(len(weights(chain))):
        lead, pace, step = relaxed.patterns[weighting]
        for content in np.flatnonzero(np.isfinite(lead[0])):
            taken = rounded_pattern(chain, chain.places[0].depths, int(content), weighting)
            assert taken.min() >= 0
            assert taken @ chain.lead_seconds == pytest.approx(lead[0, content])
            assert taken @ chain.pace_seconds == pytest.approx(pace[0, content])
            assert taken @ chain.step_seconds == pytest.approx(step[0, content])
            for c, number in enumerate(chain.counts[content]):
                assert taken[chain.owner == c].sum() == number


def test_plenty_of_memory_makes_the_relaxation_exact() -> None:
    given = problem(random.Random(1), 4, 1)
    chain = relaxed_chain(type(given)(**{**vars(given), "memory_limit_bytes": 10**9}))
    fastest = chain.counts.sum(axis=1) * chain.lead_seconds.min()
    assert relax(chain).lead[0] == pytest.approx(fastest)


def test_what_may_fit_holds_all_that_does_and_not_everything() -> None:
    left_out = 0
    for seed in range(24):
        chain = relaxed_chain(problem(random.Random(seed), 4, 2, 3))
        fits = may_fit(chain)
        left_out += int((~fits).sum())
        for rank, content in itertools.product(range(chain.pp), range(len(chain.counts))):
            assert fits[rank, content] or not _fillings(chain, rank, content)
    assert left_out > 20
