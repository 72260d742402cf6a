"""Prices of published runs: traced, sharded and assembled as a plan is, without a solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from autopar.cluster import Cluster
from autopar.cost.compute import elementwise_seconds
from autopar.cost.data_parallel import Setting, Traffic
from autopar.cost.layer import Times, replicated
from autopar.cost.reserve import beside_bytes, fixed_bytes
from autopar.graph import Graph
from autopar.plan import Prediction, StagePlan
from autopar.solve.assemble import assemble
from autopar.solve.intra import shard_for_each
from autopar.solve.layer_prices import LayerPrices
from autopar.solve.menus import Pricer
from autopar.solve.problem import Configuration, Option, Problem, Solution
from autopar.solve.shardings import AIMS, REFERENCE_BATCH, Offered, Shardings
from autopar.strategies.patterns import Classes, find_classes, reduce
from autopar.strategies.sharding import Sharding
from autopar.trace import trace
from autopar.validate.models import Decoder, Shape, fused_loss_fn, loss_fn
from autopar.validate.runs import InexpressibleError, Machine, Run
from autopar.validate.systems import Environment, environments

PRECISION = "bf16"  # fp16 runs at the same rates
# These lead to Megatron's split, the first of them for all but the smallest models.
ASKED = ("lean", "leanest", "smallest")
Found = dict[tuple[str, int, str], tuple[Offered, ...]]


@dataclass
class Split(Shardings):
    """One sharding, that of the aim that splits most products: there is nothing to choose.

    It is found for the device as its cost model has it: how fast the hosts, kernels and links of
    a source are must not change what its system does.
    """

    plain: Cluster | None = None

    def of(self, pattern: str, tp: int, layout: str) -> tuple[Offered, ...]:
        """The one sharding of a pattern.

        Raises:
            InexpressibleError: it has none of this layout.
        """
        key = (pattern, tp, layout)
        if key not in self._found:
            self._found[key] = self._one(pattern, tp, layout)
        return self._found[key]

    def _one(self, pattern: str, tp: int, layout: str) -> tuple[Offered, ...]:
        whole = self.classes.patterns[pattern]
        if tp == 1:
            return (Offered((), replicated(self.graph, whole)),)
        found = []
        for aim in ASKED:
            (sharding,) = shard_for_each(
                self.graph, whole, self.plain or self.cluster, tp, layout, REFERENCE_BATCH,
                [self._weights(pattern, AIMS[aim], REFERENCE_BATCH, AIMS[aim].steps)],
            )  # fmt: skip
            if sharding is not None and self._divides(sharding):
                found.append(Offered((aim,), sharding))
        if found:
            return (max(found, key=lambda offered: self.order(offered.sharding)),)
        raise InexpressibleError(f"nothing is split in a {layout} layout with tp = {tp}")

    def order(self, sharding: Sharding) -> tuple[int, int]:
        """How many products run on shards of something else than samples; then, few collectives."""
        one = (replace(sharding, strategies={i: s}) for i, s in sharding.strategies.items())
        moves = sum(bool(m.move.forward) + bool(m.move.backward) for m in sharding.moves)
        return sum(self._divides(each) for each in one), -moves


@dataclass
class RunPricer(Pricer):
    """A ``Pricer`` of what another system sends."""

    traffic: Traffic = field(default_factory=Traffic)
    partitioned: bool = False
    tp_hidden: float = 0.0
    loss_bytes: int = 0

    def _on_machine(self, times: Times, member: str, config: Configuration) -> Times:
        """As for a plan, less the part of tp's communication that computing hides.

        The loss takes what its system moves beyond the traced one.
        """
        whole = super()._on_machine(times, member, config)
        hidden = self.tp_hidden * (1 - self.cluster.overlap_slowdown)
        more = 0.0
        if member == self.classes.members[-1]:
            moved = self.loss_bytes * config.microbatch_size // config.tp
            more = elementwise_seconds(self.cluster, moved)
        return replace(
            whole, tp_backward_seconds=(1 - hidden) * whole.tp_backward_seconds,
            forward_seconds=whole.forward_seconds + more,
        )  # fmt: skip

    def cut_bytes(self, cut: int, config: Configuration) -> int:
        """As for a plan, or a tp rank's share where ranks send only that and gather behind it."""
        whole = super().cut_bytes(cut, config)
        return whole // config.tp if self.partitioned else whole

    def setting(self, config: Configuration) -> Setting:
        """As for a plan, with the traffic of the run."""
        return replace(super().setting(config), traffic=self.traffic)


