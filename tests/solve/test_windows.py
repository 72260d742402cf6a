from __future__ import annotations

import random

import numpy as np
import pytest

from autopar.solve.bounds import least_of, windows
from autopar.solve.chain import relaxed_chain
from autopar.solve.columns import relax
from autopar.solve.patterns import Listing
from autopar.solve.price import objective_seconds
from autopar.solve.windows import Arcs, Open, arcs_below, arcs_by_content, residual_seconds
from tests.solve.instances import intervals, legal_plans, problem


def _opened(seed: int) -> tuple[Open, Arcs, float]:
    """A chain, with the arcs below a third of its plans."""
    chain = relaxed_chain(problem(random.Random(seed), 4, 2, 3))
    relaxed = relax(chain)
    known = least_of(chain, relaxed)
    window = windows(known)
    given = chain.problem
    values = sorted(objective_seconds(given, *plan) for plan in legal_plans(given))
    target = values[len(values) // 3] if values else 1e3
    opened = Open(chain, relaxed, window.bound, 0)
    return opened, arcs_below(chain, known, window, target), target


@pytest.mark.parametrize("seed", range(50))
def test_plans_below_the_target_take_arcs_and_stay_within_their_caps(seed: int) -> None:
    opened, arcs, target = _opened(seed)
    chain, given = opened.chain, opened.chain.problem
    found = {arc: k for k, arc in enumerate(zip(arcs.rank, arcs.start, arcs.end, strict=True))}
    layers = given.fold.layers
    for boundaries, options in legal_plans(given):
        if objective_seconds(given, boundaries, options) < target * (1 - 1e-9):
            for rank, (start, end) in enumerate(intervals(given, boundaries)):
                k = found[rank, start, end]
                own = [options[i] for i in layers[start:end]]
                extra = sum(o.step_seconds for o in own) / chain.num_microbatches
                seconds = sum(o.microbatch_seconds for o in own) + extra * (chain.pp == 1)
                step = sum(o.step_seconds for o in own) * (chain.pp > 1)
                assert seconds < arcs.cap_seconds[k] + 1e-9
                assert step < arcs.cap_step[k] + 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_what_was_not_listed_costs_the_residual_at_least(seed: int) -> None:
    opened, arcs, _ = _opened(seed)
    chain, given = opened.chain, opened.chain.problem
    layers = given.fold.layers
    for (place, _), members in arcs_by_content(chain, arcs).items():
        assert {chain.places[r] for r in arcs.rank[members]} == {place}
        beyond = float(np.random.default_rng(seed).uniform(5, 30))
        residual = residual_seconds(chain, arcs, members, Listing((), beyond))
        taken = {(arcs.rank[k], arcs.start[k], arcs.end[k]) for k in members}
        for boundaries, options in legal_plans(given):
            for rank, (start, end) in enumerate(intervals(given, boundaries)):
                own = sum(options[i].microbatch_seconds for i in layers[start:end])
                if (rank, start, end) in taken and own >= beyond and chain.pp > 1:
                    assert objective_seconds(given, boundaries, options) >= residual * (1 - 1e-9)
    assert residual_seconds(chain, arcs, [], Listing((), np.inf)) == np.inf
