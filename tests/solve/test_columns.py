from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from autopar.solve.chain import Chain, relaxed_chain
from autopar.solve.columns import hull, relax, rounded_pattern, weights
from tests.solve.instances import problem


def _fillings(chain: Chain, stage: int, content: int) -> list[tuple[float, float]]:
    """(seconds, step seconds) of every way to fill the content within the memory."""
    found = []
    layers = [c for c, n in enumerate(chain.counts[content]) for _ in range(n)]
    menus = [np.flatnonzero(chain.owner == c).tolist() for c in layers]
    for chosen in itertools.product(*menus):
        options = list(chosen)
        held = chain.state_bytes[options].sum()
        held += chain.depths[stage] * chain.activation_bytes[options].sum()
        if held + chain.transient_bytes[options].max() <= chain.room_bytes:
            found.append((chain.seconds[options].sum(), chain.step_seconds[options].sum()))
    return found


def test_hull_keeps_the_lower_left_corners() -> None:
    option_bytes, cost = np.array([1.0, 2.0, 3.0, 4.0, 2.0]), np.array([9.0, 8.0, 2.0, 1.0, 7.0])
    assert hull(option_bytes, cost) == [0, 2, 3]


@pytest.mark.parametrize("seed", range(12))
def test_bounds_and_patterns_hold_against_every_filling(seed: int) -> None:
    chain = relaxed_chain(problem(random.Random(seed), 4, 2, 3))
    relaxed, m = relax(chain), chain.num_microbatches
    for stage, content in itertools.product(range(chain.pp), range(len(chain.counts))):
        fillings = _fillings(chain, stage, content)
        least = [min((f(*x) for x in fillings), default=np.inf) for f in (
            lambda t, g: t, lambda t, g: g, lambda t, g: m * t + g)]  # fmt: skip
        bounds = (relaxed.seconds, relaxed.step_seconds, relaxed.mixed)
        for figure, exact in zip(bounds, least, strict=True):
            assert figure[stage, content] <= exact + 1e-9
        for seconds, step in relaxed.patterns:
            real = seconds[stage, content], step[stage, content]
            if np.isfinite(real[0]):
                assert np.isclose(real, fillings).all(axis=1).any()


@pytest.mark.parametrize("seed", range(6))
def test_a_rounded_pattern_has_the_reported_figures(seed: int) -> None:
    chain = relaxed_chain(problem(random.Random(100 + seed), 5, 2, 4))
    relaxed = relax(chain)
    for weighting in range(len(weights(chain))):
        seconds, step = relaxed.patterns[weighting]
        for content in np.flatnonzero(np.isfinite(seconds[0])):
            taken = rounded_pattern(chain, chain.depths[0], int(content), weighting)
            assert taken.min() >= 0
            assert taken @ chain.seconds == pytest.approx(seconds[0, content])
            assert taken @ chain.step_seconds == pytest.approx(step[0, content])
            for c, number in enumerate(chain.counts[content]):
                assert taken[chain.owner == c].sum() == number


def test_plenty_of_memory_makes_the_relaxation_exact() -> None:
    given = problem(random.Random(1), 4, 1)
    chain = relaxed_chain(type(given)(**{**vars(given), "memory_limit_bytes": 10**9}))
    fastest = chain.counts[:, 0] * chain.seconds.min()
    assert relax(chain).seconds[0] == pytest.approx(fastest)
