"""A problem as arrays. Links between layers are resolved here: one chain per agreed key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from autopar.cost.schedule import Depth
from autopar.solve.fold import Fold
from autopar.solve.problem import Option, Problem, crossing_seconds

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Depths = tuple[Depth, ...]  # of the stages of a rank


@dataclass(frozen=True)
class Place:
    """What the stages of a rank hold at their peaks, one by one, and the kind of its devices."""

    depths: Depths
    kind: int = 0


@dataclass(frozen=True)
class Chain:
    """A problem without links, its layers in the order of which each rank takes an interval.

    ``problem`` is the original; ``layers`` and ``menus`` are after links, folding and dominance:
    a class has one place in the chain's chunks, its number in ``chunks``. Arrays over options have
    the shape [options]; ``owner`` is the class of each option. Bytes are float64, which holds whole
    numbers up to 2**53 exactly. ``views`` are the same chain as each kind of device has it, where
    there are several: what is on one rank, its options and its memory, is that of a view.
    """

    problem: Problem
    layers: tuple[int, ...]
    menus: tuple[tuple[Option, ...], ...]
    chunks: tuple[int, ...]
    views: tuple[Chain, ...] = ()

    def on(self, kind: int) -> Chain:
        """The chain as devices of a kind have it."""
        return self.views[kind] if self.views else self

    @property
    def pp(self) -> int:
        """Number of ranks along the pipeline."""
        return self.problem.configuration.pp

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one optimizer step."""
        return self.problem.configuration.num_microbatches

    @property
    def splits_backward(self) -> bool:
        """Whether the lead is a figure of its own, and no share of the seconds."""
        return self.problem.configuration.splits_backward

    @property
    def room_bytes(self) -> int:
        """What the layers of one rank may use."""
        return self.problem.memory_limit_bytes - self.problem.baseline_bytes

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Depths and kind of each rank."""
        depths, kind = self.problem.configuration.depths, self.problem.kind
        return tuple(Place(depths[rank :: self.pp], kind(rank)) for rank in range(self.pp))

    def held_bytes(self, depths: Depths) -> Floats:
        """Bytes of one layer with each option on a rank of these depths, without transients."""
        forwarded, waiting = self._depths(depths)
        return np.asarray(
            self.state_bytes + forwarded * self.activation_bytes + waiting * self.waiting_bytes
        )

    def beside_bytes(self, depths: Depths) -> Floats:
        """What of ``held_bytes`` is no tensor."""
        return np.asarray(self._depths(depths)[0] * _column(self.options, "reserve_bytes"))

    def _depths(self, depths: Depths) -> Floats:
        """Micro-batches that each option holds forwarded and waiting, [2, options]."""
        return np.asarray(_numbers(depths)[self._chunk].T)

    def held_on(self, ranks: Ints) -> Floats:
        """``held_bytes`` on each of these ranks, [ranks, options]."""
        each = _numbers(self.problem.configuration.depths).reshape(-1, self.pp, 2)
        forwarded, waiting = each[self._chunk][:, ranks].transpose(2, 1, 0)
        held = self.state_bytes + forwarded * self.activation_bytes
        return np.asarray(held + waiting * self.waiting_bytes)

    @cached_property
    def _chunk(self) -> Ints:
        """The chunk that each option's class is in."""
        return np.array(self.chunks, dtype=np.int64)[self.owner]

    def twins(self, depths: Depths) -> Ints:
        """For each class the first one with the same options on a stage as deep, [classes]."""
        kinds = [(m, depths[chunk]) for m, chunk in zip(self.menus, self.chunks, strict=True)]
        first = {kind: c for c, kind in reversed(list(enumerate(kinds)))}
        return np.array([first[kind] for kind in kinds], dtype=np.int64)

    @cached_property
    def allowed(self) -> Bools:
        """Which intervals [i, j) of the order a rank may take; [ranks, layers+1, layers+1]."""
        fold, pp, cuts = self.problem.fold, self.pp, self.problem.cuts
        begin = np.ones((pp + 1, len(self.layers) + 1), dtype=bool)
        for s, places in enumerate(cuts):
            begin[s % pp] &= np.isin(fold.begins[:, s // pp], places)
        begin[pp] = np.arange(len(self.layers) + 1) == len(self.layers)
        filled = (fold.taken[None] > fold.taken[:, None]).all(axis=2)
        learning = [self.problem.layers[i] not in self.problem.idle for i in fold.layers]
        before = np.cumsum([0, *learning])
        filled &= (self.pp == 1) | (before[None] > before[:, None])
        starts, ends = begin[:-1, :, None], begin[1:, None, :]
        return np.asarray(filled & starts & (ends | (not cuts)))

    @cached_property
    def transfer_ends(self) -> tuple[Floats, Floats]:
        """p2p seconds of a rank that begins at a place, and that ends there; [ranks, layers+1].

        A cut between two ranks is one of every chunk.
        """
        fold, boundaries = self.problem.fold, self.problem.boundary_seconds
        rows = {id(own): own for own in boundaries}  # few objects, and long ones to compare
        order = {key: number for number, key in enumerate(rows)}
        which = np.array([order[id(own)] for own in boundaries])  # [stages + 1]
        seconds = np.zeros((len(rows), len(self.layers) + 1))
        seconds[:, :-1] = list(rows.values())
        moved = seconds[:, fold.begins]  # [rows, layers+1, chunks]
        before, after = (own.reshape(-1, self.pp) for own in (which[:-1], which[1:]))
        chunk = np.arange(len(before))[:, None]
        begin, finish = (moved[own, :, chunk].sum(axis=0) for own in (before, after))
        return begin, finish

    def transfer_seconds(self, rank: Ints, start: Ints, end: Ints) -> Floats:
        """p2p seconds of these ranks with these intervals."""
        begin, finish = self.transfer_ends
        return np.asarray(begin[rank, start] + finish[rank, end])

    @cached_property
    def least_transfer_seconds(self) -> Floats:
        """p2p seconds of each rank at least, wherever it begins and ends; [ranks]."""
        (begin, finish), n = self.transfer_ends, len(self.layers)
        inner = np.arange(1, self.pp)[:, None]  # a layer at least is on each rank
        places = inner + np.arange(n - self.pp + 1)
        first = np.append(begin[0, 0], begin[inner, places].min(axis=1))
        last = np.append(finish[inner - 1, places].min(axis=1), finish[-1, n])
        return np.asarray(first + last)

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
    def lead_share(self) -> float:
        """How often p2p seconds are in the lead of a rank."""
        return 1 / self.problem.configuration.virtual_stages

    @property
    def pace_share(self) -> float:
        """How often p2p seconds are in the pace of a rank."""
        return self.num_microbatches - self.lead_share

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
    def waiting_bytes(self) -> Floats:
        """Kept besides per micro-batch whose parameters' gradients are still to be made."""
        return _column(self.options, "waiting_bytes")

    @cached_property
    def counts(self) -> Ints:
        """Layers per class of every different interval, [contents, classes]."""
        return self._intervals[0]

    @cached_property
    def content(self) -> Ints:
        """Row of ``counts`` for the interval [i, j), -1 where none is; [layers+1, layers+1]."""
        return self._intervals[1]

    @cached_property
    def _intervals(self) -> tuple[Ints, Ints]:
        if not self.problem.cuts:
            return _all_intervals(self.layers, len(self.menus))
        return _intervals_of(self.layers, len(self.menus), *np.nonzero(self.allowed.any(axis=0)))


@lru_cache(maxsize=64)
def _all_intervals(layers: tuple[int, ...], classes: int) -> tuple[Ints, Ints]:
    """``counts`` and ``content`` of all intervals; most configurations of a model have the same."""
    return _intervals_of(layers, classes, *np.triu_indices(len(layers) + 1, k=1))


def _intervals_of(
    layers: tuple[int, ...], classes: int, start: Ints, end: Ints
) -> tuple[Ints, Ints]:
    """``counts`` and ``content`` of some intervals."""
    n = len(layers)
    each = np.zeros((n + 1, classes), dtype=np.int64)
    each[np.arange(1, n + 1), list(layers)] = 1
    before = each.cumsum(axis=0)
    rows, inverse = np.unique(before[end] - before[start], axis=0, return_inverse=True)
    content = np.full((n + 1, n + 1), -1, dtype=np.int64)
    content[start, end] = inverse.reshape(-1)
    for shared in (rows, content):
        shared.flags.writeable = False
    return rows, content


def _numbers(depths: Depths) -> Floats:
    """Micro-batches forwarded and waiting, [depths, 2]."""
    return np.array([(d.forwarded, d.waiting) for d in depths], dtype=np.float64)


def _column(options: Sequence[Option], name: str) -> Floats:
    return np.array([getattr(option, name) for option in options], dtype=np.float64)


def relaxed_chain(problem: Problem) -> Chain:
    """The chain without the rule that linked layers agree: never dearer than the problem."""
    return _folded(problem, problem.layers, _by_kind(problem))


def chains(problem: Problem) -> Iterator[Chain]:
    """One chain per choice of a key for each group of linked layers; one in all without links."""
    groups = _groups(problem)
    keys = [_common_keys(problem, group) for group in groups]
    for chosen in itertools.product(*keys):
        layers, menus = list(problem.layers), _by_kind(problem)
        for group, key in zip(groups, chosen, strict=True):
            layers = _fix_key(layers, menus, group, key)
        yield _folded(problem, layers, menus)


def _by_kind(problem: Problem) -> list[list[tuple[Option, ...]]]:
    """The menus of each kind of device."""
    return [list(own.menus) for own in problem.kinds or (problem,)]


def _groups(problem: Problem) -> list[set[int]]:
    """Layers that are linked with each other, directly or not."""
    groups: list[set[int]] = []
    for pair in problem.linked:
        joined = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if group not in joined]
        groups.append(set(pair).union(*joined))
    return groups


def _common_keys(problem: Problem, group: Iterable[int]) -> list[str]:
    each = _by_kind(problem)
    offered = [{o.key for o in menus[problem.layers[i]]} for menus in each for i in group]
    return sorted(set.intersection(*offered))


def _fix_key(
    layers: list[int], each: list[list[tuple[Option, ...]]], group: Iterable[int], key: str
) -> list[int]:
    """Gives the linked layers classes of their own, whose options all have ``key``."""
    renamed: dict[int, int] = {}
    for old in sorted({layers[i] for i in group}):
        renamed[old] = len(each[0])
        for menus in each:
            menus.append(tuple(o for o in menus[old] if o.key == key))
    return [renamed[old] if i in group else old for i, old in enumerate(layers)]


def _folded(
    problem: Problem, layers: Sequence[int], each: Sequence[Sequence[tuple[Option, ...]]]
) -> Chain:
    """The layers in their order, those of another chunk in classes of their own.

    Without options that another beats in every figure. ``each`` are the menus of each kind.
    """
    order, classes = _places(tuple(layers), problem.fold)
    chunks = tuple(k for _, k in classes)
    first, *others = (
        Chain(own, order, _useful(own, classes, menus), chunks)
        for own, menus in zip(problem.kinds or (problem,), each, strict=True)
    )
    if not others:
        return first
    return Chain(problem, order, first.menus, chunks, (first, *others))


@lru_cache(maxsize=256)
def _places(
    layers: tuple[int, ...], fold: Fold
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The number of each place's class in the order of the fold, and what each is.

    A class of the chain is a class of the layers in one chunk.
    """
    pairs = [(layers[i], k) for i, k in zip(fold.layers.tolist(), fold.turns, strict=True)]
    classes = sorted(set(pairs))
    number = {pair: n for n, pair in enumerate(classes)}
    return tuple(number[pair] for pair in pairs), tuple(classes)


def _useful(
    problem: Problem, classes: Sequence[tuple[int, int]], offered: Sequence[tuple[Option, ...]]
) -> tuple[tuple[Option, ...], ...]:
    """The options of each class and chunk that no other beats in every figure."""
    config = problem.configuration
    alone = config.num_microbatches if config.pp == 1 else 0
    useful = {c: _unbeaten(offered[c], alone, config.splits_backward) for c, _ in classes}
    return tuple(useful[c] for c, _ in classes)


@lru_cache(maxsize=1 << 12)
def _unbeaten(menu: tuple[Option, ...], alone: int, splits_backward: bool) -> tuple[Option, ...]:
    """The options that no other beats; configurations of one mesh and micro-batch share menus.

    ``alone`` are the micro-batches of a step where there is one stage, 0 with several: then
    seconds per micro-batch and per step are one figure.
    """
    seconds, step = _column(menu, "microbatch_seconds"), _column(menu, "step_seconds")
    lead = [crossing_seconds(option, splits_backward) for option in menu]
    time = [seconds + step / alone] if alone else [seconds, step, np.array(lead)]
    held = ("state_bytes", "activation_bytes", "transient_bytes", "waiting_bytes")
    kept = undominated(np.stack([*time, *(_column(menu, name) for name in held)], axis=1))
    return tuple(itertools.compress(menu, kept))


def undominated(figures: Floats) -> Bools:
    """Which rows of ``figures`` [rows, kinds] no other row matches or beats everywhere.

    Of equal rows the first stays.
    """
    less = (figures[:, None] <= figures[None]).all(axis=2)
    equal = less & less.T
    earlier = np.tri(len(figures), k=-1, dtype=bool).T
    beaten = (less & ~equal) | (equal & earlier)
    return np.asarray(~beaten.any(axis=0))
