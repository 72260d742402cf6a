"""A problem as arrays. Links between layers are resolved here: one chain per agreed key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from autopar.cost.schedule import Depth
from autopar.solve.price import neighbours
from autopar.solve.problem import Option, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Place:
    """What a stage holds at its peak, and the bytes that it may use of its rank's.

    ``most_bytes`` are left if the rank's other stages hold as little as they can; ``fair_bytes``
    add up to no more than the rank has. With one stage per rank both are all of it.
    """

    depth: Depth
    most_bytes: float
    fair_bytes: float


@dataclass(frozen=True)
class Chain:
    """A problem without links, its options stacked class by class.

    ``problem`` is the original; ``layers`` and ``menus`` are after links and dominance.
    Arrays over options have the shape [options]; ``owner`` is the class of each option.
    Bytes are float64, which holds whole numbers up to 2**53 exactly.
    """

    problem: Problem
    layers: tuple[int, ...]
    menus: tuple[tuple[Option, ...], ...]

    @property
    def pp(self) -> int:
        """Number of ranks along the pipeline."""
        return self.problem.configuration.pp

    @property
    def stages(self) -> int:
        """Number of stages."""
        return self.problem.configuration.stages

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one optimizer step."""
        return self.problem.configuration.num_microbatches

    @property
    def room_bytes(self) -> int:
        """What the layers of one rank may use."""
        return self.problem.memory_limit_bytes - self.problem.baseline_bytes

    @property
    def shares_rank(self) -> bool:
        """Whether a rank holds more stages than one."""
        return self.stages > self.pp

    @property
    def coupled(self) -> bool:
        """Whether patterns differ in more than seconds and step seconds.

        Bytes matter beyond the limit where stages share a rank, and crossing seconds are a
        figure of their own where they are not the seconds.
        """
        return self.shares_rank or self.problem.configuration.splits_backward

    @cached_property
    def depths(self) -> tuple[Depth, ...]:
        """What each stage holds at its peak."""
        return tuple(self.problem.configuration.depth(s) for s in range(self.stages))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Depth and room of each stage."""
        room = float(self.room_bytes)
        if not self.shares_rank:
            return tuple(Place(depth, room, room) for depth in self.depths)
        leanest = [self._leanest_bytes(s) for s in range(self.stages)]
        least = np.array([held.min() for held in leanest])
        usual = np.array([held.mean() for held in leanest])
        ranks = np.arange(self.stages) % self.pp
        of_rank = [np.bincount(ranks, weights=x)[ranks] for x in (least, usual)]
        most = room - (of_rank[0] - least)
        fair = room * usual / np.maximum(of_rank[1], 1.0)
        return tuple(
            Place(depth, float(m), float(f))
            for depth, m, f in zip(self.depths, most, fair, strict=True)
        )

    def _leanest_bytes(self, stage: int) -> Floats:
        """The least that every interval allowed on a stage holds, without transients."""
        held = self.held_bytes(self.depths[stage])
        each = np.array([held[self.owner == c].min(initial=np.inf) for c in range(len(self.menus))])
        contents = np.unique(self.content[self.allowed[stage]])
        sums = self.counts[contents] @ np.where(np.isfinite(each), each, 0.0)
        return np.asarray(sums if len(sums) else np.array([np.inf]))

    def held_bytes(self, depth: Depth) -> Floats:
        """Bytes of one layer with each option at this depth, without transients."""
        held = self.state_bytes + depth.forwarded * self.activation_bytes
        return np.asarray(held + depth.waiting * _column(self.options, "waiting_bytes"))

    @cached_property
    def allowed(self) -> Bools:
        """Which intervals [i, j) a stage may take; [stages, layers+1, layers+1]."""
        n = len(self.layers)
        begin = np.ones((self.stages + 1, n + 1), dtype=bool)
        for s, cuts in enumerate(self.problem.cuts):
            begin[s] = np.isin(np.arange(n + 1), cuts)
        begin[self.stages] = np.arange(n + 1) == n
        starts, ends = begin[:-1, :, None], begin[1:, None, :]
        return np.asarray((self.content >= 0) & starts & (ends | (not self.problem.cuts)))

    @cached_property
    def transfer_seconds(self) -> Floats:
        """p2p seconds of each stage, [stages]."""
        each = [neighbours(self.stages, s) for s in range(self.stages)]
        return self.problem.p2p_seconds * np.array(each, dtype=np.float64)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """All options, in the order of the arrays."""
        return tuple(itertools.chain.from_iterable(self.menus))

    @cached_property
    def owner(self) -> Ints:
        """The class of each option."""
        return np.repeat(np.arange(len(self.menus)), [len(menu) for menu in self.menus])

    @cached_property
    def seconds(self) -> Floats:
        """Seconds per micro-batch; with one stage, also its share of the once-per-step seconds.

        With pp = 1 the objective is m * t + g = m * (t + g / m), so one figure says it all.
        """
        seconds = _column(self.options, "microbatch_seconds")
        if self.pp == 1:
            seconds = seconds + _column(self.options, "step_seconds") / self.num_microbatches
        return seconds

    @cached_property
    def lead_seconds(self) -> Floats:
        """The v-th part of the crossing seconds: what one micro-batch adds to the first's way.

        Where they are not a figure of their own they are the v-th part of ``seconds``.
        """
        configuration = self.problem.configuration
        if not configuration.splits_backward:
            return self.seconds / configuration.virtual_stages
        crossing = [configuration.crossing_seconds(option) for option in self.options]
        return np.array(crossing, dtype=np.float64) / configuration.virtual_stages

    @cached_property
    def pace_seconds(self) -> Floats:
        """What all micro-batches take on a rank besides ``lead_seconds``."""
        return np.asarray(self.num_microbatches * self.seconds - self.lead_seconds)

    @property
    def lead_transfers(self) -> Floats:
        """The part of ``transfer_seconds`` in the lead of each stage, [stages]."""
        return np.asarray(self.transfer_seconds / self.problem.configuration.virtual_stages)

    @property
    def pace_transfers(self) -> Floats:
        """The part of ``transfer_seconds`` in the pace of each stage, [stages]."""
        return np.asarray(self.num_microbatches * self.transfer_seconds - self.lead_transfers)

    @cached_property
    def step_seconds(self) -> Floats:
        """Seconds per optimizer step, 0 where ``seconds`` already holds them."""
        return _column(self.options, "step_seconds") * (self.pp > 1)

    @cached_property
    def state_bytes(self) -> Floats:
        """Parameters, gradients and optimizer state."""
        return _column(self.options, "state_bytes")

    @cached_property
    def activation_bytes(self) -> Floats:
        """Kept per micro-batch in flight."""
        return _column(self.options, "activation_bytes")

    @cached_property
    def transient_bytes(self) -> Floats:
        """Peak on top while the layer runs."""
        return _column(self.options, "transient_bytes")

    @cached_property
    def counts(self) -> Ints:
        """Layers per class of every different interval, [contents, classes]."""
        return self._intervals[0]

    @cached_property
    def content(self) -> Ints:
        """Row of ``counts`` for the interval [i, j), -1 where it is empty; [layers+1, layers+1]."""
        return self._intervals[1]

    @cached_property
    def _intervals(self) -> tuple[Ints, Ints]:
        return _intervals_of(self.layers, len(self.menus))


@lru_cache(maxsize=64)
def _intervals_of(layers: tuple[int, ...], classes: int) -> tuple[Ints, Ints]:
    """``counts`` and ``content``; most configurations of a model have the same."""
    n = len(layers)
    each = np.zeros((n + 1, classes), dtype=np.int64)
    each[np.arange(1, n + 1), list(layers)] = 1
    before = each.cumsum(axis=0)
    start, end = np.triu_indices(n + 1, k=1)
    rows, inverse = np.unique(before[end] - before[start], axis=0, return_inverse=True)
    content = np.full((n + 1, n + 1), -1, dtype=np.int64)
    content[start, end] = inverse.reshape(-1)
    for shared in (rows, content):
        shared.flags.writeable = False
    return rows, content


def _column(options: Sequence[Option], name: str) -> Floats:
    return np.array([getattr(option, name) for option in options], dtype=np.float64)


def relaxed_chain(problem: Problem) -> Chain:
    """The chain without the rule that linked layers agree: never dearer than the problem."""
    return _prune(Chain(problem, problem.layers, problem.menus))


def chains(problem: Problem) -> Iterator[Chain]:
    """One chain per choice of a key for each group of linked layers; one in all without links.

    Uniform classes multiply them by the choices of their zero mode and shardings.
    """
    groups = _groups(problem)
    keys = [_common_keys(problem, group) for group in groups]
    for chosen in itertools.product(*keys):
        for uniform in _uniform_menus(problem):
            layers, menus = list(problem.layers), list(uniform)
            for group, key in zip(groups, chosen, strict=True):
                _fix_key(layers, menus, group, key)
            yield _prune(Chain(problem, tuple(layers), tuple(menus)))


def _uniform_menus(problem: Problem) -> Iterator[list[tuple[Option, ...]]]:
    """The menus with one zero mode and one sharding left for each uniform class."""
    present = [c for c in problem.uniform if c in problem.layers]
    zeros = {o.zero for c in present for o in problem.menus[c]}
    ways = [sorted({o.tp_option for o in problem.menus[c]}) for c in present]
    for zero, *taken in itertools.product(sorted(zeros) if present else [0], *ways):
        menus = list(problem.menus)
        for c, k in zip(present, taken, strict=True):
            menus[c] = tuple(o for o in menus[c] if (o.zero, o.tp_option) == (zero, k))
        if all(menus[c] for c in present):
            yield menus


def _groups(problem: Problem) -> list[set[int]]:
    """Layers that are linked with each other, directly or not."""
    groups: list[set[int]] = []
    for pair in problem.linked:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined]
        groups.append(set(pair).union(*joined))
    return groups


def _common_keys(problem: Problem, group: Iterable[int]) -> list[str]:
    offered = [{o.key for o in problem.menus[problem.layers[i]]} for i in group]
    return sorted(set.intersection(*offered))


def _fix_key(
    layers: list[int], menus: list[tuple[Option, ...]], group: Iterable[int], key: str
) -> None:
    """Gives the linked layers classes of their own, whose options all have ``key``."""
    renamed: dict[int, int] = {}
    for i in group:
        old = layers[i]
        if old not in renamed:
            renamed[old] = len(menus)
            menus.append(tuple(o for o in menus[old] if o.key == key))
        layers[i] = renamed[old]


def _prune(chain: Chain) -> Chain:
    """Drops classes that no layer has, and options that another beats in every figure."""
    used = sorted(set(chain.layers))
    number = {old: new for new, old in enumerate(used)}
    layers = tuple(number[c] for c in chain.layers)
    whole = replace(chain, layers=layers, menus=tuple(chain.menus[c] for c in used))
    figures = np.stack(
        [whole.seconds, whole.lead_seconds, whole.step_seconds, whole.state_bytes,
         whole.activation_bytes, whole.transient_bytes, _column(whole.options, "waiting_bytes")],
        axis=1,
    )  # fmt: skip
    menus = []
    for c, menu in enumerate(whole.menus):
        keep = undominated(figures[whole.owner == c])
        menus.append(tuple(o for o, kept in zip(menu, keep, strict=True) if kept))
    return replace(whole, menus=tuple(menus))


def undominated(figures: Floats) -> Bools:
    """Which rows of ``figures`` [rows, kinds] no other row matches or beats everywhere.

    Of equal rows the first stays.
    """
    less = (figures[:, None] <= figures[None]).all(axis=2)
    equal = less & less.T
    earlier = np.tri(len(figures), k=-1, dtype=bool).T
    beaten = (less & ~equal) | (equal & earlier)
    return np.asarray(~beaten.any(axis=0))