@dataclass(frozen=True)
class Priced:
    """Predicted seconds of one step, and bytes of the rank that holds most.

    ``memory_bytes`` is all of that rank, its source's reserve included; ``activation_bytes`` are
    those saved for backward. ``needed_bytes`` decide whether it fits: where nothing is known of
    the source's reserve, they hold that of the machine's cost model, as plans do.
    """

    seconds: float
    memory_bytes: float
    activation_bytes: float
    needed_bytes: float
    prediction: Prediction


@dataclass
class Prices:
    """Prices of many runs on the machines given by name; traces and shardings are made once."""

    clusters: Mapping[str, Cluster]
    environments: Mapping[str, Environment] = field(default_factory=environments)
    _traced: dict[Shape, tuple[Graph, Classes]] = field(default_factory=dict)
    _found: dict[Shape, Found] = field(default_factory=dict)
    _machines: dict[Machine, Cluster] = field(default_factory=dict)
    _prices: dict[tuple[Shape, Machine], LayerPrices] = field(default_factory=dict)

    def on(
        self, clusters: Mapping[str, Cluster], environments: Mapping[str, Environment] | None = None
    ) -> Prices:
        """The same traces and shardings under other cost models."""
        return Prices(clusters, environments or {}, self._traced, self._found)

    def price(self, run: Run) -> Priced:
        """The step time and the memory that autopar predicts for a run.

        Raises:
            InexpressibleError: no cost model describes its device.
        """
        pricer, names = self._pricer(run)
        starts = [0]
        for count in (1 + run.stages[0], *run.stages[1:-1])[: run.config.pp - 1]:
            starts.append(starts[-1] + count)
        options = tuple(_option(pricer, member, run) for member in pricer.classes.members)
        problem = Problem(run.config, (), (), pricer.memory_limit_bytes)
        solution = Solution(
            problem, tuple(starts), options, 0.0, 0.0, 0.0, "pinned", 0.0, {}, "none"
        )
        stages, _, prediction = assemble(pricer, names, solution)
        live, activations = max(_memory(pricer, run, stages))
        own = self.environments.get(run.machine.environment, Environment())
        known = own.reserve_bytes + own.reserve_share * activations
        taken = known or self._reserve(run, activations)
        return Priced(prediction.step_seconds, live + known, activations, live + taken, prediction)

    def _reserve(self, run: Run, activations: float) -> int:
        """What the machine's cost model reserves."""
        plain = self.plain(run.machine)
        fixed = fixed_bytes(plain, run.config.communicators)
        return fixed + beside_bytes(plain, int(activations))

    def cluster(self, machine: Machine) -> Cluster:
        """The cost model of a machine: the known one of its device, with its memory and network."""
        if machine not in self._machines:
            self._machines[machine] = _varied(self.clusters, machine, self.environments)
        return self._machines[machine]

    def plain(self, machine: Machine) -> Cluster:
        """The cost model of a machine's device.

        Raises:
            InexpressibleError: there is none.
        """
        return self.clusters[_device(self.clusters, machine)[1]]

    def _pricer(self, run: Run) -> tuple[RunPricer, tuple[str, ...]]:
        graph, classes = self._trace(run.shape)
        cluster = self.cluster(run.machine)
        first, _, _, last = classes.members
        names = (first, *(f"blocks.{i}" for i in range(run.layers)), last)
        shardings = Split(
            graph, _deepened(classes, run.layers), cluster, plain=self.plain(run.machine),
            _found=self._found.setdefault(run.shape, {}),
        )  # fmt: skip
        prices = self._prices.setdefault((run.shape, run.machine), LayerPrices())
        return RunPricer(
            shardings, PRECISION, "adamw", {}, cluster.memory_bytes, _prices=prices,
            traffic=run.traffic, partitioned=run.partitioned, tp_hidden=run.tp_hidden,
            loss_bytes=run.loss_bytes,
        ), names  # fmt: skip

    def _trace(self, shape: Shape) -> tuple[Graph, Classes]:
        """One block stands for all: equal layers are one class."""
        if shape not in self._traced:
            with torch.device("meta"):
                model = Decoder(shape, layers=2)
                tokens = torch.zeros(2, shape.tokens, dtype=torch.long)
            loss = fused_loss_fn if shape.fused_loss else loss_fn
            whole = trace(model, (tokens,), {}, target=tokens, loss_fn=loss, precision=PRECISION)
            self._traced[shape] = reduce(whole, find_classes(whole))
        return self._traced[shape]


