"""What is made of groups and configurations, and when."""

from __future__ import annotations

import random

from autopar.solve.price import problem_bound
from autopar.solve.problem import Candidate, Group, Problem
from autopar.solve.queue import Queue
from tests.solve.instances import problem


def instance(seed: int = 0) -> Problem:
    return problem(random.Random(seed), 4, 2, 3)


def refuse() -> list[Candidate]:
    raise AssertionError("listed")


def candidate(given: Problem, bound: float) -> Candidate:
    return Candidate(given.configuration, bound, lambda: given)


def test_a_problem_waits_for_its_turn() -> None:
    """Its own bound is above that of the other configuration, which is built first."""
    first, second = instance(1), instance(2)
    queue = Queue([candidate(first, 0.0), candidate(second, 1e-6)])
    assert queue.bound == 0.0
    assert queue.pop() is None
    assert queue.bound == 1e-6
    assert queue.pop() is None
    entries = [queue.pop(), queue.pop()]
    bounds = [problem_bound(entry.problem) for entry in entries if entry]
    assert bounds == sorted(problem_bound(p) for p in (first, second))
    assert {entry.number for entry in entries if entry} == {0, 1}
    assert not queue


def test_a_group_is_listed_when_nothing_else_may_be_faster() -> None:
    given = instance()
    queue = Queue([candidate(given, 1.0), Group(1e9, 7, refuse), Group(0.5, 5, lambda: [])])
    assert queue.considered == 13
    assert queue.bound == 0.5
    assert queue.pop() is None
    assert queue.considered == 8, "the empty group is no longer counted"
    while queue.bound < 1e9:
        queue.pop()


def test_bounds_never_fall() -> None:
    given = [instance(seed) for seed in range(8)]
    queue = Queue([Group(0.0, 8, lambda: [candidate(p, 0.1 * k) for k, p in enumerate(given)])])
    seen = []
    while queue:
        seen.append(queue.bound)
        queue.pop()
    assert seen == sorted(seen)
