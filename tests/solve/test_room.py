"""What has no room is known before options are priced, and never wrongly so."""

from __future__ import annotations

import dataclasses

import pytest

from autopar.cluster import Cluster
from autopar.errors import InfeasiblePlanError
from autopar.solve.chain import relaxed_chain
from autopar.solve.infeasible import least_memory
from autopar.solve.intra import LAYOUTS
from autopar.solve.menus import Pricer
from autopar.solve.problem import Candidate, Problem
from autopar.solve.queue import Queue
from autopar.solve.room import has_room, priced
from autopar.solve.search import solve
from autopar.solve.shardings import Shardings
from autopar.solve.space import Task, configurations
from tests.zoo import reduced

CLUSTER = Cluster.load("h100-80g")
KIB = 1024


def _pricer(limit_bytes: int, **pins: object) -> Pricer:
    graph, classes = reduced("gpt", 8)
    free = {"context_bytes": 0, "communicator_bytes": 0, "activation_share": 0.1, "margin_bytes": 0}
    cluster = dataclasses.replace(CLUSTER, curves=CLUSTER.curves | {"reserve": free})
    return Pricer(Shardings(graph, classes, cluster), "fp32", "adamw", pins, limit_bytes)


def _needed(problem: Problem) -> float:
    """Peak of the fullest rank in the leanest plan of a problem, in bytes."""
    short = least_memory(relaxed_chain(problem))
    return float("inf") if short is None else short.needed_bytes


@pytest.mark.parametrize("pins", [{}, {"zero": 0, "recompute": "none"}, {"recompute": "full"}])
def test_no_room_is_a_proof(pins: dict[str, object]) -> None:
    """Over every configuration of four devices; many of those that do not fit are found out."""
    task = Task(4, 8, 8, (4,), pins, devices_per_node=2)
    found = list(configurations(task, list(LAYOUTS)))
    needed = [_needed(_pricer(2**40, **pins).problem(config)) for config in found]
    crowded, missed = 0, 0
    for part in (0.2, 0.5, 0.8):
        limit = int(sorted(needed)[int(part * len(needed))])
        pricer = _pricer(limit, **pins)
        for config, least in zip(found, needed, strict=True):
            if has_room(pricer, config):
                missed += least > limit
            else:
                assert least > limit, config
                crowded += 1
    assert 2 * crowded > missed, (crowded, missed)


def test_crowded_configurations_are_not_built_while_there_is_a_plan() -> None:
    task = Task(4, 8, 8, (4,), {}, devices_per_node=2)
    roomy, tight = _pricer(2**40), _pricer(60 * KIB)
    configs = list(configurations(task, list(LAYOUTS)))[:8]

    def refuse() -> Problem:
        raise AssertionError("built")

    fits = priced(roomy, configs[0])
    crowded = [dataclasses.replace(priced(tight, c), build=refuse) for c in configs]
    crowded = [c for c in crowded if not c.has_room()]
    assert crowded
    solution = solve([fits, *crowded], gap=0.0)
    assert solution.candidates["infeasible"] <= len(crowded)
    assert sum(solution.candidates.values()) == 2 * (1 + len(crowded))


def test_why_nothing_fits_is_told_of_crowded_configurations_too() -> None:
    task = Task(4, 8, 8, (4,), {}, devices_per_node=2)
    tight = _pricer(60 * KIB)
    found = [priced(tight, config) for config in configurations(task, list(LAYOUTS))]
    found = [candidate for candidate in found if not candidate.has_room()]
    closest = min(_needed(candidate.build()) for candidate in found)
    with pytest.raises(InfeasiblePlanError, match="short by") as caught:
        solve(found)
    assert f"memory_limit={int(closest)}" in caught.value.hint


def test_the_queue_keeps_crowded_configurations_apart() -> None:
    config = next(configurations(Task(1, 1, 1, (1,), {}), ["replicate"]))
    queue = Queue([Candidate(config, 0.0, lambda: None, lambda: False)])  # type: ignore[arg-type,return-value]
    assert queue.pop() is None
    assert [c.configuration for c in queue.crowded] == [config]
    assert not queue
