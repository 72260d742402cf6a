"""Prices and figures of a step that devices of two kinds take part in.

Replicas (pp = 1) get micro-batches of different sizes, equally many of them, so that all are done
at the same time. What is chosen for a layer holds on every rank: the program is one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any, Self

from autopar.plan import Kind, LayerPlan, Prediction, StagePlan
from autopar.solve.assemble import assemble
from autopar.solve.kinds import EQUAL
from autopar.solve.menus import Pricer
from autopar.solve.placements import Demand
from autopar.solve.problem import Configuration, Option, Solution


@dataclass
class HeterogeneousPricer(Pricer):
    """Prices of one traced model on devices of several kinds, each with a pricer of its own.

    Time is that of the kind that takes longest for a whole step at its fastest, so it is never more
    than what the slowest rank takes. Bytes count as the share of the memory that they take where it
    is largest. Shardings are those of the first kind.

    Attributes:
        kinds: the pricers, in the order of the ranks.
        devices: how many devices of each kind there are.
    """

    kinds: tuple[Pricer, ...] = ()
    devices: tuple[int, ...] = ()
    _last: dict[Configuration, int] = field(default_factory=dict)

    def with_pins(self, pins: dict[str, Any]) -> Self:
        """The same prices under other pins: all kinds are offered the same shardings."""
        own = super().with_pins(pins)
        kinds = (
            replace(kind.with_pins(pins), shardings=replace(own.shardings, cluster=kind.cluster))
            for kind in self.kinds
        )
        return replace(own, kinds=tuple(kinds), _last={})

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
        pinned, equal = self.pins.get("shares"), [c for c in whole if len(set(c.shares)) == 1]
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
            sizes = {name: self._scaled([getattr(o, name) for o in same]) for name in BYTES}
            yield replace(same[slowest], **sizes)

    def _scaled(self, sizes: Sequence[int]) -> int:
        """The most of the kinds' bytes, each measured by the limit of its own devices."""
        limits = (kind.memory_limit_bytes for kind in self.kinds)
        pairs = zip(sizes, limits, strict=True)
        return max(-(-size * self.memory_limit_bytes // limit) for size, limit in pairs)

    def least_seconds(
        self, member: str, demand: Demand | None, config: Configuration
    ) -> tuple[float, float]:
        """Those of the slowest kind."""
        kind, own = self.each(config)[self._slowest(config)]
        return kind.least_seconds(member, demand, own)

    def buffer_bytes(
        self, config: Configuration, cuts: Sequence[int] | None = None, first: bool = True
    ) -> int:
        """The inputs of all micro-batches."""
        return self._scaled([k.buffer_bytes(own, cuts, first) for k, own in self.each(config)])


BYTES = (
    "state_bytes", "activation_bytes", "transient_bytes", "waiting_bytes", "gradient_bytes",
    "optimizer_bytes",
)  # fmt: skip


def divided(pricer: Pricer, config: Configuration, samples: int) -> Iterable[Configuration]:
    """The divisions of ``samples`` per micro-batch between the dp ranks that are in the space."""
    if isinstance(pricer, HeterogeneousPricer):
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

    The others are then those of the kind that takes longest.
    """
    if not isinstance(pricer, HeterogeneousPricer):
        return *assemble(pricer, names, solution), ()
    config = solution.problem.configuration
    pairs = pricer.each(config)
    found = [assemble(kind, names, _on(kind, own, solution)) for kind, own in pairs]
    kinds = tuple(
        Kind(
            kind.cluster.name, count, own.microbatch_size, predicted.step_seconds,
            predicted.memory_bytes, kind.memory_limit_bytes,
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
