"""Options of each layer class under a configuration, priced by arithmetic on cached costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np

from autopar.cluster import Cluster
from autopar.cost.activations import boundary_bytes
from autopar.cost.collectives import Group, collective_seconds
from autopar.cost.data_parallel import MASTER_BYTES, Setting, backward_bytes, dp_cost, state_bytes
from autopar.cost.layer import FIGURES, LayerCost, LayerTimes, Recomputed, Times
from autopar.cost.offload import activation_seconds, offloaded, offloads
from autopar.cost.reserve import beside_bytes, fixed_bytes
from autopar.cost.schedule import SINGLE
from autopar.cost.statistics import statistics_seconds
from autopar.graph import Graph
from autopar.solve.chain import undominated
from autopar.solve.cuts import Cutter
from autopar.solve.layer_prices import Key, LayerPrices
from autopar.solve.modes import Modes, recompute_modes, repeatable, zero_modes
from autopar.solve.pins import LAYERED, pin_of
from autopar.solve.placements import Demand, find_demands
from autopar.solve.price import time_bound
from autopar.solve.problem import Candidate, Configuration, Menus, Option, Problem
from autopar.solve.shardings import Offered, Shardings, pinned_sharding
from autopar.strategies.patterns import ENDS, Classes
from autopar.strategies.sharding import local_elements
from autopar.strategies.sharing import may_interleave, shared_parameters


@dataclass
class Pricer:
    """Prices of one traced model on one cluster, each worked out once.

    ``peers`` are those of the other kinds of device that work on the same step.
    """

    shardings: Shardings
    precision: str
    optimizer: str | int
    pins: dict[str, Any]
    memory_limit_bytes: int
    names: tuple[str, ...] = ()
    equal_stages: bool = False
    peers: tuple[Pricer, ...] = ()
    _prices: LayerPrices = field(default_factory=LayerPrices)
    _useful: dict[tuple[Any, ...], tuple[int, ...]] = field(default_factory=dict)
    _crossing: dict[tuple[int, str, int], tuple[int, ...]] = field(default_factory=dict)
    _listed: dict[Configuration, Menus] = field(default_factory=dict)
    leanest: dict[Configuration, Menus] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The traced model."""
        return self.shardings.graph

    @property
    def classes(self) -> Classes:
        """Its layer classes."""
        return self.shardings.classes

    @property
    def cluster(self) -> Cluster:
        """The cost model."""
        return self.shardings.cluster

    def offered(self, member: str, config: Configuration) -> tuple[Offered, ...]:
        """The shardings that a class has under a configuration."""
        return self.shardings.of(self.classes.home(member), config.tp, config.layout)

    def cost(self, member: str, config: Configuration, tp_option: int = 0) -> LayerCost:
        """The price of one layer of class ``member`` without data parallelism."""
        key, away = Key.of(member, config, tp_option), self.moves_activations(member, config)
        return self._on_machine(self._prices.cost(self.shardings, key, away), member, config)

    def times(self, member: str, config: Configuration, tp_option: int) -> LayerTimes:
        """The seconds of ``cost``."""
        key = Key.of(member, config, tp_option)
        return self._on_machine(self._prices.times(self.shardings, key), member, config)

    def _on_machine(self, times: Times, member: str, config: Configuration) -> Times:
        """A price of one layer beside the others."""
        return times.contended(self.cluster.contention(config.tp, config.world_size))

    def useful(
        self, member: str, config: Configuration, demand: Demand | None = None
    ) -> tuple[int, ...]:
        """The shardings of a class that no other one beats in every figure, or the pinned one.

        All parts take the same one, so theirs are compared as a pair; and what is of use on any
        kind of device is, for parts on both have to agree. ``demand`` are the placements
        that are asked for, by default those of the class's first layer.
        """
        home, number = self.classes.home(member), self._wanted(member, config, demand)
        if len(number) == 1:
            return number
        key = (home, config.tp, config.layout, config.microbatch_size, demand)
        if key not in self._useful:
            members = [home] if home == member else list(self.classes.parts)
            rows = [
                [f for kind in (self, *self.peers) for f in kind._figures(members, config, k)]
                for k in number
            ]
            kept = undominated(np.array(rows, dtype=np.float64))
            self._useful[key] = tuple(k for k, own in zip(number, kept, strict=True) if own)
        return self._useful[key]

    def _wanted(self, member: str, config: Configuration, demand: Demand | None) -> tuple[int, ...]:
        """The shardings of a class with these placements, or the pinned one of them."""
        offered, home = self.offered(member, config), self.classes.home(member)
        demand = self.shardings.demands.of(home)[0] if demand is None else demand
        if config.tp > 1 and "sharding" in self.pins:
            return (pinned_sharding(offered, self.pins["sharding"], demand),)
        return tuple(k for k, each in enumerate(offered) if each.demand == demand)

    def _figures(
        self, members: Sequence[str], config: Configuration, tp_option: int
    ) -> list[float]:
        """All that makes a sharding dearer, whatever zero mode and recomputation come on top."""
        costs = [self.cost(member, config, tp_option) for member in members]
        own = [getattr(cost, name) for cost in costs for name in FIGURES]
        names = list(self.shared) if len(members) > 1 else []
        shared = self.shared_elements(names, config, tp_option)
        return [*own, shared, sum(c.parameter_elements for c in costs) - shared]

    def setting(self, config: Configuration) -> Setting:
        """The part of a configuration that data parallelism sees."""
        return Setting(
            config.pp, config.dp, config.tp, config.num_microbatches, config.schedule,
            self.precision, self.optimizer, virtual_stages=config.virtual_stages,
            offload=config.offload, exchange=config.exchange, replicas=config.replicas,
        )  # fmt: skip

    def menu(
        self, member: str, config: Configuration, layer: str = "", demand: Demand | None = None
    ) -> tuple[Option, ...]:
        """Every option of a class that the pins allow for the layer of this name.

        ``demand`` are the placements that they ask for, as in ``useful``.
        """
        zeros, modes = self.modes(member, config, layer)
        return tuple(
            option
            for k in self.useful(member, config, demand)
            for zero in zeros
            for option in self.options(member, config, k, zero, modes)
        )

    def modes(self, member: str, config: Configuration, layer: str = "") -> Modes:
        """The zero modes, and the ways to recompute it, that the layer of this name may have."""
        zero, recompute = (pin_of(self.pins.get(kind), layer) for kind in ("zero", "recompute"))
        return zero_modes(config, zero), recompute_modes(
            config, self._repeatable[member], recompute
        )

    @cached_property
    def _repeatable(self) -> dict[str, tuple[str, ...]]:
        """How the layers of each class may be recomputed."""
        members = dict.fromkeys(self.classes.members)
        return {member: repeatable(self.graph, self.classes, member) for member in members}

    def options(
        self, member: str, config: Configuration, tp_option: int, zero: int,
        recomputes: Sequence[str],
    ) -> Iterator[Option]:  # fmt: skip
        """The options of a class with one sharding and zero mode, by recomputation."""
        cost, setting = self.layer(member, config, tp_option), self.setting(config)
        aim = self.offered(member, config)[tp_option].aim
        slow = self.cluster.computing_slowdown(config.world_size)
        forward = cost.forward_seconds * slow + cost.tp_forward_seconds
        backward, weight = self.backward_seconds(cost, config)
        shared = self.shared_seconds(member, config, tp_option)
        for recompute in recomputes:
            again = self.between(member, cost, config, recompute)
            state = state_bytes(cost, setting, zero, again.held_bytes)
            parallel = dp_cost(
                self.cluster, cost, setting, zero, stage=0, again_seconds=again.seconds
            )
            repeated = slow * (again.seconds + parallel.accumulation_seconds) + again.tp_seconds
            repeated += self.checkpoint_seconds(recompute)
            norms = statistics_seconds(self.cluster, cost, setting, recompute)
            moved = self.offload_seconds(member, cost, config)
            beside = beside_bytes(self.cluster, again.held_bytes)
            running = state.transient + backward_bytes(cost, setting) + again.transient_bytes
            yield Option(
                key=f"{zero}/{recompute}" + (f"/{aim}" if aim else ""),
                tp_option=tp_option,
                zero=zero,
                recompute=recompute,
                forward_seconds=forward + parallel.forward_seconds + norms[0] + moved,
                backward_seconds=backward + repeated + parallel.backward_seconds + norms[1] + moved,
                step_seconds=parallel.sync_seconds + slow * parallel.optimizer_seconds + shared,
                state_bytes=state.total + self.classes.buffer_bytes.get(member, 0),
                activation_bytes=again.held_bytes + beside,
                transient_bytes=max(running, state.behind),
                weight_seconds=weight,
                waiting_bytes=cost.waiting_bytes if config.splits_backward else 0,
                gradient_bytes=state.gradients,
                optimizer_bytes=state.optimizer,
                reserve_bytes=beside,
                alone_bytes=max(running - state.ahead, state.behind),
            )

    def between(
        self, member: str, cost: LayerCost, config: Configuration, recompute: str
    ) -> Recomputed:
        """What a layer holds from forward to backward, and what it takes to have the rest again."""
        if self.moves_activations(member, config):
            return offloaded(cost)
        return cost.recomputed(recompute)

    def moves_activations(self, member: str, config: Configuration) -> bool:
        """Whether what a layer saves is in host memory: only that of blocks ever is."""
        return member not in self.classes.parts and offloads(config.offload, "activations")

    def offload_seconds(self, member: str, cost: LayerCost, config: Configuration) -> float:
        """Seconds of moving a micro-batch's activations of one layer to the host, or back."""
        if not self.moves_activations(member, config):
            return 0.0
        slow = self.cluster.computing_slowdown(config.world_size)
        return slow * activation_seconds(self.cluster, cost)

    def backward_seconds(
        self, cost: LayerTimes, config: Configuration, whole: bool = False
    ) -> tuple[float, float]:
        """Seconds of backward, and of its part for parameters if the schedule splits it.

        On the first stage it stays ``whole``.
        """
        slow = self.cluster.computing_slowdown(config.world_size)
        if whole or not config.splits_backward:
            return cost.backward_seconds * slow + cost.tp_backward_seconds, 0.0
        weight = cost.weight_seconds * slow
        weight += cost.trained_modules * self.cluster.overhead_seconds("split_module")
        return cost.input_seconds * slow + cost.tp_backward_seconds + weight, weight

    def checkpoint_seconds(self, recompute: str) -> float:
        """What recomputing a layer costs per micro-batch beyond what it computes again."""
        return 0.0 if recompute == "none" else self.cluster.overhead_seconds("checkpoint")

    def layer(self, member: str, config: Configuration, tp_option: int) -> LayerCost:
        """The cost without the parameters that an earlier part on the same rank holds too."""
        cost = self.cost(member, config, tp_option)
        if config.splits_backward:
            cost = cost.in_two_parts()
        if config.pp > 1:
            return cost
        again = [n for n, parts in self.shared.items() if member in parts[1:]]
        if not again:
            return cost
        frozen = [n for n in again if not self.graph.values[n].requires_grad]
        held, idle = (self.shared_elements(names, config, tp_option) for names in (again, frozen))
        return dataclasses.replace(
            cost,
            parameter_elements=cost.parameter_elements - held,
            frozen_elements=cost.frozen_elements - idle,
            tied_elements=held - idle,
        )

    @cached_property
    def shared(self) -> dict[str, tuple[str, ...]]:
        """Parameters that several parts outside the blocks read, and which parts these are."""
        return shared_parameters(self.graph, self.classes)

    def shared_elements(self, names: Sequence[str], config: Configuration, tp_option: int) -> int:
        """Elements on one rank of parameters outside the blocks."""
        offered = self.shardings.of(ENDS, config.tp, config.layout) if names else ()
        states = offered[tp_option].sharding.parameters if names else {}
        return sum(local_elements(self.graph.values[n], states[n], config.tp, 1) for n in names)

    def shared_seconds(self, member: str, config: Configuration, tp_option: int) -> float:
        """Sum of shared parameters' gradients over the stages that hold them, once per step.

        Each part counts as if it were on a stage of its own.
        """
        if config.pp == 1 or member not in self.classes.parts:
            return 0.0
        slow = self.cluster.contention(2, config.world_size)
        total = 0.0
        for name, parts in self.shared.items():
            if member in parts and self.graph.values[name].requires_grad:
                payload = self.shared_elements([name], config, tp_option) * MASTER_BYTES
                group = Group(min(len(parts), config.pp), 1)
                total += collective_seconds(self.cluster, "all_reduce", payload, group)
        return slow * total

    def cut_bytes(self, cut: int, config: Configuration) -> int:
        """Bytes on one rank of all that crosses the cut behind a layer."""
        total = 0
        for crossing in self.classes.cuts[cut]:
            home = self.classes.home(crossing.member)
            sharding = self.shardings.of(home, config.tp, config.layout)[0].sharding
            total += boundary_bytes(self.graph, sharding, crossing.value, config.microbatch_size)
        return total

    def crossing_bytes(self, config: Configuration) -> tuple[int, ...]:
        """``cut_bytes`` of every cut."""
        key = config.tp, config.layout, config.microbatch_size
        if key not in self._crossing:
            cuts = range(len(self.classes.cuts))
            self._crossing[key] = tuple(self.cut_bytes(cut, config) for cut in cuts)
        return self._crossing[key]

    def widest_cut(self, config: Configuration) -> int:
        """The cut that the most bytes cross; the search counts every boundary's memory as this."""
        crossing = self.crossing_bytes(config)
        return crossing.index(max(crossing)) if crossing else 0

    def of_stage(self, config: Configuration, stage: int) -> Pricer:
        """The prices on the devices of a stage."""
        return self

    def of_boundary(self, config: Configuration, stage: int) -> Pricer:
        """The prices of what is sent between a stage and the next."""
        return self

    def cut_seconds(self, config: Configuration) -> tuple[float, ...]:
        """``p2p_seconds`` of a stage boundary in front of each layer; none with one stage."""
        crossing = self.crossing_bytes(config)
        if config.pp == 1:
            return ()
        each = {size: self.p2p_seconds(config, crossing.index(size)) for size in set(crossing)}
        return (0.0, *map(each.__getitem__, crossing))

    def p2p_seconds(self, config: Configuration, cut: int, *, apart: bool = False) -> float:
        """What a boundary costs either side: the wire, both ways, and the runtime's actions.

        Charged by boundary, actions are exact for the first and the last stage, else twice as many.
        """
        wire = self.wire_seconds(config, cut, apart=apart)
        return wire + self.action_seconds(config) * config.actions

    def action_seconds(self, config: Configuration) -> float:
        """What the runtime adds to every action of a pipeline's stage, while others wait."""
        return self.cluster.overhead_seconds("pipeline_action") if config.pp > 1 else 0.0

    def wire_seconds(self, config: Configuration, cut: int, *, apart: bool = False) -> float:
        """Activations forward and gradients backward across one stage boundary.

        ``apart``: its sides are on different nodes however few devices a stage has.
        """
        if config.pp == 1:
            return 0.0
        payload = self.crossing_bytes(config)[cut]
        near = not apart and config.dp * config.tp < self.cluster.devices_per_node
        group = Group(2, 2 if near else 1, 1 if near else self.cluster.devices_per_node)
        slow = self.cluster.contention(2, config.world_size)
        return 2 * slow * collective_seconds(self.cluster, "send_recv", payload, group)

    def buffer_bytes(
        self, config: Configuration, cuts: Sequence[int] | None = None, first: bool = True
    ) -> int:
        """Buffers of no block, and the inputs and pipeline buffers of all micro-batches.

        Every rank holds all inputs, and its stages a buffer for each value that crosses their
        ``cuts``. Multi-stage schedules wait for what they have sent at the end of the step, and
        hold it. Without ``cuts``: of the fullest rank there can be, with its ``kept_bytes``.
        """
        inputs = (self.graph.values[name] for name in self.graph.inputs.values())
        held = sum(value.bytes(config.microbatch_size) for value in inputs) if first else 0
        if config.pp > 1:
            most = 2 * config.virtual_stages - (config.pp == 2)
            whole = [self.widest_cut(config)] * most if cuts is None else cuts
            crossing = self.crossing_bytes(config)
            moved = sum(crossing[cut] for cut in whole)
            held += moved if config.schedule in SINGLE else 2 * moved
        kept = 0
        if cuts is None and config.most_kept:
            kept = config.most_kept * self.crossing_bytes(config)[self.widest_cut(config)]
        return config.num_microbatches * held + kept + first * self.graph.buffer_bytes

    def reserve_bytes(self, config: Configuration) -> int:
        """What every rank's device holds besides tensors, whatever is chosen."""
        return fixed_bytes(self.cluster, config.communicators)

    def kept_bytes(self, config: Configuration, stage: int, cuts: Sequence[int]) -> int:
        """What a stage has sent across its ``cuts`` and keeps, see ``Configuration.kept``."""
        made, returned = config.kept(stage)
        crossing = self.crossing_bytes(config)
        behind, before = made and crossing[cuts[-1]], returned and crossing[cuts[0]]
        return made * behind + returned * before

    def problem(self, config: Configuration) -> Problem:
        """The model-level problem under one configuration.

        Layers of one class that are pinned differently have menus of their own.
        """
        return self.outline(config, self._menus(config.of_layers))

    def outline(self, config: Configuration, menus: Menus) -> Problem:
        """The problem with these menus for each kind of layer, see ``alike``."""
        layers, first = self.alike
        cuts, order = self._cutter.of(config)
        return Problem(
            configuration=config,
            layers=layers,
            menus=menus,
            memory_limit_bytes=self.memory_limit_bytes,
            cut_seconds=self.cut_seconds(config),
            baseline_bytes=self.buffer_bytes(config) + self.reserve_bytes(config),
            reserve_bytes=self.reserve_bytes(config),
            linked=self._linked,
            cuts=cuts,
            turns=order,
            idle=frozenset(k for k, own in enumerate(first) if own[0] in self.classes.idle),
        )

    @cached_property
    def _linked(self) -> tuple[tuple[int, int], ...]:
        """Parts behind each other: they take the same options."""
        parts = self.classes.parts
        return tuple(pairwise(i for i, m in enumerate(self.classes.members) if m in parts))

    def _menus(self, config: Configuration) -> Menus:
        """The menu of each kind of layer; ``config`` is ``Configuration.of_layers``."""
        if config not in self._listed:
            self._listed[config] = tuple(
                self.menu(member, config, name, own) for member, name, own in self.alike[1]
            )
        return self._listed[config]

    @cached_property
    def alike(self) -> tuple[tuple[int, ...], tuple[tuple[str, str, Demand | None], ...]]:
        """For each layer the number of its kind, and for each kind class, first name and demand.

        Layers of one class that are pinned differently are of several kinds.
        """
        names = self.names or ("",) * len(self.classes.members)
        each = [(*own, *self._pinned(name)) for own, name in zip(self.demanded, names, strict=True)]
        kinds = {key: number for number, key in enumerate(dict.fromkeys(each))}
        first = tuple((key[0], names[each.index(key)], key[1]) for key in kinds)
        return tuple(kinds[key] for key in each), first

    @cached_property
    def _cutter(self) -> Cutter:
        """Where stages may begin."""
        members = self.classes.members
        return Cutter(self.pins, self.names or members, self.classes.spread(), self.equal_stages)

    def with_pins(self, pins: dict[str, Any]) -> Self:
        """The same prices under other pins."""
        demands = find_demands(self.graph, self.classes, self.names, pins)
        if demands == self.shardings.demands:
            return dataclasses.replace(self, pins=pins, _listed={}, leanest={})
        shardings = self.shardings.under(demands)
        return dataclasses.replace(
            self, pins=pins, shardings=shardings, _prices=self._prices.of_operations(),
            _useful={}, _crossing={}, _listed={}, leanest={},
        )  # fmt: skip

    @property
    def interleaves(self) -> bool:
        """Whether no parameter can be on two stages of one rank."""
        return may_interleave(self.graph, self.classes, self.shared)

    def _pinned(self, layer: str) -> tuple[Any, ...]:
        """What the pins say of a layer."""
        return tuple(pin_of(self.pins.get(kind), layer) for kind in LAYERED)

    def candidate(self, config: Configuration) -> Candidate:
        """A configuration with a bound that ignores memory, rounding and data parallelism."""
        least = [self.least_seconds(*key, config) for key in self._numbers]
        seconds, crossing = ([own[k] for own in least] for k in (0, 1))
        numbers, step = list(self._numbers.values()), [0.0] * len(least)
        bound = time_bound(config, numbers, seconds, step, self.cut_seconds(config), crossing)
        return Candidate(config, bound, lambda: self.problem(config))

    @cached_property
    def _numbers(self) -> Counter[tuple[str, Demand | None]]:
        """How many layers there are of each class and demand."""
        return Counter(self.demanded)

    @cached_property
    def demanded(self) -> list[tuple[str, Demand | None]]:
        """Class and demand of each layer."""
        members = self.classes.members
        demands = self.shardings.demands.layers or (None,) * len(members)
        return list(zip(members, demands, strict=True))

    def least_seconds(
        self, member: str, demand: Demand | None, config: Configuration
    ) -> tuple[float, float]:
        """One micro-batch of a class at least, whatever is chosen for it, and to cross it."""
        slow = self.cluster.computing_slowdown(config.world_size)
        found = []
        for k in self._wanted(member, config, demand):
            cost = self.times(member, config, k)
            forward = cost.forward_seconds * slow + cost.tp_forward_seconds
            backward, weight = self.backward_seconds(cost, config)
            alone = max(0.0, backward - 2 * weight) if config.splits_backward else backward
            found.append((forward + backward, forward + alone))
        return min(seconds for seconds, _ in found), min(crossing for _, crossing in found)
