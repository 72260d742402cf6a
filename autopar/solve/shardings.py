"""The shardings that each layer class is offered: one per aim of the op-level optimisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autopar.cluster import Cluster
from autopar.cost.layer import LayerCost, layer_cost, replicated
from autopar.graph import Graph
from autopar.solve.intra import LAYOUTS, Sharder, Weights
from autopar.solve.joint import Layout, propose_layouts
from autopar.solve.opmodel import op_model
from autopar.solve.placements import Demand, Demands
from autopar.strategies.patterns import ENDS, Classes, restrict
from autopar.strategies.sharding import Sharding
from autopar.strategies.spec import name_of
from autopar.strategies.states import divides_batch

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
# The aims of which the optimisation over all classes proposes layouts.
OPEN_AIMS = ("fast", "lean")
PRODUCTS = frozenset({
    "linear", "matmul", "mm", "bmm", "scaled_dot_product_attention", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "einsum", "lstm", "gru",
})  # fmt: skip


@dataclass(frozen=True)
class Offered:
    """A sharding and the aims that led to it; none where nothing is split.

    ``demand`` are the placements that were asked for.
    """

    aims: tuple[str, ...]
    sharding: Sharding
    demand: Demand = ()

    @property
    def aim(self) -> str:
        """The first of the aims, "" where nothing is split."""
        return self.aims[0] if self.aims else ""


@dataclass
class Shardings:
    """The shardings of one traced model on one cluster, each worked out once and when asked for.

    ``device_samples`` is the global batch divided by the number of devices: what a product
    communicates grows with it, and what a gradient takes does not. ``demands`` are the placements
    that pins ask for: every different demand has shardings of its own.
    """

    graph: Graph
    classes: Classes
    cluster: Cluster
    solver: str = "highs"
    device_samples: float = 8.0
    demands: Demands = field(default_factory=Demands)
    _whole: dict[tuple[str, int], LayerCost] = field(default_factory=dict)
    _sharders: dict[tuple[str, int], Sharder] = field(default_factory=dict)
    _open: dict[int, dict[str, Layout]] = field(default_factory=dict)
    _found: dict[tuple[str, int, str], tuple[Offered, ...]] = field(default_factory=dict)
    _shares: dict[tuple[str, int, str, int], Sharding] = field(default_factory=dict)

    def of(self, pattern: str, tp: int, layout: str) -> tuple[Offered, ...]:
        """The different shardings of a pattern whose boundary has ``layout``; none if it cannot.

        Those that divide some product, if there are any: the others repeat work that they divide.
        """
        key = (pattern, tp, layout)
        if key not in self._found:
            each = [self._search(pattern, tp, layout, d) for d in self.demands.of(pattern)]
            self._found[key] = sum((self._best(own) for own in each), ()) if all(each) else ()
        return self._found[key]

    def share(self, member: str, tp: int, layout: str, offered: int) -> Sharding:
        """What of a sharding that is offered belongs to class ``member`` alone."""
        key = (member, tp, layout, offered)
        if key not in self._shares:
            whole = self.of(self.classes.home(member), tp, layout)[offered].sharding
            self._shares[key] = restrict(whole, self.classes.priced(member), self.graph)
        return self._shares[key]

    def _best(self, found: tuple[Offered, ...]) -> tuple[Offered, ...]:
        divided = tuple(o for o in found if self._divides(o.sharding, samples=True))
        return divided or found

    def under(self, demands: Demands) -> Shardings:
        """The same under other pins; the op-level models are shared."""
        if demands == self.demands:
            return self
        return replace(self, demands=demands, _open={}, _found={}, _shares={})

    def layouts(self, tp: int, *, wanted: bool = False) -> list[str]:
        """Layouts that every class can have, with a sharding that divides the work of some block.

        A tp degree that divides nothing would only repeat the work of a smaller one; where it is
        ``wanted`` nevertheless, every rank does all of it.
        """
        if tp == 1:
            return ["replicate"]
        found = [x for x in (*LAYOUTS, *self._open_layouts(tp)) if self._possible(tp, x)]
        whole = wanted and all(self.of(name, tp, "replicate") for name in self.classes.patterns)
        return found or ["replicate"] * whole

    def microbatch_multiple(self, tp: int, layout: str) -> int:
        """What the micro-batch size must be a multiple of: tp where the ranks share samples."""
        offered = (o for name in self.classes.patterns for o in self.of(name, tp, layout))
        return tp if any(o.sharding.divides_samples for o in offered) else 1

    def _open_layouts(self, tp: int) -> dict[str, Layout]:
        """Layouts "open.1", ... that the optimisation over all classes at once proposes.

        Only those in which something is divided that the layouts of ``LAYOUTS``, or one more
        degree of data parallelism, do not divide.
        """
        if tp not in self._open:
            batch, steps = self._open_reference(tp)
            names = self.classes.patterns
            aims = [
                {name: self._weights(name, AIMS[aim], batch, steps) for name in names}
                for aim in OPEN_AIMS
            ]
            found = propose_layouts(
                self.graph, self.classes, self.cluster, tp, batch, aims, solver=self.solver,
                models={name: self.sharder(name, tp).model for name in names},
                placements=self._placements(),
            )  # fmt: skip
            fresh = [proposed for proposed in found if self._is_new(proposed)]
            self._open[tp] = {
                f"open.{k}": {name: sharding.boundary for name, sharding in proposed.items()}
                for k, proposed in enumerate(fresh, 1)
            }
        return self._open[tp]

    def _placements(self) -> dict[str, Demand]:
        """What is asked of all layers of a pattern alike."""
        each = {name: self.demands.of(name) for name in self.classes.patterns}
        return {name: demands[0] for name, demands in each.items() if len(demands) == 1}

    def _is_new(self, proposed: dict[str, Sharding]) -> bool:
        known = any(
            all(s.boundary == self.classes.patterns[n].boundary(state) for n, s in proposed.items())
            for state in LAYOUTS.values()
        )
        samples = any(sharding.divides_samples for sharding in proposed.values())
        return (samples or not known) and self._divides_a_block(proposed.items())

    def _divides_a_block(self, found: Iterable[tuple[str, Sharding]]) -> bool:
        """Whether a block divides a product; a model without blocks is one layer."""
        own = [(name, sharding) for name, sharding in found]
        blocks = [sharding for name, sharding in own if name != ENDS]
        return any(self._divides(sharding) for sharding in blocks or [s for _, s in own])

    def _open_reference(self, tp: int) -> tuple[int, float]:
        """The samples of a tp group's step as one micro-batch, which bears all of its costs.

        Smaller ones would need the same traffic for activations in all, in more calls.
        """
        return tp * max(1, int(self.device_samples)), 1.0

    def _possible(self, tp: int, layout: str) -> bool:
        found = {name: self.of(name, tp, layout) for name in self.classes.patterns}
        each = ((name, o.sharding) for name, offered in found.items() for o in offered)
        return all(found.values()) and self._divides_a_block(each)

    def _search(
        self, pattern: str, tp: int, layout: str, demand: Demand = ()
    ) -> tuple[Offered, ...]:
        whole = self.classes.patterns[pattern]
        if tp == 1:
            return (Offered((), replicated(self.graph, whole), demand),)
        if layout in LAYOUTS:
            states, batch, steps = whole.boundary(LAYOUTS[layout]), REFERENCE_BATCH, Weights().steps
        else:
            states = self._open_layouts(tp)[layout][pattern]
            batch, steps = self._open_reference(tp)
        aims = [self._weights(pattern, shares, batch, steps) for shares in AIMS.values()]
        results = self.sharder(pattern, tp).shard(layout, states, batch, aims, demand)
        different: dict[Any, Sharding] = {}
        aims_of: dict[Any, tuple[str, ...]] = {}
        for aim, sharding in zip(AIMS, results, strict=True):
            if sharding is not None:
                key = tuple(sharding.strategies.items())
                different.setdefault(key, sharding)
                aims_of[key] = (*aims_of.get(key, ()), aim)
        return tuple(Offered(aims_of[key], each, demand) for key, each in different.items())

    def sharder(self, pattern: str, tp: int) -> Sharder:
        """The pattern's model at one degree, which serves for all layouts."""
        key = (pattern, tp)
        if key not in self._sharders:
            model = op_model(self.graph, self.classes.patterns[pattern], tp)
            self._sharders[key] = Sharder(model, self.cluster, self.solver)
        return self._sharders[key]

    def _weights(self, pattern: str, shares: Weights, batch: int, steps: float) -> Weights:
        """Prices per byte from shares of the unsplit layer's time, so that no size is special."""
        cost = self._unsplit(pattern, batch)
        seconds = cost.forward_seconds + cost.backward_seconds
        return Weights(
            parameter=shares.parameter * seconds / max(1, 4 * cost.parameter_elements),
            activation=shares.activation * seconds / max(1, cost.saved_bytes),
            steps=steps,
        )

    def _unsplit(self, pattern: str, batch: int) -> LayerCost:
        key = (pattern, batch)
        if key not in self._whole:
            whole = self.classes.patterns[pattern]
            sharding = replicated(self.graph, whole)
            self._whole[key] = layer_cost(self.graph, whole, sharding, self.cluster, batch)
        return self._whole[key]

    def _divides(self, sharding: Sharding, *, samples: bool = False) -> bool:
        """Whether any product or attention runs on shards; those of samples count on request.

        To divide nothing but samples is what data parallelism does.
        """
        values = self.graph.values
        return any(
            state.kind == "S" and (samples or not divides_batch(state, values[name]))
            for index, strategy in sharding.strategies.items()
            if name_of(self.graph.ops[index]) in PRODUCTS
            for name, state in strategy.inputs
        )


def pinned_sharding(offered: Sequence[Offered], aim: str, demand: Demand) -> int:
    """The sharding of a class with the pinned aim.

    Where that would divide none of its work, the one with the next aim that does, those that
    save more memory first.
    """
    names = list(AIMS)
    order = [*names[names.index(aim) :], *reversed(names[: names.index(aim)])]
    return next(
        k for aim in order for k, each in enumerate(offered)
        if aim in each.aims and each.demand == demand
    )  # fmt: skip
