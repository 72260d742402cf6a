"""The op-level optimisation of one layer class at one tp degree, its boundary given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autopar.cluster import Cluster
from autopar.graph import Graph
from autopar.solve.opmodel import OpModel, op_model, read
from autopar.solve.opprices import Prices, Weights, prices
from autopar.solve.program import Solver, solver_of
from autopar.strategies.sharding import Pattern, Sharding
from autopar.strategies.states import R, State, shard

__all__ = ["LAYOUTS", "Sharder", "Weights", "shard_for_each", "shard_pattern"]

LAYOUTS = {"replicate": R, "sequence": shard(1)}
GAP = 1e-4
TIME_LIMIT = 20.0


@dataclass
class Sharder:
    """A pattern's model in a solver, to be minimised for every layout, micro-batch and aim."""

    model: OpModel
    cluster: Cluster
    solver: str = "highs"
    _program: Solver | None = None
    _prices: dict[tuple[int, float], Prices] = field(default_factory=dict)

    def prices(self, batch: int, steps: float) -> Prices:
        """Those of the model's columns."""
        key = batch, steps
        if key not in self._prices:
            self._prices[key] = prices(self.model, self.cluster, batch, steps)
        return self._prices[key]

    def shard(
        self, layout: str, states: Mapping[str, State], batch: int, aims: Sequence[Weights],
        placements: Sequence[tuple[str, str]] = (),
    ) -> list[Sharding | None]:  # fmt: skip
        """The cheapest sharding for each aim with these states at the boundary, None if none is.

        ``batch`` is the micro-batch size at which time is traded against memory, ``placements``
        are those that parameters must have.
        """
        fixed = self.model.fixed(states, batch) if self.model.possible else None
        placed = self.model.placed(placements) if self.model.possible else None
        if fixed is None or placed is None:
            return [None] * len(aims)
        fixed |= placed
        if self._program is None:
            self._program = solver_of(
                self.model.program, solver=self.solver, gap=GAP, time_limit=TIME_LIMIT
            )
        found = []
        for weights in aims:
            cost = self.prices(batch, weights.steps).weighted(weights)
            values = self._program.minimise(cost, fixed)
            found.append(None if values is None else read(self.model, values, layout))
        return found


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
) -> list[Sharding | None]:  # fmt: skip
    """The cheapest sharding of a pattern for each of ``aims``."""
    sharder = Sharder(op_model(graph, pattern, tp), cluster, solver)
    return sharder.shard(layout, pattern.boundary(LAYOUTS[layout]), batch, aims)
