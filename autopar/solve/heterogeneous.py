"""Prices and figures of a step that devices of two kinds take part in.

Replicas (pp = 1) get micro-batches of different sizes, equally many of them, so that all are done
at the same time. What is chosen for a layer then holds on every rank: the program is one. In a
pipeline each stage is on devices of one kind, which have different numbers of layers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, Self

from autopar.plan import Kind, LayerPlan, Prediction, StagePlan, sum_memory
from autopar.solve.assemble import assemble
from autopar.solve.balance import Least, balanced_bound
from autopar.solve.kinds import EQUAL
from autopar.solve.menus import Pricer
from autopar.solve.placements import Demand
from autopar.solve.price import narrowest
from autopar.solve.problem import Candidate, Configuration, Option, Problem, Solution


@dataclass
class HeterogeneousPricer(Pricer):
    """Prices of one traced model on devices of several kinds, each with a pricer of its own.

    Of replicas time is that of the kind that takes longest for a whole step at its fastest, so it
    is never more than what the slowest rank takes. Bytes are the most of the kinds', each measured
    by its limit, in terms of the kind that is fullest. In a pipeline stages have the prices of
    their kind. Shardings are those of the first kind.

    Attributes:
        kinds: the pricers, in the order of the ranks.
        devices: how many devices of each kind there are.
    """

    kinds: tuple[Pricer, ...] = ()
    devices: tuple[int, ...] = ()
    _last: dict[Configuration, int] = field(default_factory=dict)
    _full: dict[Configuration, int] = field(default_factory=dict)

    def with_pins(self, pins: dict[str, Any]) -> Self:
        """The same prices under other pins: all kinds are offered the same shardings."""
        own = super().with_pins(pins)
        alone = [
            replace(
                kind.with_pins(pins), shardings=replace(own.shardings, cluster=kind.cluster),
                peers=(),
            )
            for kind in self.kinds
        ]  # fmt: skip
        kinds = (replace(k, peers=tuple(o for o in alone if o is not k)) for k in alone)
        return replace(own, kinds=tuple(kinds), peers=tuple(alone[1:]), _last={}, _full={})

    def turned(self) -> Self:
        """The same devices in the other order."""
        kinds, devices = self.kinds[::-1], self.devices[::-1]
        return replace(self, kinds=kinds, devices=devices, _last={}, _full={})

    def rank_kinds(self, config: Configuration) -> tuple[int, ...]:
        """The kind of each rank along the pipeline, whose stages they fill."""
        width = config.dp * config.tp
        return tuple(k for k, n in enumerate(self.devices) for _ in range(n // width))

    def of_stage(self, config: Configuration, stage: int) -> Pricer:
        """Those of its kind; in one of all kinds, replicas, these."""
        return self if config.pp == 1 else self.kinds[self.rank_kinds(config)[stage % config.pp]]

    def of_boundary(self, config: Configuration, stage: int) -> Pricer:
        """Those of the kind on both sides; these where there are two."""
        sides = [self.of_stage(config, s) for s in (stage, stage + 1)]
        return sides[0] if sides[0] is sides[1] else self

    def action_seconds(self, config: Configuration) -> float:
        """The slower host's."""
        return max(kind.action_seconds(config) for kind in self.kinds)

    def wire_seconds(self, config: Configuration, cut: int, *, apart: bool = False) -> float:
        """What the slower link takes between devices of two kinds.

        These share a node only where one holds all of them.
        """
        node = min(kind.cluster.devices_per_node for kind in self.kinds)
        apart = apart or sum(self.devices) > node
        return max(kind.wire_seconds(config, cut, apart=apart) for kind in self.kinds)

    def problem(self, config: Configuration) -> Problem:
        """That of replicas, or that of a pipeline as each kind has it."""
        if config.pp == 1:
            fullest = self._fullest(config)
            return replace(
                super().problem(config), memory_limit_bytes=fullest.memory_limit_bytes,
                device=fullest.cluster.name,
            )  # fmt: skip
        own = tuple(
            replace(
                replace(kind, equal_stages=self.equal_stages).problem(config),
                device=kind.cluster.name,
            )
            for kind in self.kinds
        )  # fmt: skip
        return replace(
            own[0], device="", cut_seconds=self.cut_seconds(config), kinds=own,
            rank_kinds=self.rank_kinds(config),
        )  # fmt: skip

    def candidate(self, config: Configuration) -> Candidate:
        """A configuration with its bound."""
        if config.pp == 1:
            return super().candidate(config)
        ranks = self.rank_kinds(config)
        least = [self._least(k, kind, ranks, config) for k, kind in enumerate(self.kinds)]
        return Candidate(config, balanced_bound(config, least), lambda: self.problem(config))

    def _least(self, k: int, kind: Pricer, ranks: tuple[int, ...], config: Configuration) -> Least:
        """What layers take on one kind of device at least."""
        each = self.demanded
        found = {key: kind.least_seconds(*key, config) for key in dict.fromkeys(each)}
        seconds, crossing = ([found[key][i] for key in each] for i in (0, 1))
        inside = 2 * narrowest(kind.cut_seconds(config), ranks.count(k) - 1)
        return Least(ranks.count(k), seconds, crossing, [0.0] * len(each), inside)

    def each(self, config: Configuration) -> list[tuple[Pricer, Configuration]]:
        """The pricer of each kind, and the configuration as its ranks see it."""
        sizes = [config.microbatch_size] * len(self.kinds)
        if config.shares:
            replicas = [count // config.tp for count in self.devices]
            sizes = [config.shares[end - 1] for end in accumulate(replicas)]
        return [
            (kind, replace(config, microbatch_size=size, shares=()))
            for kind, size in zip(self.kinds, sizes, strict=True)
        ]

    def spread(self, config: Configuration, samples: int) -> Iterator[Configuration]:
        """Divisions of ``samples`` per micro-batch between the kinds: those nearest to balance.

        The more samples a device gets the longer it takes. So of the divisions into whole numbers
        the two next to the point where both kinds take equally long are offered, and equal shares.
        """
        first, second = (count // config.tp for count in self.devices)
        whole = [
            self._shared(config, size, (samples - first * size) // second)
            for size in range(1, (samples - second) // first + 1)
            if (samples - first * size) % second == 0
        ]
        equal = [c for c in whole if len(set(c.shares)) == 1]
        pinned = self.pins.get("shares", EQUAL if "microbatch_size" in self.pins else None)
        if pinned == EQUAL:
            yield from equal
        elif pinned is not None:
            yield from (c for c in whole if [c.shares[0], c.shares[-1]] == list(pinned))
        else:
            balance = bisect_left(whole, True, key=self._first_is_last)
            near = whole[max(0, balance - 1) : balance + 1]
            yield from dict.fromkeys([*equal, *near])  # equal ones where it makes no difference

    def _shared(self, config: Configuration, *sizes: int) -> Configuration:
        """The configuration with micro-batches of these sizes on the replicas of each kind."""
        counts = [count // config.tp for count in self.devices]
        shares = [size for size, n in zip(sizes, counts, strict=True) for _ in range(n)]
        return replace(config, microbatch_size=sizes[0], shares=tuple(shares))

    def _first_is_last(self, config: Configuration) -> bool:
        """Whether devices of the first kind take longer than the others."""
        return self._slowest(config) == 0

    def _slowest(self, config: Configuration) -> int:
        """The kind that takes longest for a step, each with the fastest option of every layer."""
        if config not in self._last:
            steps = [self._least_step(kind, own) for kind, own in self.each(config)]
            self._last[config] = steps.index(max(steps))
        return self._last[config]

    def _least_step(self, kind: Pricer, config: Configuration) -> float:
        """Seconds of a step on one kind whatever is chosen, in each layer at least."""
        return sum(
            count * min(
                config.num_microbatches * option.microbatch_seconds + option.step_seconds
                for option in kind.menu(member, config, demand=demand)
            )
            for (member, demand), count in Counter(self.demanded).items()
        )  # fmt: skip

    def options(
        self, member: str, config: Configuration, tp_option: int, zero: int,
        recomputes: Sequence[str],
    ) -> Iterator[Option]:  # fmt: skip
        """The options of a class as the slowest kind has them, with the most bytes of any."""
        pairs, slowest = self.each(config), self._slowest(config)
        listed = [k.options(member, own, tp_option, zero, recomputes) for k, own in pairs]
        for same in zip(*listed, strict=True):
            sizes = {n: self._scaled(config, [getattr(o, n) for o in same]) for n in BYTES}
            yield replace(same[slowest], **sizes)

    def _scaled(self, config: Configuration, sizes: Sequence[int]) -> int:
        """The most of the kinds' bytes, each measured by the limit of its own devices."""
        limits = (kind.memory_limit_bytes for kind in self.kinds)
        unit, pairs = self._fullest(config).memory_limit_bytes, zip(sizes, limits, strict=True)
        return max(-(-size * unit // limit) for size, limit in pairs)

    def _fullest(self, config: Configuration) -> Pricer:
        """The kind whose memory replicas fill most, each with the leanest option of every layer."""
        if config not in self._full:
            filled = [
                self._least_bytes(kind, own) / kind.memory_limit_bytes
                for kind, own in self.each(config)
            ]
            self._full[config] = filled.index(max(filled))
        return self.kinds[self._full[config]]

    def _least_bytes(self, kind: Pricer, config: Configuration) -> int:
        """Bytes that layers hold on one kind whatever is chosen."""
        once = config.depth(0)
        return sum(
            count * min(o.held_bytes(once) for o in kind.menu(member, config, demand=demand))
            for (member, demand), count in Counter(self.demanded).items()
        )

    def least_seconds(
        self, member: str, demand: Demand | None, config: Configuration
    ) -> tuple[float, float]:
        """Those of the slowest kind."""
        kind, own = self.each(config)[self._slowest(config)]
        return kind.least_seconds(member, demand, own)

    def buffer_bytes(
        self, config: Configuration, cuts: Sequence[int] | None = None, first: bool = True
    ) -> int:
        """Buffers of no block, and the inputs of all micro-batches."""
        sizes = [k.buffer_bytes(own, cuts, first) for k, own in self.each(config)]
        return self._scaled(config, sizes)

    def reserve_bytes(self, config: Configuration) -> int:
        """That of the devices whose share is largest."""
        return self._scaled(config, [k.reserve_bytes(own) for k, own in self.each(config)])


BYTES = (
    "state_bytes", "activation_bytes", "transient_bytes", "waiting_bytes", "gradient_bytes",
    "optimizer_bytes", "reserve_bytes", "alone_bytes",
)  # fmt: skip


def divided(pricer: Pricer, config: Configuration, samples: int) -> Iterable[Configuration]:
    """The divisions of ``samples`` per micro-batch between the dp ranks that are in the space."""
    if isinstance(pricer, HeterogeneousPricer) and config.pp == 1:
        return pricer.spread(config, samples)
    return (config,)


def heterogeneous_pricer(kinds: Iterable[Pricer], devices: tuple[int, ...]) -> HeterogeneousPricer:
    """The pricer of a model on as many devices of each kind."""
    each = tuple(kinds)
    own = {f.name: getattr(each[0], f.name) for f in fields(Pricer) if not f.name.startswith("_")}
    return HeterogeneousPricer(**own, kinds=each, devices=devices)


def assemble_kinds(
    pricer: Pricer, names: tuple[str, ...], solution: Solution
) -> tuple[tuple[StagePlan, ...], tuple[LayerPlan, ...], Prediction, tuple[Kind, ...]]:
    """What ``assemble`` returns, and figures of each kind if there are several.

    Of replicas the others are then those of the kind that takes longest.
    """
    if not isinstance(pricer, HeterogeneousPricer):
        return *assemble(pricer, names, solution), ()
    if solution.problem.configuration.pp > 1:
        found = assemble(pricer, names, solution)
        return *found, _kinds_of_stages(pricer, solution, *found[::2])
    return _assemble_replicas(pricer, names, solution)


def _kinds_of_stages(
    pricer: HeterogeneousPricer, solution: Solution, stages: tuple[StagePlan, ...],
    predicted: Prediction,
) -> tuple[Kind, ...]:  # fmt: skip
    """The figures of each kind: all take part in the whole step."""
    config = solution.problem.configuration
    ranks = pricer.rank_kinds(config)
    memory = [
        sum_memory(stage.prediction.memory for stage in stages[rank :: config.pp]).total
        for rank in range(config.pp)
    ]
    return tuple(
        Kind(
            kind.cluster.name, count, config.microbatch_size, predicted.step_seconds,
            max(m for m, own in zip(memory, ranks, strict=True) if own == k),
            kind.memory_limit_bytes,
            tuple(s for s in range(config.stages) if ranks[s % config.pp] == k),
        )
        for k, (kind, count) in enumerate(zip(pricer.kinds, pricer.devices, strict=True))
    )  # fmt: skip


def _assemble_replicas(
    pricer: HeterogeneousPricer, names: tuple[str, ...], solution: Solution
) -> tuple[tuple[StagePlan, ...], tuple[LayerPlan, ...], Prediction, tuple[Kind, ...]]:
    """Each kind simulated by itself; stages and layers are those of the slowest."""
    config = solution.problem.configuration
    pairs = pricer.each(config)
    found = [assemble(kind, names, _on(kind, own, solution)) for kind, own in pairs]
    kinds = tuple(
        Kind(
            kind.cluster.name, count, own.microbatch_size, predicted.step_seconds,
            predicted.memory_bytes, kind.memory_limit_bytes, stages=(0,),
        )
        for (kind, own), count, (*_, predicted) in zip(pairs, pricer.devices, found, strict=True)
    )  # fmt: skip
    stages, layers, slowest = max(found, key=lambda each: each[2].step_seconds)
    peaks = [kind.cluster.peak_flops(pricer.precision) for kind, _ in pairs]
    rates = [count * peak for count, peak in zip(pricer.devices, peaks, strict=True)]
    work = sum(
        rate * predicted.mfu * predicted.step_seconds
        for rate, (*_, predicted) in zip(rates, found, strict=True)
    )
    step = slowest.step_seconds
    whole = replace(
        slowest,
        memory_bytes=max(kind.memory_bytes for kind in kinds),
        samples_per_second=config.global_batch_size / step,
        mfu=work / (step * sum(rates)),
    )
    return stages, layers, whole, kinds


def _on(pricer: Pricer, config: Configuration, solution: Solution) -> Solution:
    """The solution with the options as one kind of device has them."""
    problem = replace(solution.problem, configuration=config)
    options = tuple(
        next(pricer.options(member, config, taken.tp_option, taken.zero, [taken.recompute]))
        for member, taken in zip(pricer.classes.members, solution.options, strict=True)
    )
    return replace(solution, problem=problem, options=options)
