from __future__ import annotations

import itertools
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
    for p, i in itertools.product(range(chain.pp), range(5)):
        for j in range(i + 1, 6):
            for _ in range(2):
                seconds = rng.uniform(1, 3) * (j - i)
                columns.append(Column(p, i, j, Pattern((), seconds, rng.uniform(0, 9)), seconds))
    return Choices(chain, tuple(columns), 0.0, 0.0)


def _value(choices: Choices, columns: tuple[Column, ...]) -> float:
    seconds = [c.seconds for c in columns]
    repeats = choices.chain.num_microbatches - 1
    return sum(seconds) + repeats * max(seconds) + max(c.step_seconds for c in columns)


def _best(choices: Choices) -> float:
    stages = [[c for c in choices.columns if c.stage == p] for p in range(choices.chain.pp)]
    last = len(choices.chain.layers)
    return min(
        _value(choices, path)
        for path in itertools.product(*stages)
        if path[0].start == 0
        and path[-1].end == last
        and all(a.end == b.start for a, b in itertools.pairwise(path))
    )


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("seed", [0, 1, 2, 5])
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
