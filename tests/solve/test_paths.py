"""Paths under two thresholds against every path with every pattern."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest

from autopar.solve.paths import Network, Path, best_paths


def network(rng: random.Random, ranks: int, layers: int) -> Network:
    """Some intervals are missing, some fronts empty."""
    arcs = sorted(
        ((p, i, j) for p in range(ranks) for i in range(layers) for j in range(i + 1, layers + 1)
         if rng.random() < 0.8),
        key=lambda arc: (arc[0], arc[2]),
    )  # fmt: skip
    lead, pace, step = np.full((3, 6, 3), np.inf)
    for row in range(6):
        count = rng.randint(1, 3)
        for figure, most in ((lead, 9), (pace, 60), (step, 30)):
            figure[row, :count] = [rng.uniform(0, most) for _ in range(count)]
    columns = np.array(arcs, dtype=np.int64).reshape(-1, 3).T
    front = np.array([rng.randrange(6) for _ in arcs], dtype=np.int64)
    return Network(layers, ranks, *columns, front, lead, pace, step, np.arange(6))


def price(net: Network, arcs: tuple[int, ...], patterns: tuple[int, ...]) -> float:
    taken = net.front[list(arcs)], list(patterns)
    return float(net.lead[taken].sum() + net.pace[taken].max() + net.step[taken].max())


def every_plan(net: Network) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    by_rank = [np.flatnonzero(net.rank == p).tolist() for p in range(net.ranks)]
    for arcs in itertools.product(*by_rank):
        starts = [0, *(int(net.end[a]) for a in arcs)]
        joined = all(net.start[a] == at for a, at in zip(arcs, starts, strict=False))
        if joined and starts[-1] == net.layers:
            listed = [np.flatnonzero(np.isfinite(net.lead[net.front[a]])).tolist() for a in arcs]
            for patterns in itertools.product(*listed):
                yield arcs, patterns


def best_path(net: Network, target: float, slack: float = 0.0) -> Path | None:
    """The last of the plans, each of which is better; bounds below the target hold for the last."""
    steps = list(best_paths(net, target, slack))
    plans = [path for _, path in steps if path is not None]
    seconds = [path.seconds for path in plans]
    assert all(later < earlier for earlier, later in itertools.pairwise([target, *seconds]))
    last = seconds[-1] if seconds else target
    assert all(bound <= last * (1 + 1e-12) for bound, _ in steps)
    assert steps[-1][0] == (last * (1 - slack) if seconds else target)
    return plans[-1] if plans else None


@pytest.mark.parametrize("seed", range(60))
def test_equal_to_trying_every_plan(seed: int) -> None:
    rng = random.Random(seed)
    net = network(rng, rng.randint(1, 3), 4)
    prices = [price(net, *plan) for plan in every_plan(net)]
    exact = min(prices, default=np.inf)
    found = best_path(net, np.inf)
    if not np.isfinite(exact):
        assert found is None
        return
    assert found is not None
    assert found.seconds == pytest.approx(exact)
    assert price(net, tuple(found.arcs), tuple(found.patterns)) == pytest.approx(exact)
    assert best_path(net, exact * (1 - 1e-9)) is None
    near = best_path(net, exact * 1.5, slack=0.1)
    assert near is not None
    assert near.seconds * (1 - 0.1) <= exact * (1 + 1e-9)


def test_a_network_without_arcs_has_no_path() -> None:
    none = np.zeros(0, dtype=np.int64)
    empty = Network(2, 1, none, none, none, none, *np.zeros((3, 0, 0)), none)
    assert best_path(empty, np.inf) is None
