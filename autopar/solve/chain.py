"""A problem as arrays. Links between layers are resolved here: one chain per agreed key."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopar.solve.price import neighbours
from autopar.solve.problem import Option, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
        """Number of stages."""
        return self.problem.configuration.pp

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of one optimizer step."""
        return self.problem.configuration.num_microbatches

    @property
    def room_bytes(self) -> int:
        """What the layers of one stage may use."""
        return self.problem.memory_limit_bytes - self.problem.baseline_bytes

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The in-flight depth of each stage."""
        return tuple(self.problem.configuration.in_flight(p) for p in range(self.pp))

    @cached_property
    def transfer_seconds(self) -> Floats:
        """p2p seconds of each stage, [pp]."""
        each = [neighbours(self.pp, p) for p in range(self.pp)]
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
        n = len(self.layers)
        each = np.zeros((n + 1, len(self.menus)), dtype=np.int64)
        each[np.arange(1, n + 1), list(self.layers)] = 1
        before = each.cumsum(axis=0)
        start, end = np.triu_indices(n + 1, k=1)
        rows, inverse = np.unique(before[end] - before[start], axis=0, return_inverse=True)
        content = np.full((n + 1, n + 1), -1, dtype=np.int64)
        content[start, end] = inverse.reshape(-1)
        return rows, content


def _column(options: Sequence[Option], name: str) -> Floats:
    return np.array([getattr(option, name) for option in options], dtype=np.float64)


def relaxed_chain(problem: Problem) -> Chain:
    """The chain without the rule that linked layers agree: never dearer than the problem."""
    return _prune(Chain(problem, problem.layers, problem.menus))


def chains(problem: Problem) -> Iterator[Chain]:
    """One chain per choice of a key for each group of linked layers; one in all without links."""
    groups = _groups(problem)
    keys = [_common_keys(problem, group) for group in groups]
    for chosen in itertools.product(*keys):
        layers, menus = list(problem.layers), list(problem.menus)
        for group, key in zip(groups, chosen, strict=True):
            _fix_key(layers, menus, group, key)
        yield _prune(Chain(problem, tuple(layers), tuple(menus)))


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
        [whole.seconds, whole.step_seconds, whole.state_bytes,
         whole.activation_bytes, whole.transient_bytes], axis=1,
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