def _option(pricer: RunPricer, member: str, run: Run) -> Option:
    recompute = "none" if member in pricer.classes.parts else run.recompute
    return next(pricer.options(member, run.config, 0, run.zero, [recompute]))


def _deepened(classes: Classes, layers: int) -> Classes:
    """The chain with ``layers`` blocks instead of the two that were traced."""

    def repeat(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*row[:1], *row[1:2] * layers, *row[3:])

    return replace(
        classes, members=repeat(classes.members), reads=repeat(classes.reads),
        writes=repeat(classes.writes), cuts=repeat(classes.cuts),
    )  # fmt: skip


# Texts of the device column, the cost model that describes it, and the bytes per second that a
# network link of it is rated at.
DEVICES = (("A100", "a100-80g", 25e9), ("H100", "h100-80g", 50e9), ("H200", "h200-141g", 50e9))
# The A100 with 40 GB has slower memory: 1,555 of 2,039 GB/s (data sheets).
MEMORY_RATE = {("A100", 40.0): 1555 / 2039}


def _device(clusters: Mapping[str, Cluster], machine: Machine) -> tuple[str, str, float]:
    found = next((d for d in DEVICES if d[0] in machine.gpu and d[1] in clusters), None)
    if found is None:
        raise InexpressibleError(f"no cost model for {machine.gpu}")
    return found


def _varied(
    clusters: Mapping[str, Cluster], machine: Machine, environments: Mapping[str, Environment]
) -> Cluster:
    device, name, link = _device(clusters, machine)
    own = environments.get(machine.environment, Environment())
    rates = {
        "products": own.products,
        "attention_forward": own.attention_forward,
        "attention_backward": own.attention_backward,
        "memory": own.memory * MEMORY_RATE.get((device, machine.memory_gb), 1.0),
        "node_links": own.node_links,
        "network": own.network * (machine.link_bytes_per_second or link) / link,
    }
    cluster = clusters[name]
    figures = {
        "dispatch_seconds": own.dispatch_seconds, "dispatch_whole_node": own.dispatch_whole_node,
        "overlap_slowdown": own.overlap_slowdown,
    }  # fmt: skip
    host = {name: value for name, value in figures.items() if value is not None}
    return cluster.varied(
        memory_bytes=int(machine.memory_gb * 2**30),
        links_per_node=machine.links or cluster.links_per_node,
        rates={rate: value for rate, value in rates.items() if value != 1.0}, **host,
    )  # fmt: skip


def _memory(
    pricer: RunPricer, run: Run, stages: tuple[StagePlan, ...]
) -> Iterator[tuple[float, float]]:
    """Bytes of live tensors and of activations by stage, with what the run's own system keeps."""
    held, config = run.held, run.config
    shards = pricer.setting(config).shards
    per_element = held.parameters + held.gradients + held.sharded / shards
    starts = 0
    for stage in stages:
        members = pricer.classes.members[starts : starts + len(stage.layers)]
        starts += len(stage.layers)
        elements = sum(pricer.layer(m, config, 0).parameter_elements for m in members)
        memory = stage.prediction.memory
        yield elements * per_element + memory.activations + memory.transient, memory.activations
