from __future__ import annotations

import itertools
import math
import random

import pytest

from autopar.solve.chain import relaxed_chain
from autopar.solve.milp import Choices, Column, solve_milp
from autopar.solve.patterns import Pattern
from tests.solve.instances import problem


def _choices(seed: int) -> Choices:
    """Two patterns with random figures for every interval on every stage."""
    rng = random.Random(seed)
    chain = relaxed_chain(problem(rng, 5, 2))
    columns = []
    for s, i in itertools.product(range(chain.stages), range(5)):
        for j in range(i + 1, 6):
            for _ in range(2):
                seconds = rng.uniform(1, 3) * (j - i)
                lead = seconds * rng.uniform(0.2, 1.0)
                held, transient = rng.uniform(0, 0.5) * chain.room_bytes, rng.uniform(0, 9)
                pattern = Pattern((), seconds, rng.uniform(0, 9), lead, held, transient)
                columns.append(Column(s, i, j, pattern, seconds, lead))
    return Choices(chain, tuple(columns), 0.0, 0.0)


def _value(choices: Choices, columns: tuple[Column, ...]) -> float:
    """The objective; infinite where stages that share a rank do not fit."""
    pp, m = choices.chain.pp, choices.chain.num_microbatches
    ranks = [columns[p::pp] for p in range(pp)]
    for rank in ranks if choices.chain.shares_rank else []:
        patterns = [c.pattern for c in rank]
        peak = sum(p.held_bytes for p in patterns) + max(p.transient_bytes for p in patterns)
        if peak > choices.chain.room_bytes:
            return math.inf
    pace = max(sum(m * c.seconds - c.lead_seconds for c in rank) for rank in ranks)
    last = max(sum(c.step_seconds for c in rank) for rank in ranks)
    return sum(c.lead_seconds for c in columns) + pace + last


def _best(choices: Choices) -> float:
    stages = [[c for c in choices.columns if c.stage == s] for s in range(choices.chain.stages)]
    last = len(choices.chain.layers)
    return min(
        _value(choices, path)
        for path in itertools.product(*stages)
        if path[0].start == 0
        and path[-1].end == last
        and all(a.end == b.start for a, b in itertools.pairwise(path))
    )


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("seed", range(12))
def test_it_finds_the_best_columns_over_all_chains(seed: int, solver: str) -> None:
    choices = [_choices(seed), _choices(seed + 50)]
    expected = min(_best(c) for c in choices)
    answer = solve_milp(choices, expected * 1.1, solver=solver, gap=1e-7, time_limit=30.0)
    assert answer.chosen is not None
    k, columns = answer.chosen
    assert _value(choices[k], columns) == pytest.approx(expected, rel=1e-6)
    assert answer.bound == pytest.approx(expected, rel=1e-5)
    assert answer.binaries == 2 + sum(len(c.columns) for c in choices)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_columns_that_do_not_join_leave_nothing(solver: str) -> None:
    whole = _choices(1)
    holed = tuple(c for c in whole.columns if c.end != len(whole.chain.layers))
    choices = Choices(whole.chain, holed, 0.0, 0.0)
    answer = solve_milp([choices], 10.0, solver=solver, gap=1e-6, time_limit=30.0)
    assert answer.chosen is None
    assert answer.outcome.status == "infeasible"
    assert answer.bound == float("inf")
