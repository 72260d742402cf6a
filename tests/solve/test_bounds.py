from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from autopar.solve.bounds import (
    bottleneck_path,
    cheapest_path,
    dense,
    good_paths,
    least_of,
    windows,
)
from autopar.solve.chain import relaxed_chain
from autopar.solve.columns import relax
from autopar.solve.price import objective_seconds
from autopar.solve.problem import Configuration
from tests.solve.instances import intervals, legal_plans, problem


def _costs(stages: int, layers: int, seed: int) -> np.ndarray:
    cost = np.random.default_rng(seed).uniform(1, 9, (stages, layers + 1, layers + 1))
    return np.where(np.triu(np.ones((layers + 1, layers + 1)), k=1) > 0, cost, np.inf)


def _paths(stages: int, layers: int) -> list[tuple[int, ...]]:
    return [(0, *rest) for rest in itertools.combinations(range(1, layers), stages - 1)]


def _along(cost: np.ndarray, path: tuple[int, ...]) -> list[float]:
    ends = [*path[1:], cost.shape[-1] - 1]
    return [float(cost[p, i, j]) for p, (i, j) in enumerate(zip(path, ends, strict=True))]


@pytest.mark.parametrize("seed", range(8))
def test_paths_are_the_best_of_all(seed: int) -> None:
    cost = _costs(1 + seed % 4, 6, seed)
    every = [_along(cost, path) for path in _paths(len(cost), 6)]
    cheapest, bottleneck = cheapest_path(cost), bottleneck_path(cost)
    assert cheapest is not None
    assert bottleneck is not None
    assert sum(_along(cost, cheapest)) == pytest.approx(min(sum(x) for x in every))
    assert max(_along(cost, bottleneck)) == pytest.approx(min(max(x) for x in every))


def test_more_stages_than_layers_have_no_path() -> None:
    assert cheapest_path(_costs(4, 3, 0)) is None


@pytest.mark.parametrize("seed", range(50))
def test_no_plan_is_cheaper_than_the_bound_of_its_intervals(seed: int) -> None:
    given = problem(random.Random(seed), 4, 2, 3)
    chain = relaxed_chain(given)
    window = windows(least_of(chain, relax(chain)))
    for boundaries, options in legal_plans(given):
        value = objective_seconds(given, boundaries, options) + 1e-9
        assert window.bound <= value
        for p, (i, j) in enumerate(intervals(given, boundaries)):
            assert window.through[p, i, j] <= value


def test_good_paths_improve_and_report_their_objective() -> None:
    lead, pace, step = (
        np.stack([_costs(4, 7, s) for s in seeds]) for seeds in ((1, 2), (3, 4), (5, 6))
    )
    values = []
    for value, path, chosen in good_paths(lead, pace, step):
        a, b, g = (
            [_along(figure[k], path)[s] for s, k in enumerate(chosen)]
            for figure in (lead, pace, step)
        )
        assert value == pytest.approx(sum(a) + max(b) + max(g))
        values.append(value)
    assert values == sorted(values, reverse=True)
    assert values


def test_dense_lays_contents_out_by_interval() -> None:
    drawn = (problem(random.Random(seed), 4, 2) for seed in range(99))
    chain = relaxed_chain(next(p for p in drawn if not p.cuts and not p.turns))
    laid = dense(chain, np.tile(np.arange(len(chain.counts), dtype=float), (chain.pp, 1)))
    assert laid[0, 1, 3] == chain.content[1, 3]
    assert laid[0, 3, 1] == np.inf


def test_intervals_that_are_not_allowed_are_infinite() -> None:
    given = replace(
        problem(random.Random(4), 4, 2), cuts=((0,), (1, 2)), turns=(),
        configuration=Configuration(2, 1, 1, 1, 4, "1f1b"),
    )  # fmt: skip
    chain = relaxed_chain(given)
    laid = dense(chain, np.zeros((2, len(chain.counts))))
    finite = {(int(s), int(i), int(j)) for s, i, j in zip(*np.nonzero(laid == 0), strict=True)}
    assert finite == {(0, 0, 1), (0, 0, 2), (1, 1, 4), (1, 2, 4)}


def test_cuts_that_leave_no_interval_have_no_path() -> None:
    given = replace(
        problem(random.Random(4), 4, 2), cuts=((0,), ()), turns=(),
        configuration=Configuration(2, 1, 1, 1, 4, "1f1b"),
    )  # fmt: skip
    chain = relaxed_chain(given)
    assert not chain.allowed.any()
    assert cheapest_path(dense(chain, np.zeros((2, len(chain.counts))))) is None
