"""Sharper bounds and better patterns for stages of few layers, by dynamic programming.

The relaxation of ``columns.py`` may be off by the best part of one layer, which is much where a
stage has eight. Here memory is counted in cells of a grid, and the knapsack is solved exactly
for every number of cells: with bytes rounded down that is a lower bound, with bytes rounded up a
pattern that fits (Martello and Toth 1990, Knapsack Problems, section 11.7).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from autopar.solve.bounds import windows
from autopar.solve.chain import Bools, Chain, Floats, Ints, Place
from autopar.solve.columns import Level, Relaxed, levels, weights

CELLS = 4096
# Beyond this, what the relaxation may be off by is little.
MOST_LAYERS = 24

Key = tuple[Place, int, int]


@dataclass(frozen=True)
class Sharpened:
    """The relaxation with sharper figures; ``taken`` [options] by (place, content, weighting)."""

    relaxed: Relaxed
    taken: dict[Key, Ints]


@dataclass
class _Table:
    """The least cost of each content for every number of cells, [CELLS + 1] per content.

    ``cells`` and ``cost`` are those of the options [options]; options of infinite cost may
    not be taken. ``choice`` is the option of the layer that was added last.
    """

    owner: Ints
    cells: Ints
    cost: Floats
    best: dict[tuple[int, ...], Floats] = field(default_factory=dict)
    choice: dict[tuple[int, ...], Ints] = field(default_factory=dict)

    def solve(self, content: tuple[int, ...]) -> Floats:
        """Adds the layers one by one, those of the rarest class last, and keeps every step."""
        if content not in self.best:
            if not any(content):
                self.best[content] = np.zeros(CELLS + 1)
            else:
                self._add(content)
        return self.best[content]

    def _add(self, content: tuple[int, ...]) -> None:
        last = _rarest(content)
        rest = self.solve(_without(content, last))
        best, choice = np.full(CELLS + 1, np.inf), np.full(CELLS + 1, -1)
        for option in np.flatnonzero((self.owner == last) & np.isfinite(self.cost)):
            width = int(self.cells[option])
            if width > CELLS:
                continue
            value = rest[: CELLS + 1 - width] + self.cost[option]
            better = value < best[width:]
            best[width:][better] = value[better]
            choice[width:][better] = option
        self.best[content], self.choice[content] = best, choice

    def taken(self, content: tuple[int, ...], capacity: int) -> Ints:
        """Layers per option [options] of the best pattern within ``capacity`` cells."""
        found = np.zeros(len(self.cells), dtype=np.int64)
        while any(content):
            option = int(self.choice[content][capacity])
            found[option] += 1
            capacity -= int(self.cells[option])
            content = _without(content, int(self.owner[option]))
        return found


def _rarest(content: tuple[int, ...]) -> int:
    present = [c for c, count in enumerate(content) if count]
    return min(present, key=lambda c: (content[c], c))


def _without(content: tuple[int, ...], member: int) -> tuple[int, ...]:
    return tuple(count - (c == member) for c, count in enumerate(content))


def sharpen(chain: Chain, relaxed: Relaxed, target: float) -> Sharpened:
    """Solves every content that may be in a plan of less than ``target`` seconds.

    The figures hold for such plans alone: an option whose step seconds take a plan beyond the
    target by themselves is none of theirs. Chains whose stages share a rank, or whose lead is a
    figure of its own, stay as they are.
    """
    if chain.coupled or chain.stages == 1:
        return Sharpened(relaxed, {})
    wanted = _wanted(chain, relaxed, target)
    figures = _Figures(chain, relaxed)
    quiet = chain.step_seconds < target - _least_without_step(chain, relaxed)
    for place in dict.fromkeys(chain.places):
        rows = [s for s, other in enumerate(chain.places) if other == place]
        contents = np.flatnonzero(wanted[rows].any(axis=0))
        for weighting, weight in enumerate(weights(chain)):
            cost = np.where(quiet, weight, np.inf)
            lower = _lower(chain, place, cost, contents)
            figures.raise_to(weighting, rows, contents, lower)
            for content, taken in _patterns(chain, place, cost, contents).items():
                figures.offer(weighting, rows, content, taken, place)
    return Sharpened(figures.relaxed(), figures.taken)


def _wanted(chain: Chain, relaxed: Relaxed, target: float) -> Bools:
    """Which contents [stages, contents] of few layers stand in an interval that may win."""
    found = np.zeros(relaxed.lead.shape, dtype=bool)
    stage, start, end = np.nonzero(windows(chain, relaxed).through < target)
    found[stage, chain.content[start, end]] = True
    return np.asarray(found & (chain.counts.sum(axis=1) <= MOST_LAYERS))


def _least_without_step(chain: Chain, relaxed: Relaxed) -> float:
    """What every plan costs at least, its step seconds not counted."""
    none = np.zeros_like(relaxed.step_seconds)
    return windows(chain, replace(relaxed, step_seconds=none, mixed=none)).bound


class _Figures:
    """The arrays of a relaxation while they are sharpened."""

    def __init__(self, chain: Chain, relaxed: Relaxed) -> None:
        self.chain, self.source = chain, relaxed
        self.bounds = [relaxed.lead.copy(), relaxed.mixed.copy()]
        self.patterns = [tuple(f.copy() for f in figures) for figures in relaxed.patterns]
        self.taken: dict[Key, Ints] = {}

    def raise_to(self, weighting: int, rows: list[int], contents: Ints, lower: Floats) -> None:
        """A lower bound may be better than the one that is known."""
        where = np.ix_(np.array(rows), contents)
        self.bounds[weighting][where] = np.maximum(self.bounds[weighting][where], lower)

    def offer(
        self, weighting: int, rows: list[int], content: int, taken: Ints, place: Place
    ) -> None:
        """A pattern may be better than the one that is known."""
        chain, (lead, pace, step) = self.chain, self.patterns[weighting]
        sources = (chain.lead_seconds, chain.pace_seconds, chain.step_seconds)
        own = [float(taken @ source) for source in sources]
        known = [float(figure[rows[0], content]) for figure in (lead, pace, step)]
        if _price(weighting, own) < _price(weighting, known):
            for figure, value in zip((lead, pace, step), own, strict=True):
                figure[rows, content] = value
            self.taken[place, content, weighting] = taken

    def relaxed(self) -> Relaxed:
        """The sharpened arrays; lead and pace are shares of the same seconds."""
        lead, mixed = self.bounds
        with np.errstate(invalid="ignore"):
            pace = np.where(np.isfinite(lead), (self.chain.num_microbatches - 1) * lead, np.inf)
        return replace(
            self.source, lead=lead, pace=np.maximum(pace, self.source.pace), mixed=mixed,
            patterns=tuple((a, b, g) for a, b, g in self.patterns),
        )  # fmt: skip


def _price(weighting: int, figures: list[float]) -> float:
    """What ``weights`` asks for, from lead, pace and step seconds."""
    return figures[0] if weighting == 0 else sum(figures)


def _lower(chain: Chain, place: Place, cost: Floats, contents: Ints) -> Floats:
    """A lower bound on the cost of each of ``contents``."""
    best = np.full(len(contents), np.inf)
    for level in levels(chain):
        table, cell = _table(chain, place, cost, level, np.floor)
        capacity = min(CELLS, int((place.most_bytes - level.low) // cell))
        if capacity < 0:
            continue
        values = [table.solve(tuple(chain.counts[c]))[capacity] for c in contents]
        best = np.minimum(best, values)
    return best


def _patterns(chain: Chain, place: Place, cost: Floats, contents: Ints) -> dict[int, Ints]:
    """The best pattern of each content that is found to fit."""
    found: dict[int, tuple[float, Ints]] = {}
    for level in levels(chain):
        table, cell = _table(chain, place, cost, level, np.ceil)
        capacity = min(CELLS, int((place.fair_bytes - level.high) // cell))
        for c in contents if capacity >= 0 else ():
            content = tuple(chain.counts[c])
            value = float(table.solve(content)[capacity])
            if value < found.get(int(c), (np.inf,))[0]:
                found[int(c)] = value, table.taken(content, capacity)
    return {c: taken for c, (_, taken) in found.items()}


def _table(
    chain: Chain, place: Place, cost: Floats, level: Level, rounding: np.ufunc
) -> tuple[_Table, float]:
    """An empty table of the options that a level allows, and the bytes of a cell."""
    cell = max(place.most_bytes, 1.0) / CELLS
    cells = rounding(chain.held_bytes(place.depth) / cell).astype(np.int64)
    allowed = np.where(chain.transient_bytes <= level.high, cost, np.inf)
    return _Table(chain.owner, cells, allowed), cell
