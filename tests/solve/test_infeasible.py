from __future__ import annotations

import random
from dataclasses import replace

import pytest

from autopar.errors import InfeasiblePlanError
from autopar.solve.chain import relaxed_chain
from autopar.solve.infeasible import Relaxation, UndiagnosedError, diagnose, least_memory
from autopar.solve.price import rank_memory_bytes
from autopar.solve.problem import Candidate, Configuration, Option, Problem
from autopar.solve.search import solve
from tests.solve.instances import candidates, legal_plans, problem

GIB = 1024**3


def _option(state: float, activation: float, transient: float) -> Option:
    sizes = (int(x * GIB) for x in (state, activation, transient))
    parts = {"gradient_bytes": int(state * GIB / 4), "optimizer_bytes": int(state * GIB / 2)}
    parts["reserve_bytes"] = int(activation * GIB / 2)
    return Option("k", 0, 0, "none", 1.0, 2.0, 0.1, *sizes, **parts)


def _problem(pp: int, limit: float) -> Problem:
    configuration = Configuration(pp, 4, 1, 1, 8, "1f1b")
    return Problem(configuration, (0,) * 4, ((_option(2.0, 0.5, 1.0),),), int(limit * GIB),
                   baseline_bytes=GIB, reserve_bytes=GIB // 4)  # fmt: skip


def _relaxation(name: str, problems: list[Problem]) -> Relaxation:
    """Values 0, 1, ... stand for these problems."""
    return Relaxation(
        range(len(problems)), lambda k: candidates([problems[k]]),
        lambda k, s: f"{name}: value {k} of {len(problems)}, pp={s.problem.configuration.pp}",
    )  # fmt: skip


def test_the_closest_configuration_is_named_with_its_shortfall() -> None:
    # pp=1: 1 + 8 + 2 + 1 = 12 GiB; pp=2, stage 0: 1 + 4 + 2 * 1 + 1 = 8 GiB
    with pytest.raises(InfeasiblePlanError) as caught:
        solve(candidates([_problem(1, 7.5), _problem(2, 7.5)]))
    message = str(caught.value)
    assert "short by 0.50 GiB" in message
    assert (
        "needs 8.00 GiB = parameters 1.00 GiB + gradients 1.00 GiB + optimizer 2.00 GiB"
        " + activations 1.00 GiB + transient 1.00 GiB + buffers 0.75 GiB"
        " + reserve 1.25 GiB"
    ) in message
    assert "stage 0 (ranks 0-3, layers 0-1) of pp=2 dp=4" in message
    assert caught.value.hint == f"fits with 0.50 GiB more per device (memory_limit={8 * GIB})"
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
    drawn = problem(random.Random(seed), 4, 2, 3)
    given = replace(drawn, linked=(), idle=frozenset(), memory_limit_bytes=10**6)
    found = least_memory(relaxed_chain(given))
    assert found is not None
    least = min(max(rank_memory_bytes(given, *plan)) for plan in legal_plans(given))
    assert found.needed_bytes == least


def test_only_relaxations_that_help_are_suggested() -> None:
    relaxations = [
        _relaxation("recompute", [_problem(1, 8.0)]),
        _relaxation("pp", [_problem(1, 8.0), _problem(4, 7.5), _problem(2, 12.0)]),
    ]
    with pytest.raises(InfeasiblePlanError) as caught:
        solve(candidates([_problem(1, 7.5)]), relaxations=relaxations)
    first, second = caught.value.hint.split("; or ")
    assert first.startswith("fits with 4.50 GiB more"), "four times the devices are no cheaper"
    assert second == "pp: value 1 of 3, pp=4", "the least change that fits"


def test_what_is_not_verified_in_time_is_not_suggested(monkeypatch) -> None:
    monkeypatch.setattr("autopar.solve.infeasible.SECONDS", 0.0)
    with pytest.raises(InfeasiblePlanError) as caught:
        solve(candidates([_problem(1, 7.5)]), relaxations=[_relaxation("pp", [_problem(4, 7.5)])])
    assert caught.value.hint == f"memory_limit={12 * GIB} or more"


def test_an_interrupt_does_not_lose_why_nothing_fits() -> None:
    def interrupted(value: int) -> list[Candidate]:
        raise KeyboardInterrupt

    relaxation = Relaxation([1], interrupted, lambda *_: "")
    with pytest.raises(InfeasiblePlanError, match=r"short by 4\.50 GiB"):
        solve(candidates([_problem(1, 7.5)]), relaxations=[relaxation])


def test_without_any_configuration_the_degrees_are_to_blame() -> None:
    assert "no configuration is legal" in str(diagnose([]))
    too_deep = replace(_problem(8, 7.5), layers=(0,) * 4)
    assert "no configuration is legal" in str(diagnose([too_deep]))


def test_who_only_wants_the_reason_gets_it_without_a_solve(monkeypatch) -> None:
    """Baselines that do not fit show the first line of the reason."""
    tight = replace(problem(random.Random(3), 4, 2), memory_limit_bytes=8, baseline_bytes=7)
    with pytest.raises(InfeasiblePlanError) as advised:
        solve(candidates([tight]))
    monkeypatch.setattr("autopar.solve.search._verify", None)
    with pytest.raises(UndiagnosedError) as plain:
        solve(candidates([tight]), advise=False)
    assert plain.value.diagnose().found == advised.value.found
