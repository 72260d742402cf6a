"""Options of each layer class under a configuration, priced by arithmetic on cached costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from autopar.cluster import Cluster
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.data_parallel import MASTER_BYTES, Setting, dp_cost, state_bytes
from autopar.cost.layer import LayerCost, boundary_bytes, layer_cost, replicated
from autopar.graph import Graph
from autopar.solve.intra import Weights, shard_for_each
from autopar.solve.problem import Candidate, Configuration, Option, Problem
from autopar.solve.space import RECOMPUTE, ZERO
from autopar.strategies.patterns import ENDS, Classes, restrict
from autopar.strategies.sharding import Sharding, local_elements
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
LAYOUTS = tuple(f"{kind}:{aim}" for kind in ("replicate", "sequence") for aim in AIMS)
# The micro-batch size at which op-level time is traded against memory.
REFERENCE_BATCH = 1
PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "scaled_dot_product_attention"})


@dataclass
class Pricer:
    """Shardings and prices of one traced model on one cluster, each worked out once."""

    graph: Graph
    classes: Classes
    cluster: Cluster
    precision: str
    optimizer: str | int
    pins: dict[str, Any]
    memory_limit_bytes: int
    solver: str = "highs"
    _shardings: dict[tuple[str, int, str], Sharding | None] = field(default_factory=dict)
    _costs: dict[tuple[str, int, str, int], LayerCost] = field(default_factory=dict)

    def sharding(self, pattern: str, tp: int, layout: str) -> Sharding | None:
        """The sharding of a pattern; ``layout`` is "kind:aim", e.g. "sequence:fast"."""
        key = (pattern, tp, layout)
        if key not in self._shardings:
            self._shard(pattern, tp, layout.partition(":")[0])
        return self._shardings[key]

    def _shard(self, pattern: str, tp: int, kind: str) -> None:
        """Finds the shardings for every aim at once."""
        whole = self.classes.patterns[pattern]
        if tp == 1:
            self._shardings[pattern, tp, kind] = replicated(self.graph, whole)
            return
        aims = [self._weights(pattern, shares) for shares in AIMS.values()]
        found = shard_for_each(
            self.graph, whole, self.cluster, tp, kind, REFERENCE_BATCH, aims, solver=self.solver
        )
        for aim, sharding in zip(AIMS, found, strict=True):
            self._shardings[pattern, tp, f"{kind}:{aim}"] = sharding

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

    def layouts(self, tp: int) -> list[str]:
        """Layouts in which every block divides some of its work; equal ones are kept once.

        A tp degree that divides nothing would only repeat the work of a smaller one.
        """
        if tp == 1:
            return ["replicate"]
        seen: dict[Any, str] = {}
        for layout in LAYOUTS:
            shardings = {p: self.sharding(p, tp, layout) for p in self.classes.patterns}
            blocks = [s for p, s in shardings.items() if p != ENDS]
            if all(shardings.values()) and all(s and self._divides(s) for s in blocks):
                kind = layout.partition(":")[0]
                key = (kind, *(tuple(s.strategies.items()) for s in shardings.values() if s))
                seen.setdefault(key, layout)
        return list(seen.values())

    def _divides(self, sharding: Sharding) -> bool:
        """Whether any product or attention runs on shards."""
        return any(
            state.kind == "S"
            for index, strategy in sharding.strategies.items()
            if name_of(self.graph.ops[index]) in PRODUCTS
            for _, state in strategy.inputs
        )

    def cost(self, member: str, config: Configuration) -> LayerCost:
        """The price of one layer of class ``member`` without data parallelism."""
        key = (member, config.tp, config.layout, config.microbatch_size)
        if key not in self._costs:
            pattern = self.classes.priced(member)
            whole = self.sharding(self.classes.home(member), config.tp, config.layout)
            assert whole is not None, "configurations are made from feasible layouts only"
            own = restrict(whole, pattern, self.graph)
            self._costs[key] = layer_cost(
                self.graph, pattern, own, self.cluster, config.microbatch_size
            )
        return _contended(self._costs[key], self.cluster, config)

    def setting(self, config: Configuration) -> Setting:
        """The part of a configuration that data parallelism sees."""
        return Setting(
            config.pp, config.dp, config.tp, config.num_microbatches, config.schedule,
            self.precision, self.optimizer,
        )  # fmt: skip

    def menu(self, member: str, config: Configuration) -> tuple[Option, ...]:
        """Every option of a class that the pins allow."""
        zeros = [self.pins["zero"]] if "zero" in self.pins else ZERO
        zeros = [0] if config.dp == 1 and "zero" not in self.pins else zeros
        recomputes: Sequence[str] = RECOMPUTE if member not in self.classes.parts else ("none",)
        if "recompute" in self.pins and member not in self.classes.parts:
            recomputes = [self.pins["recompute"]]
        return tuple(self.option(member, config, z, r) for z in zeros for r in recomputes)

    def option(self, member: str, config: Configuration, zero: int, recompute: str) -> Option:
        """One option of a class, with its data-parallel cost."""
        cost, setting = self.layer(member, config), self.setting(config)
        again = recompute == "full"
        parallel = dp_cost(
            self.cluster, cost, setting, zero, stage=0, again_seconds=again * cost.forward_seconds
        )
        state = state_bytes(cost, setting, zero)
        slow = self.cluster.oversubscription(world_size(config))
        forward = cost.forward_seconds * slow + cost.tp_forward_seconds
        repeated = cost.forward_seconds * slow + cost.tp_again_seconds
        backward = cost.backward_seconds * slow + cost.tp_backward_seconds
        return Option(
            key=f"{zero}/{recompute}",
            tp_option=0,
            zero=zero,
            recompute=recompute,
            forward_seconds=forward + parallel.forward_seconds,
            backward_seconds=backward + again * repeated + parallel.backward_seconds,
            step_seconds=parallel.sync_seconds
            + slow * parallel.optimizer_seconds
            + self.shared_seconds(member, config),
            state_bytes=state.total,
            activation_bytes=cost.input_bytes if again else cost.saved_bytes,
            transient_bytes=state.transient
            + cost.transient_bytes
            + (cost.saved_bytes if again else 0),
        )

    def layer(self, member: str, config: Configuration) -> LayerCost:
        """The cost without the parameters that an earlier part on the same rank holds too."""
        cost = self.cost(member, config)
        if config.pp > 1:
            return cost
        again = [n for n, parts in self.shared().items() if member in parts[1:]]
        held = cost.parameter_elements - self.shared_elements(again, config)
        return dataclasses.replace(cost, parameter_elements=held)

    def shared(self) -> dict[str, tuple[str, ...]]:
        """Parameters that several parts outside the blocks read, and which parts these are."""
        readers: dict[str, list[str]] = {}
        for member, part in self.classes.parts.items():
            read = {n for i in part.ops for n in self.graph.ops[i].inputs()}
            for name in sorted(n for n in read if self.graph.values[n].kind == "parameter"):
                readers.setdefault(name, []).append(member)
        return {name: tuple(parts) for name, parts in readers.items() if len(parts) > 1}

    def shared_elements(self, names: Sequence[str], config: Configuration) -> int:
        """Elements on one rank of parameters outside the blocks."""
        sharding = self.sharding(ENDS, config.tp, config.layout) if names else None
        states = sharding.parameters if sharding else {}
        return sum(local_elements(self.graph.values[n], states[n], config.tp, 1) for n in names)

    def shared_seconds(self, member: str, config: Configuration) -> float:
        """Sum of shared parameters' gradients over the stages that hold them, once per step.

        Each part counts as if it were on a stage of its own.
        """
        if config.pp == 1 or member not in self.classes.parts:
            return 0.0
        slow = self.cluster.contention(2, world_size(config))
        total = 0.0
        for name, parts in self.shared().items():
            if member in parts:
                payload = self.shared_elements([name], config) * MASTER_BYTES
                group = Group(min(len(parts), config.pp), 1)
                total += collective_seconds(self.cluster, "all_reduce", payload, group)
        return slow * total

    def cut_bytes(self, cut: int, config: Configuration) -> int:
        """Bytes on one rank of all that crosses the cut behind a layer."""
        total = 0
        for crossing in self.classes.cuts[cut]:
            home = self.classes.home(crossing.member)
            sharding = self.sharding(home, config.tp, config.layout)
            assert sharding is not None, "configurations are made from feasible layouts only"
            total += boundary_bytes(self.graph, sharding, crossing.value, config.microbatch_size)
        return total

    def widest_cut(self, config: Configuration) -> int:
        """The cut that the most bytes cross; the search prices every stage boundary as this."""
        return max(range(len(self.classes.cuts)), key=lambda cut: self.cut_bytes(cut, config))

    def p2p_seconds(self, config: Configuration, cut: int | None = None) -> float:
        """Activations forward and gradients backward across one stage boundary."""
        if config.pp == 1:
            return 0.0
        payload = self.cut_bytes(self.widest_cut(config) if cut is None else cut, config)
        near = config.dp * config.tp < self.cluster.devices_per_node
        group = Group(2, 2 if near else 1, 1 if near else self.cluster.devices_per_node)
        slow = self.cluster.contention(2, world_size(config))
        return 2 * slow * collective_seconds(self.cluster, "send_recv", payload, group)

    def buffer_bytes(self, config: Configuration, cuts: Sequence[int] | None = None) -> int:
        """What torch's pipeline stage receives into: a buffer per micro-batch and value.

        Without ``cuts``, those at the stage's boundaries, that of the fullest stage there can be.
        """
        if config.pp == 1:
            return 0
        if cuts is None:
            cuts = [self.widest_cut(config)] * min(2, config.pp - 1)
        return config.num_microbatches * sum(self.cut_bytes(cut, config) for cut in cuts)

    def problem(self, config: Configuration) -> Problem:
        """The model-level problem under one configuration."""
        names = list(dict.fromkeys(self.classes.members))
        parts = [i for i, m in enumerate(self.classes.members) if m in self.classes.parts]
        return Problem(
            configuration=config,
            layers=tuple(names.index(m) for m in self.classes.members),
            menus=tuple(self.menu(m, config) for m in names),
            memory_limit_bytes=self.memory_limit_bytes,
            p2p_seconds=self.p2p_seconds(config),
            baseline_bytes=self.buffer_bytes(config),
            linked=tuple(pairwise(parts)),
        )

    def candidate(self, config: Configuration) -> Candidate:
        """A configuration with a bound that ignores memory and rounding."""
        problem = self.problem(config)
        fastest = [min(o.microbatch_seconds for o in menu) for menu in problem.menus]
        cheapest = [min(o.step_seconds for o in menu) for menu in problem.menus]
        work = sum(fastest[c] for c in problem.layers) + 2 * (config.pp - 1) * problem.p2p_seconds
        slowest = max(work / config.pp, max(fastest))
        sync = max(sum(cheapest[c] for c in problem.layers) / config.pp, max(cheapest))
        bound = work + (config.num_microbatches - 1) * slowest + sync
        return Candidate(config, bound, lambda: problem)


def world_size(config: Configuration) -> int:
    """Number of ranks of a configuration."""
    return config.pp * config.dp * config.tp


def _contended(cost: LayerCost, cluster: Cluster, config: Configuration) -> LayerCost:
    """Tensor-parallel seconds while every tp group of the world communicates at once."""
    slow = cluster.contention(config.tp, world_size(config))
    if slow == 1.0:
        return cost
    return dataclasses.replace(
        cost,
        tp_forward_seconds=slow * cost.tp_forward_seconds,
        tp_backward_seconds=slow * cost.tp_backward_seconds,
        tp_again_seconds=slow * cost.tp_again_seconds,
    )
