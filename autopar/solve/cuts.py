"""Where stages may begin: pinned numbers of blocks, and pinned stages of single layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from autopar.errors import UsageError
from autopar.solve.fold import even_starts, turns_through
from autopar.solve.pins import pin_of
from autopar.solve.problem import Configuration

# For each stage the layers that it may begin with; empty where any may.
Cuts = tuple[tuple[int, ...], ...]


def pinned_cuts(
    pins: dict[str, Any], names: Sequence[str], blocks: Sequence[bool], stages: int
) -> Cuts | None:
    """The first layers that pins leave to each stage, () where they say nothing, None if none.

    ``stages`` as a pin has the number of blocks of each stage, in order: what is no block goes
    with the blocks before or behind it, as the solver likes. ``stage`` has stages by layer.

    Args:
        pins: all pins.
        names: of the layers, in order.
        blocks: which of them are blocks.
        stages: their number.
    """
    if "stages" not in pins and "stage" not in pins:
        return ()
    layers = len(names)
    allowed = [range(s, layers - stages + s + 1) for s in range(stages)]
    cuts: list[Sequence[int]] = [range(1), *allowed[1:]]
    if "stages" in pins:
        counts, before = pins["stages"], list(accumulate(blocks, initial=0))
        sums = list(accumulate(counts, initial=0))
        if len(counts) != stages or sums[-1] != before[-1]:
            return None
        cuts = [[i for i in own if before[i] == sums[s]] for s, own in enumerate(cuts)]
    for i, name in enumerate(names):
        stage = pin_of(pins.get("stage"), name)
        if stage is not None:
            cuts = [
                [k for k in own if (k <= i if s <= stage else k > i)] for s, own in enumerate(cuts)
            ]
            if stage >= stages:
                return None
    return _ascending(cuts)


def common(first: Cuts, second: Cuts) -> Cuts:
    """The cuts that are in both; a stage may have none."""
    if not (first and second):
        return first or second
    return tuple(tuple(sorted(set(a) & set(b))) for a, b in zip(first, second, strict=True))


def narrowed(wanted: Cuts, usual: Cuts) -> Cuts:
    """The usual cuts that are wanted too; the wanted ones where these leave none."""
    if not wanted:
        return usual
    return _ascending(common(wanted, usual)) or wanted


def nearest(wanted: Cuts, usual: Sequence[int]) -> list[int]:
    """Of each stage's cuts the one that is nearest the usual one; none if some stage has none."""
    found: list[int] = []
    for own, at in zip(wanted, usual, strict=True):
        later = [i for i in own if not found or i > found[-1]]
        if not later:
            return []
        found.append(min(later, key=lambda i: abs(i - at)))
    return found


def near_cuts(blocks: Sequence[int], config: Configuration) -> Cuts:
    """Where stages that share a rank may begin: within one block of equal stages.

    Stages that differ by more stall each other, which the objective does not see. ``blocks`` are
    the layers that stages may begin with.
    """
    if config.virtual_stages == 1:
        return ()
    near = (
        range(max(1, k - 1), min(len(blocks) - 1, k + 1) + 1)
        for k in even_starts(len(blocks), config.stages)[1:]
    )
    return ((0,), *(tuple(blocks[k] for k in numbers) for numbers in near))


def equal_cuts(blocks: Sequence[int], config: Configuration) -> Cuts:
    """The one place where each stage begins if the blocks are spread evenly."""
    first = [-(-len(blocks) * stage // config.stages) for stage in range(1, config.stages)]
    return ((0,), *((blocks[k],) for k in first))


def turns(blocks: Sequence[int], layers: int, config: Configuration, cuts: Cuts) -> tuple[int, ...]:
    """The order of the layers of which each rank takes an interval.

    Stages do that are equal, or as near to that as the cuts let them; parts go with blocks.
    """
    if config.virtual_stages == 1:
        return ()
    even = [0, *(blocks[k] for k in even_starts(len(blocks), config.stages)[1:])]
    starts = nearest(cuts, even) or even
    units = sorted({*blocks[1:], *starts})
    lengths = [end - start for start, end in pairwise([*units, layers])]
    return turns_through([units.index(start) for start in starts], lengths, config.pp)


@dataclass
class Cutter:
    """Where the stages of one model may begin, and the order of its layers that ranks divide.

    Each is worked out once: many configurations have as many stages.

    Attributes:
        pins: all pins.
        names: of the layers, in order.
        spread: the layers that stages may begin with.
        even: whether blocks are divided equally.
    """

    pins: dict[str, Any]
    names: Sequence[str]
    spread: list[int]
    even: bool
    _known: dict[tuple[int, int], tuple[Cuts, tuple[int, ...]]] = field(default_factory=dict)

    def of(self, config: Configuration) -> tuple[Cuts, tuple[int, ...]]:
        """The cuts and the turns of a configuration."""
        key = config.pp, config.virtual_stages
        if key not in self._known:
            cuts = self._cuts(config)
            self._known[key] = cuts, turns(self.spread, len(self.names), config, cuts)
        return self._known[key]

    def _cuts(self, config: Configuration) -> Cuts:
        """Where stages may begin: where pins say, and else where the schedule likes it."""
        spread = set(self.spread)
        blocks = [i in spread for i in range(len(self.names))]
        wanted = pinned_cuts(self.pins, self.names, blocks, config.stages)
        if wanted is None:
            return ((),) * config.stages
        if self.even:
            return common(wanted, equal_cuts(self.spread, config))
        return narrowed(wanted, near_cuts(self.spread, config))


def _ascending(cuts: Sequence[Sequence[int]]) -> Cuts | None:
    """Those that some plan with a layer or more on each stage has; None if there is none."""
    left = [list(own) for own in cuts]
    for s in range(1, len(left)):
        left[s] = [i for i in left[s] if left[s - 1] and i > left[s - 1][0]]
    for s in range(len(left) - 2, -1, -1):
        left[s] = [i for i in left[s] if left[s + 1] and i < left[s + 1][-1]]
    return tuple(map(tuple, left)) if all(left) else None


def check_stages(counts: Any, blocks: int, layers: int) -> None:
    """Refuses a pin of stages that is no division of the blocks.

    Raises:
        UsageError: it is no list of numbers, or they do not add up to the blocks.
    """
    numbers = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not numbers or not 0 < len(counts) <= layers or sum(counts) != blocks:
        added = f", which add up to {sum(counts)}" if numbers else ""
        raise UsageError(
            f"pin stages={counts!r}{added}",
            expected=f"the number of blocks of each stage, {blocks} in all",
            where="pin",
            hint=f"as in stages=[{blocks - blocks // 2}, {blocks // 2}], or pin single layers:"
            " stage@LAYER=0",
        )
