"""Fewer different options per class, where that costs nothing worth telling."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from autopar.solve.price import objective_seconds, violations
from autopar.solve.problem import Configuration, Option, Problem
from autopar.solve.search import solve
from autopar.solve.simpler import simpler
from tests.solve.instances import candidates, option, problem

ONE = Configuration(1, 1, 1, 1, 1, "1f1b")


def make(key: str, seconds: float, held: int) -> Option:
    drawn = option(random.Random(0), key)
    return replace(
        drawn, forward_seconds=seconds, backward_seconds=0.0, step_seconds=0.0, state_bytes=held,
        activation_bytes=0, transient_bytes=0,
    )  # fmt: skip


FAST, LEAN = make("fast", 1.0, 10), make("lean", 1.001, 1)


def chain(layers: int, limit: int, **rest: object) -> Problem:
    return Problem(ONE, (0,) * layers, ((FAST, LEAN),), limit, **rest)


def test_one_option_where_the_step_may_take_a_moment_more():
    given = chain(4, 31)
    mixed = (FAST, FAST, FAST, LEAN)  # four fast ones do not fit
    assert simpler(given, (0,), mixed, 4.004) == (LEAN,) * 4
    assert simpler(given, (0,), mixed, 4.002) == mixed


def test_the_rarest_option_goes_first():
    other = make("other", 1.0, 10)
    given = replace(chain(4, 100), menus=((FAST, LEAN, other),))
    assert simpler(given, (0,), (FAST, LEAN, FAST, other), 4.0011) == (FAST,) * 4


def test_rules_hold():
    given = chain(2, 100, linked=((0, 1),))
    two = replace(given, layers=(0, 1), menus=((FAST, LEAN), (FAST, LEAN)))
    assert simpler(two, (0,), (LEAN, LEAN), 9.0) == (LEAN, LEAN)


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_stays_legal_and_within_its_limit(seed):
    rng = random.Random(seed)
    drawn = problem(rng, rng.randint(3, 6), rng.randint(1, 2), 3)
    given = replace(drawn, idle=frozenset(), linked=(), memory_limit_bytes=2000)
    boundaries = solve(candidates([given]), gap=0.05).boundaries
    mixed = tuple(rng.choice(given.menus[member]) for member in given.layers)
    limit = rng.choice([1.0, 1.05, 1.3]) * objective_seconds(given, boundaries, mixed)
    found = simpler(given, boundaries, mixed, limit)
    assert not violations(given, boundaries, found)
    assert objective_seconds(given, boundaries, found) <= limit
    for member in set(given.layers):
        pairs = zip(given.layers, mixed, found, strict=True)
        before, after = zip(*((a, b) for c, a, b in pairs if c == member), strict=True)
        assert len(set(after)) <= len(set(before))


def test_the_search_gives_the_simpler_of_two_equally_good_plans():
    given = chain(4, 31)
    assert solve(candidates([given]), gap=0.05).options == (LEAN,) * 4
    assert set(solve(candidates([given]), gap=1e-6).options) == {FAST, LEAN}
