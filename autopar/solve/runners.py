"""Runners-up: good plans of other families, from what the search has built and little more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from autopar.errors import InfeasiblePlanError
from autopar.solve.problem import Configuration, Problem, Solution

COUNT = 3
# Problems of one family that are looked at, and seconds for all families together.
PER_FAMILY = 3
SECONDS = 0.25

Family = tuple[int, int, int, str, int, int]


def family(config: Configuration) -> Family:
    """What makes plans different in kind: the mesh, and how the pipeline is run."""
    schedule = config.schedule if config.pp > 1 else ""
    return config.pp, config.dp, config.tp, schedule, config.virtual_stages, config.replicas


def runners_up(
    best: Configuration, problems: Iterable[Problem], find: Callable[[Problem], Solution],
    deadline: float,
) -> tuple[Solution, ...]:  # fmt: skip
    """Up to ``COUNT`` plans of families other than that of ``best``, fastest first.

    They are good, not proven to be the best of their families.

    Args:
        best: the configuration of the plan.
        problems: what else was built, most promising first.
        find: some good plan of a problem; raises InfeasiblePlanError.
        deadline: on the monotonic clock; ``SECONDS`` from now at most.
    """
    deadline = min(deadline, time.monotonic() + SECONDS)
    found: dict[Family, Solution] = {}
    tried = {family(best): PER_FAMILY}
    for problem in problems:
        kind = family(problem.configuration)
        if time.monotonic() > deadline:
            break
        if tried.setdefault(kind, 0) >= PER_FAMILY:
            continue
        tried[kind] += 1
        try:
            runner = find(problem)
        except InfeasiblePlanError:
            continue
        if kind not in found or runner.objective_seconds < found[kind].objective_seconds:
            found[kind] = runner
    return tuple(sorted(found.values(), key=lambda s: s.objective_seconds)[:COUNT])
