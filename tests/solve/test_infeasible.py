from __future__ import annotations

import random
from dataclasses import replace

import pytest

from autopar.errors import InfeasiblePlanError
from autopar.solve.chain import relaxed_chain
from autopar.solve.infeasible import diagnose, least_memory
from autopar.solve.price import rank_memory_bytes
from autopar.solve.problem import Configuration, Option, Problem
from autopar.solve.search import solve
from tests.solve.instances import candidates, legal_plans, problem

GIB = 1024**3


def _option(state: float, activation: float, transient: float) -> Option:
    sizes = (int(x * GIB) for x in (state, activation, transient))
    return Option("k", 0, 0, "none", 1.0, 2.0, 0.1, *sizes)


def _problem(pp: int, limit: float) -> Problem:
    configuration = Configuration(pp, 4, 1, 1, 8, "1f1b")
    return Problem(configuration, (0,) * 4, ((_option(2.0, 0.5, 1.0),),), int(limit * GIB),
                   baseline_bytes=GIB)  # fmt: skip


def test_the_closest_configuration_is_named_with_its_shortfall() -> None:
    # pp=1: 1 + 8 + 2 + 1 = 12 GiB; pp=2, stage 0: 1 + 4 + 2 * 1 + 1 = 8 GiB
    with pytest.raises(InfeasiblePlanError) as caught:
        solve(candidates([_problem(1, 7.5), _problem(2, 7.5)]))
    message = str(caught.value)
    assert "short by 0.50 GiB" in message
    assert "needs 8.00 GiB = state 4.00 GiB + activations 2.00 GiB + transient 1.00 GiB" in message
    assert "stage 0 (ranks 0-3, layers 0-1) of pp=2 dp=4" in message
    assert f"memory_limit={8 * GIB}" in caught.value.hint
    assert caught.value.expected == "at most 7.50 GiB on every device"


def test_the_suggested_limit_is_just_enough() -> None:
    for limit, fits in ((8 * GIB, True), (8 * GIB - 1, False)):
        given = replace(_problem(2, 1.0), memory_limit_bytes=limit)
        if fits:
            assert solve(candidates([given])).status == "optimal"
        else:
            with pytest.raises(InfeasiblePlanError, match="short by 1 bytes"):
                solve(candidates([given]))


@pytest.mark.parametrize("seed", range(15))
def test_least_memory_is_the_least_of_all_plans(seed: int) -> None:
    """Of plans whose ranks hold several stages it is one of the leanest."""
    drawn = problem(random.Random(seed), 4, 2, 3)
    given = replace(drawn, linked=(), uniform=(), memory_limit_bytes=10**6)
    found = least_memory(relaxed_chain(given))
    assert found is not None
    least = min(max(rank_memory_bytes(given, *plan)) for plan in legal_plans(given))
    several = given.configuration.virtual_stages > 1
    assert least <= found.needed_bytes <= least * (1.2 if several else 1.0)


def test_only_relaxations_that_help_are_suggested() -> None:
    tight = _problem(1, 7.5)
    relaxations = [
        ("unpin recompute", lambda: candidates([_problem(1, 8.0)])),
        ("unpin pp", lambda: candidates([_problem(4, 7.5)])),
    ]
    with pytest.raises(InfeasiblePlanError) as caught:
        solve(candidates([tight]), relaxations=relaxations)
    assert caught.value.hint.startswith("unpin pp; or memory_limit=")
    assert "recompute" not in caught.value.hint


def test_without_any_configuration_the_degrees_are_to_blame() -> None:
    assert "no configuration is legal" in str(diagnose([]))
    too_deep = replace(_problem(8, 7.5), layers=(0,) * 4)
    assert "no configuration is legal" in str(diagnose([too_deep]))
