from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from autopar.solve.chain import relaxed_chain
from autopar.solve.pooled import may_reach
from tests.solve.instances import on_two_kinds, optimum, problem


def test_what_can_be_reached_is_never_excluded() -> None:
    excluded, hopeless = 0, 0
    for seed in range(150):
        rng = random.Random(seed)
        given = problem(rng, rng.randint(1, 6), rng.randint(1, 3), 3)
        given = dataclasses.replace(given, memory_limit_bytes=rng.randint(30, 300))
        if seed % 3 == 0 and given.configuration.pp > 1:
            given = on_two_kinds(rng, given)
        chain, best = relaxed_chain(given), optimum([given])
        if np.isfinite(best):
            assert may_reach(chain)
            assert may_reach(chain, best * (1 + 1e-9))
            excluded += not may_reach(chain, 0.9 * best)
        else:
            hopeless += not may_reach(chain)
    assert excluded > 20
    assert hopeless > 10


@pytest.mark.parametrize("slack", [0.98, 1.02])
def test_equal_layers_fill_their_ranks(slack: float) -> None:
    """Where ranks are alike and one option is left, room or time decides to the last per cent."""
    given = problem(random.Random(3), 1, 1, 2)
    option = dataclasses.replace(given.menus[0][0], activation_bytes=0, transient_bytes=0,
                                 waiting_bytes=0, state_bytes=100, step_seconds=0.0)  # fmt: skip
    config = dataclasses.replace(given.configuration, pp=2, num_microbatches=8, schedule="1f1b",
                                 virtual_stages=1)  # fmt: skip
    even = dataclasses.replace(
        given, configuration=config, layers=(0,) * 8, menus=((option,),), linked=(), cuts=(),
        turns=(), baseline_bytes=0, memory_limit_bytes=int(400 * slack), cut_seconds=(),
    )  # fmt: skip
    assert may_reach(relaxed_chain(even)) == (slack > 1)
    wide = dataclasses.replace(even, memory_limit_bytes=10_000)
    step = 8 * option.microbatch_seconds + 7 * 4 * option.microbatch_seconds
    assert may_reach(relaxed_chain(wide), slack * step) == (slack > 1)
