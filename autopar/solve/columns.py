"""Stage patterns from the knapsack relaxation: a bound and a good pattern for every interval.

Filling a stage is a multiple-choice knapsack (Sinha and Zoltners 1979): every layer takes one
option, bytes are limited, cost is minimised. Its linear relaxation is solved by climbing
the lower convex hulls of all classes at once, best saving per byte first; it leaves one class
between two options, and rounding that one down gives a pattern that fits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopar.solve.chain import Bools, Chain, Depths, Floats, Ints

LEVELS = 4


@dataclass(frozen=True)
class Level:
    """Patterns whose largest transient lies in [low, high] bytes."""

    low: float
    high: float


@dataclass(frozen=True)
class Ladder:
    """The hulls of all classes, merged.

    ``base`` [classes] is the leanest option of each class, -1 if it has none.
    Step k moves one layer of class ``owner[k]`` from option ``before[k]`` to ``after[k]``:
    ``extra_bytes[k]`` more for ``gain[k]`` less cost. Gain per byte falls with k.
    """

    base: Ints
    owner: Ints
    before: Ints
    after: Ints
    extra_bytes: Floats
    gain: Floats


@dataclass(frozen=True)
class Filled:
    """The cost ``lower`` [contents] of the relaxation, and a rounding ``units`` [contents, steps].

    ``feasible`` [contents] tells where there is one.
    """

    lower: Floats
    units: Ints
    feasible: Bools


@dataclass(frozen=True)
class Relaxed:
    """Bounds and patterns for each rank and interval content; arrays are [ranks, contents].

    Lower bounds of lead, pace and step seconds and of their sum come without transfers; infinite
    where nothing fits. ``patterns`` has the lead, pace and step seconds of real patterns, one
    entry per weighting of ``weights``.
    """

    lead: Floats
    pace: Floats
    step_seconds: Floats
    mixed: Floats
    patterns: tuple[tuple[Floats, Floats, Floats], ...]


def levels(chain: Chain) -> list[Level]:
    """The transients that options have, in at most LEVELS ranges that cover them all."""
    values = np.unique(chain.transient_bytes)
    parts = np.array_split(values, min(LEVELS, len(values))) if len(values) else []
    return [Level(float(part[0]), float(part[-1])) for part in parts]


def weights(chain: Chain) -> tuple[Floats, ...]:
    """The costs of options [options] by which patterns are sought.

    Seconds matter once on most ranks, and m times on the slowest.
    """
    if chain.pp == 1:
        return (chain.seconds,)
    return chain.seconds, chain.num_microbatches * chain.seconds + chain.step_seconds


def hull(option_bytes: Floats, cost: Floats) -> list[int]:
    """Indices of the lower convex hull from the leanest to the cheapest."""
    chosen: list[int] = []
    for o in np.lexsort((cost, option_bytes)):
        if chosen and cost[o] >= cost[chosen[-1]]:
            continue
        while len(chosen) > 1 and _above(option_bytes, cost, chosen[-2], chosen[-1], int(o)):
            chosen.pop()
        chosen.append(int(o))
    return chosen


def _above(x: Floats, y: Floats, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))


def ladder(chain: Chain, option_bytes: Floats, cost: Floats, level: Level) -> Ladder:
    """Merges the hulls of the options that the level allows."""
    base = np.full(len(chain.menus), -1, dtype=np.int64)
    steps: list[tuple[float, int, int, int]] = []
    for c in range(len(chain.menus)):
        allowed = np.flatnonzero((chain.owner == c) & (chain.transient_bytes <= level.high))
        chosen = allowed[hull(option_bytes[allowed], cost[allowed])] if len(allowed) else allowed
        if len(chosen):
            base[c] = chosen[0]
        for a, b in itertools.pairwise(chosen):
            rate = (cost[b] - cost[a]) / (option_bytes[b] - option_bytes[a])
            steps.append((float(rate), c, int(a), int(b)))
    steps.sort(key=lambda step: step[0])
    owner, before, after = np.array([s[1:] for s in steps], dtype=np.int64).reshape(-1, 3).T
    extra, gain = option_bytes[after] - option_bytes[before], cost[before] - cost[after]
    return Ladder(base, owner, before, after, extra, gain)


def climb(steps: Ladder, counts: Ints, option_bytes: Floats, cost: Floats, room: float) -> Filled:
    """Solves the relaxation for every row of ``counts`` [contents, classes] at once."""
    missing = (counts[:, steps.base < 0] > 0).any(axis=1)
    spare = room - counts @ option_bytes[steps.base]
    layers = counts[:, steps.owner]
    used = np.cumsum(layers * steps.extra_bytes, axis=1)
    full = used <= spare[:, None]
    units = np.where(full, layers, 0)
    lower = counts @ cost[steps.base] - units @ steps.gain
    rows = np.flatnonzero(~full.all(axis=1))
    if len(rows):
        step = full[rows].sum(axis=1)
        left = spare[rows] - (units[rows] * steps.extra_bytes).sum(axis=1)
        part = np.maximum(left / steps.extra_bytes[step], 0.0)
        lower[rows] -= part * steps.gain[step]
        units[rows, step] = np.floor(part)
    feasible = (spare >= 0) & ~missing
    return Filled(np.where(feasible, lower, np.inf), units, feasible)


def may_fit(chain: Chain) -> Bools:
    """Which contents fit on each rank when every layer takes its leanest option; a superset.

    [ranks, contents]; in a fraction of the time of ``relax``.
    """
    each = [(place.kind, place.depths) for place in chain.places]
    fits: dict[tuple[int, Depths], Bools] = {}
    for kind in dict.fromkeys(kind for kind, _ in each):
        depths = list(dict.fromkeys(own for k, own in each if k == kind))
        rows = _may_fit(chain.on(kind), depths)
        fits |= {(kind, own): row for own, row in zip(depths, rows, strict=True)}
    return np.stack([fits[key] for key in each])


def _may_fit(chain: Chain, places: Sequence[Depths]) -> Bools:
    """The same by depths, on devices of one kind; [depths, contents]."""
    held = np.stack([chain.held_bytes(depths) for depths in places])
    fits = np.zeros((len(places), len(chain.counts)), dtype=bool)
    for level in levels(chain):
        allowed = np.where(chain.transient_bytes <= level.high, held, np.inf)
        least = [allowed[:, chain.owner == c].min(axis=1, initial=np.inf) for c in _classes(chain)]
        lean = np.stack(least, axis=1)
        missing = (chain.counts[None] > 0) & ~np.isfinite(lean)[:, None]
        total = np.where(np.isfinite(lean), lean, 0.0) @ chain.counts.T
        fits |= (total <= chain.room_bytes - level.low) & ~missing.any(axis=2)
    return fits


def _classes(chain: Chain) -> range:
    return range(len(chain.menus))


def relax(chain: Chain) -> Relaxed:
    """Bounds and patterns for every rank and content of an interval."""
    ranks = [(place.kind, place.depths) for place in chain.places]
    places = list(dict.fromkeys(ranks))
    row = [places.index(own) for own in ranks]
    each = [_relax_depths(chain.on(kind), depths) for kind, depths in places]
    stacked = [np.stack([entry[k] for entry in each])[row] for k in range(len(each[0]))]
    lead, pace, step, mixed, *patterns = stacked
    triples = zip(patterns[::3], patterns[1::3], patterns[2::3], strict=True)
    return Relaxed(lead, pace, step, mixed, tuple(triples))


def _relax_depths(chain: Chain, depths: Depths) -> list[Floats]:
    """Four lower bounds, then the figures of a pattern per weighting; [contents]."""
    m, sought = chain.num_microbatches, weights(chain)
    ladders = [_ladders(chain, depths, cost) for cost in sought]
    seconds = _lower(chain, ladders[0])
    if chain.splits_backward:
        lead, pace = (
            _lower(chain, _ladders(chain, depths, w))
            for w in (chain.lead_seconds, chain.pace_seconds)
        )
    else:
        lead = seconds / chain.problem.configuration.virtual_stages
        with np.errstate(invalid="ignore"):
            pace = np.where(np.isfinite(seconds), m * seconds - lead, np.inf)
    if chain.pp == 1:
        step, mixed = np.zeros_like(seconds), m * seconds
    else:
        step = _lower(chain, _ladders(chain, depths, chain.step_seconds))
        mixed = _lower(chain, ladders[1])
    figures = [f for own in ladders for f in _pattern_figures(chain, own)]
    return [lead, pace, step, mixed, *figures]


@dataclass(frozen=True)
class _Ladders:
    """The ladder of each level for one cost [options] of options that hold ``option_bytes``."""

    cost: Floats
    option_bytes: Floats
    each: tuple[tuple[Level, Ladder], ...]


def _ladders(chain: Chain, depths: Depths, cost: Floats) -> _Ladders:
    held = chain.held_bytes(depths)
    each = tuple((level, ladder(chain, held, cost, level)) for level in levels(chain))
    return _Ladders(cost, held, each)


def _lower(chain: Chain, ladders: _Ladders) -> Floats:
    """The least cost of each content over all levels, by relaxation."""
    best = np.full(len(chain.counts), np.inf)
    for level, steps in ladders.each:
        room = chain.room_bytes - level.low
        filled = climb(steps, chain.counts, ladders.option_bytes, ladders.cost, room)
        best = np.minimum(best, filled.lower)
    return best


def _pattern_figures(chain: Chain, ladders: _Ladders) -> tuple[Floats, Floats, Floats]:
    """Lead, pace and step seconds of the best rounded pattern of each content."""
    best = np.full(len(chain.counts), np.inf)
    lead, pace, step = best.copy(), best.copy(), best.copy()
    sources = ((lead, chain.lead_seconds), (pace, chain.pace_seconds), (step, chain.step_seconds))
    for filled, steps in _roundings(chain, ladders, chain.counts):
        value = _total(chain.counts, filled, steps, ladders.cost)
        better = value < best
        best = np.where(better, value, best)
        for figure, source in sources:
            figure[better] = _total(chain.counts, filled, steps, source)[better]
    return lead, pace, step


def _roundings(chain: Chain, ladders: _Ladders, counts: Ints) -> list[tuple[Filled, Ladder]]:
    """A rounding of the relaxation at every level."""
    found = []
    for level, steps in ladders.each:
        room = chain.room_bytes - level.high
        found.append((climb(steps, counts, ladders.option_bytes, ladders.cost, room), steps))
    return found


def _total(counts: Ints, filled: Filled, steps: Ladder, figure: Floats) -> Floats:
    """Sum of a figure of the options over the layers of each content; inf where nothing fits."""
    change = figure[steps.after] - figure[steps.before]
    total = counts @ figure[steps.base] + filled.units @ change
    return np.where(filled.feasible, total, np.inf)


def rounded_pattern(chain: Chain, depths: Depths, content: int, weighting: int) -> Ints:
    """Layers per option [options] of the pattern whose figures ``relax`` reported."""
    cost, counts = weights(chain)[weighting], chain.counts[content : content + 1]
    filled, steps = min(
        _roundings(chain, _ladders(chain, depths, cost), counts),
        key=lambda pair: float(_total(counts, pair[0], pair[1], cost)[0]),
    )
    taken = np.zeros(len(chain.options), dtype=np.int64)
    present = np.flatnonzero(counts[0])
    taken[steps.base[present]] = counts[0, present]
    np.subtract.at(taken, steps.before, filled.units[0])
    np.add.at(taken, steps.after, filled.units[0])
    return taken
