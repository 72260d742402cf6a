"""The op-level optimisation of one layer class at one tp degree, its boundary given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulp

from autopar.cluster import Cluster
from autopar.graph import Graph
from autopar.solve.engine import run_solver
from autopar.solve.highs import Rows, rows_of
from autopar.solve.opmodel import OpModel, Weights, add_terms, build, read
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.states import R, State, shard

__all__ = ["LAYOUTS", "Weights", "shard_for_each", "shard_pattern"]

LAYOUTS = {"replicate": R, "sequence": shard(1)}


def shard_pattern(
    graph: Graph, pattern: Pattern, cluster: Cluster, tp: int, layout: str, batch: int,
    weights: Weights, *, solver: str = "highs",
) -> Sharding | None:  # fmt: skip
    """The cheapest sharding of a pattern, or None if the layout is impossible for it.

    ``batch`` is the micro-batch size at which time is traded against memory.
    """
    return shard_for_each(
        graph, pattern, cluster, tp, layout, batch, [weights], solver=solver
    )[0]  # fmt: skip


def shard_for_each(
    graph: Graph, pattern: Pattern, cluster: Cluster, tp: int, layout: str, batch: int,
    aims: Sequence[Weights], *, solver: str = "highs",
    boundary: Mapping[str, State] | None = None,
) -> list[Sharding | None]:  # fmt: skip
    """The cheapest sharding for each of ``aims``, which must agree in ``steps``.

    The model is built once, which takes longer than to solve it; the aims change its objective.
    ``boundary`` gives the states at the boundary where ``layout`` is none of ``LAYOUTS``.
    """
    states = pattern.boundary(LAYOUTS[layout]) if boundary is None else boundary
    fixed = {name: {state: 1} for name, state in states.items()}
    problem = pulp.LpProblem(f"shard_{tp}", pulp.LpMinimize)
    model = OpModel(graph, pattern, cluster, tp, fixed, batch, aims[0].steps, problem)
    if not build(model):
        return [None] * len(aims)
    rows = rows_of(problem)
    return [_solve_for(model, rows, weights, layout, solver) for weights in aims]


def _solve_for(
    model: OpModel, rows: Rows, weights: Weights, layout: str, solver: str
) -> Sharding | None:
    """The optimum under the prices of one aim."""
    terms: dict[Any, float] = {}
    add_terms(model, weights, terms)
    model.problem.setObjective(pulp.LpAffineExpression(terms))
    outcome = run_solver(
        model.problem, solver=solver, gap=1e-4, time_limit=20.0, rows=rows, relax_first=True
    )
    if outcome.status != "optimal":
        return None
    return read(model, layout)
