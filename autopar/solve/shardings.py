"""The shardings that each layer class is offered: one per aim of the op-level optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopar.cluster import Cluster
from autopar.cost.layer import layer_cost, replicated
from autopar.graph import Graph
from autopar.solve.intra import LAYOUTS, Weights, shard_for_each
from autopar.strategies.patterns import ENDS, Classes
from autopar.strategies.sharding import Sharding
from autopar.strategies.spec import name_of

# What the op-level optimisation is asked for: the fastest layer, and three that give up time to
# hold less. The figures are shares of the unsplit layer's time that halving all of its
# parameters, or all that it keeps for backward, may cost at most, times two.
AIMS = {
    "fast": Weights(),
    "lean": Weights(parameter=0.5, activation=0.05),
    "leanest": Weights(parameter=10.0, activation=1.0),
    "smallest": Weights(parameter=100.0),
}
# The micro-batch size at which op-level time is traded against memory.
REFERENCE_BATCH = 1
PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "scaled_dot_product_attention"})


@dataclass(frozen=True)
class Offered:
    """A sharding under the name of the first aim that led to it; "" where nothing is split."""

    aim: str
    sharding: Sharding


@dataclass
class Shardings:
    """The shardings of one traced model on one cluster, each worked out once and when asked for."""

    graph: Graph
    classes: Classes
    cluster: Cluster
    solver: str = "highs"
    _found: dict[tuple[str, int, str], tuple[Offered, ...]] = field(default_factory=dict)

    def of(self, pattern: str, tp: int, layout: str) -> tuple[Offered, ...]:
        """The different shardings of a pattern whose boundary has ``layout``; none if it cannot.

        Those that divide some product, if there are any: the others repeat work that they divide.
        """
        key = (pattern, tp, layout)
        if key not in self._found:
            found = self._search(pattern, tp, layout)
            divided = tuple(o for o in found if self._divides(o.sharding))
            self._found[key] = divided or found
        return self._found[key]

    def layouts(self, tp: int) -> list[str]:
        """Layouts that every class can have, with a sharding that divides the work of some block.

        A tp degree that divides nothing would only repeat the work of a smaller one.
        """
        return ["replicate"] if tp == 1 else [x for x in LAYOUTS if self._possible(tp, x)]

    def _possible(self, tp: int, layout: str) -> bool:
        found = {name: self.of(name, tp, layout) for name in self.classes.patterns}
        blocks = [o for name, offered in found.items() if name != ENDS for o in offered]
        return all(found.values()) and any(self._divides(o.sharding) for o in blocks)

    def _search(self, pattern: str, tp: int, layout: str) -> tuple[Offered, ...]:
        whole = self.classes.patterns[pattern]
        if tp == 1:
            return (Offered("", replicated(self.graph, whole)),)
        aims = [self._weights(pattern, shares) for shares in AIMS.values()]
        results = shard_for_each(
            self.graph, whole, self.cluster, tp, layout, REFERENCE_BATCH, aims, solver=self.solver
        )
        different: dict[Any, Offered] = {}
        for aim, sharding in zip(AIMS, results, strict=True):
            if sharding is not None:
                key = tuple(sharding.strategies.items())
                different.setdefault(key, Offered(aim, sharding))
        return tuple(different.values())

    def _weights(self, pattern: str, shares: Weights) -> Weights:
        """Prices per byte from shares of the unsplit layer's time, so that no size is special."""
        whole = self.classes.patterns[pattern]
        cost = layer_cost(
            self.graph, whole, replicated(self.graph, whole), self.cluster, REFERENCE_BATCH
        )
        seconds = cost.forward_seconds + cost.backward_seconds
        return Weights(
            parameter=shares.parameter * seconds / max(1, 4 * cost.parameter_elements),
            activation=shares.activation * seconds / max(1, cost.saved_bytes),
        )

    def _divides(self, sharding: Sharding) -> bool:
        """Whether any product or attention runs on shards."""
        return any(
            state.kind == "S"
            for index, strategy in sharding.strategies.items()
            if name_of(self.graph.ops[index]) in PRODUCTS
            for _, state in strategy.inputs
        )
