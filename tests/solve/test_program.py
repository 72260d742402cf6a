"""Programs as arrays: both solvers, several objectives, fixed columns, joined programs."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest

from autopar.solve.program import ONE, Program, solver_of


def covering(seed: int, size: int = 8) -> Program:
    """Every row wants two of its four columns, or one where the first is taken."""
    rng, program = random.Random(seed), Program()
    columns = [program.column(whole=True) for _ in range(size)]
    for _ in range(5):
        row = rng.sample(columns, 4)
        program.row(row, [ONE], least=rng.choice([0.0, 1.0]))
    return program


def cost(program: Program, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-6, 1e-4, len(program.whole))


def optimum(program: Program, prices: np.ndarray, fixed: dict[int, float]) -> float:
    """By trying everything."""
    best = np.inf
    for taken in itertools.product((0.0, 1.0), repeat=len(program.whole) - 1):
        values = np.array([1.0, *taken])
        rows = [
            sum(f * values[i] for i, f in zip(program.index[a:b], program.factor[a:b], strict=True))
            for a, b in itertools.pairwise(program.start)
        ]
        inside = all(x <= r <= y for x, r, y in zip(program.least, rows, program.most, strict=True))
        if inside and all(values[c] == v for c, v in fixed.items()):
            best = min(best, float(prices @ values))
    return best


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize("seed", range(3))
def test_each_objective_and_fixing_has_its_own_optimum(seed: int, solver: str) -> None:
    program = covering(seed)
    engine = solver_of(program, solver=solver, gap=0.0, time_limit=20.0)
    for k, fixed in enumerate([{}, {1: 0.0}, {2: 1.0, 3: 0.0}, {}]):
        prices = cost(program, k)
        values = engine.minimise(prices, fixed)
        assert values is not None
        assert prices @ values == pytest.approx(optimum(program, prices, fixed), rel=1e-6)
        assert all(values[c] == pytest.approx(v, abs=1e-6) for c, v in fixed.items())


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_a_relaxation_that_is_not_whole_is_branched_on(solver: str) -> None:
    """A triangle's vertex cover: one half each without integrality, two vertices with it."""
    program = Program()
    a, b, c = (program.column(whole=True) for _ in range(3))
    for pair in ((a, b), (b, c), (a, c)):
        program.row(pair, least=1.0)
    engine = solver_of(program, solver=solver, gap=0.0, time_limit=20.0)
    prices = np.array([0.0, 1.0, 1.0, 1.0])
    for _ in range(2):
        values = engine.minimise(prices, {})
        assert values is not None
        assert prices @ values == pytest.approx(2.0)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_what_cannot_be_has_no_values_and_spoils_nothing(solver: str) -> None:
    program = Program()
    a, b = program.column(whole=True), program.column(whole=True)
    program.row([a, b], least=1.0, most=1.0)
    engine = solver_of(program, solver=solver, gap=0.0, time_limit=20.0)
    assert engine.minimise(np.ones(3), {a: 0.0, b: 0.0}) is None
    values = engine.minimise(np.array([0.0, 1.0, 2.0]), {})
    assert values is not None
    assert values.tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_joined_programs_keep_their_rows() -> None:
    joined, parts = Program(), [covering(seed, 6) for seed in (1, 2)]
    shifts = [joined.append(part) for part in parts]
    assert shifts == [1, 8]
    prices = [cost(part, k) for k, part in enumerate(parts)]
    engine = solver_of(joined, solver="highs", gap=0.0, time_limit=20.0)
    values = engine.minimise(np.concatenate([[0.0], *prices]), {})
    assert values is not None
    alone = sum(optimum(part, own, {}) for part, own in zip(parts, prices, strict=True))
    assert np.concatenate([[0.0], *prices]) @ values == pytest.approx(alone, rel=1e-6)


def test_the_time_limit_is_that_of_each_run() -> None:
    """Not of all runs together, which an engine that serves a whole search would soon exceed."""
    program, end = covering(1, 40), time.monotonic() + 0.6
    engine = solver_of(program, solver="highs", gap=1e-6, time_limit=0.2)
    for k in itertools.count():
        assert engine.minimise(cost(program, k), {}) is not None
        if time.monotonic() > end:
            break
