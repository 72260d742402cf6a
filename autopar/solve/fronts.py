"""Every pattern of a stage of few layers that no other beats, built layer by layer.

Where a stage is alone on its rank a pattern is no more than seconds, step seconds, bytes and its
largest transient. Adding the layers one by one and keeping what no other row beats in all four
(Nemhauser and Ullmann 1969, for the knapsack) leaves few rows, because layers of one class may
be exchanged. What the bounds leave to a plan below the target limits every row from the start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autopar.solve.chain import Bools, Chain, Floats, Ints, Place
from autopar.solve.patterns import Listing, OutOfTimeError, Pattern, Request

# A stage with more rows is left to ``patterns.py``, which need not list all of them.
MOST_ROWS = 20_000
MOST_PRODUCTS = 1_000_000
BLOCK = 128
EDGES = 256
TIE = 1e-9

Content = tuple[int, ...]  # layers per class
SECONDS, STEP, BYTES, TRANSIENT = range(4)


@dataclass(frozen=True)
class _Rows:
    """Partial patterns: ``figures`` [rows, 4], and the row and option that each was made from."""

    figures: Floats
    before: Ints
    option: Ints


@dataclass
class _Fronts:
    """The rows of each content at one place; ``limits`` [3] of their first three figures.

    Bytes are limited with the transient on top of them.
    """

    chain: Chain
    place: Place
    deadline: float
    limits: dict[Content, Floats] = field(default_factory=dict)
    rows: dict[Content, _Rows] = field(default_factory=dict)

    def options(self) -> Floats:
        """The figures of all options, [options, 4]."""
        chain = self.chain
        held = chain.held_bytes(self.place.depth)
        return np.stack([chain.seconds, chain.step_seconds, held, chain.transient_bytes], axis=1)


def list_fronts(requests: Sequence[Request]) -> list[Listing] | None:
    """The listings of requests that differ in content and caps alone; None if there are too many.

    Nothing is missing in them: what was left out is beaten, or above the caps.

    Raises:
        OutOfTimeError: the deadline has passed.
    """
    first = requests[0]
    fronts = _Fronts(first.chain, first.place, max(r.deadline for r in requests))
    for request in requests:
        room = request.place.most_bytes
        limits = np.array([request.cap_seconds, request.most_step, room]) * (1 + TIE)
        _demand(fronts, tuple(request.counts.tolist()), limits)
    _pass_on(fronts)
    for content in sorted(fronts.limits, key=sum):
        if not _build(fronts, content):
            return None
    return [_listing(fronts, request) for request in requests]


def _demand(fronts: _Fronts, content: Content, limits: Floats) -> None:
    """Rows of ``content`` are wanted up to these limits."""
    known = fronts.limits.get(content)
    fronts.limits[content] = limits if known is None else np.maximum(known, limits)


def _pass_on(fronts: _Fronts) -> None:
    """What is wanted of a content without its last layer: what that layer leaves at least."""
    figures, owner = fronts.options(), fronts.chain.owner
    least = np.stack([
        figures[owner == c, :TRANSIENT].min(axis=0, initial=np.inf)
        for c in range(len(fronts.chain.menus))
    ])  # fmt: skip
    for size in range(max(map(sum, fronts.limits)), 0, -1):
        for content in [c for c in fronts.limits if sum(c) == size]:
            last = rarest(content)
            _demand(fronts, without(content, last), fronts.limits[content] - least[last])


def rarest(content: Content) -> int:
    """The class that is added last, so that contents of many blocks share the way there."""
    present = [c for c, count in enumerate(content) if count]
    return min(present, key=lambda c: (content[c], c))


def without(content: Content, member: int) -> Content:
    """One layer of a class less."""
    return tuple(count - (c == member) for c, count in enumerate(content))


def _build(fronts: _Fronts, content: Content) -> bool:
    """Adds the last layer to the rows of the content before; False if there are too many."""
    if not any(content):
        zero = np.zeros(1, dtype=np.int64)
        fronts.rows[content] = _Rows(np.zeros((1, 4)), zero, zero)
        return True
    last = rarest(content)
    rest = fronts.rows[without(content, last)].figures
    offered = np.flatnonzero(fronts.chain.owner == last)
    if len(rest) * len(offered) > MOST_PRODUCTS:
        return False
    added = fronts.options()[offered]
    figures = rest[:, None, :] + added[None]
    figures[:, :, TRANSIENT] = np.maximum(rest[:, None, TRANSIENT], added[None, :, TRANSIENT])
    figures = figures.reshape(-1, 4)
    kept = np.flatnonzero(_within(figures, fronts.limits[content]))
    kept = kept[_unbeaten(figures[kept], fronts.deadline)]
    fronts.rows[content] = _Rows(figures[kept], kept // len(offered), offered[kept % len(offered)])
    return len(kept) <= MOST_ROWS


def _within(figures: Floats, limits: Floats) -> Bools:
    peak = figures[:, BYTES] + figures[:, TRANSIENT]
    fast = (figures[:, SECONDS] <= limits[SECONDS]) & (figures[:, STEP] <= limits[STEP])
    return np.asarray(fast & (peak <= limits[BYTES]))


def _unbeaten(figures: Floats, deadline: float) -> Ints:
    """Rows that no other beats, fastest first, and a few that one does.

    A table has the fewest bytes of any faster row by transient and step seconds, at a few
    hundred steps of them: rows between two steps may stay although they are beaten.
    """
    order = np.lexsort(figures.T[::-1])
    if not len(order):
        return order
    sizes, size = np.unique(figures[:, TRANSIENT], return_inverse=True)
    edges = np.unique(figures[:, STEP])
    edges = edges[np.unique(np.linspace(0, len(edges) - 1, EDGES).astype(np.int64))]
    inserted = np.searchsorted(edges, figures[:, STEP], side="left")
    looked_up = np.searchsorted(edges, figures[:, STEP], side="right") - 1
    fewest = np.full((len(sizes), len(edges)), np.inf)
    kept = []
    for block in np.split(order, range(BLOCK, len(order), BLOCK)):
        if time.monotonic() > deadline:
            raise OutOfTimeError
        new = block[figures[block, BYTES] < fewest[size[block], looked_up[block]]]
        new = new[~_beaten_inside(figures[new])]
        np.minimum.at(fewest, (size[new], inserted[new]), figures[new, BYTES])
        np.minimum.accumulate(fewest, axis=0, out=fewest)
        np.minimum.accumulate(fewest, axis=1, out=fewest)
        kept.append(new)
    return np.concatenate(kept)


def _beaten_inside(figures: Floats) -> Bools:
    """Rows, in lexicographic order, that an earlier one matches or beats everywhere."""
    less = (figures[:, None] <= figures[None]).all(axis=2)
    earlier = np.tri(len(figures), k=-1, dtype=bool).T
    return np.asarray((less & earlier).any(axis=0))


def _listing(fronts: _Fronts, request: Request) -> Listing:
    """The patterns of a content, fastest first, each with fewer step seconds than the last."""
    content = tuple(request.counts.tolist())
    figures = fronts.rows[content].figures
    limits = np.array([request.cap_seconds, request.most_step, request.place.most_bytes])
    fitting = np.flatnonzero(_within(figures, limits * [1 + TIE, 1 + TIE, 1.0]))
    heard = np.maximum(figures[fitting, STEP], request.quiet_step)
    order = np.lexsort((figures[fitting, STEP], heard, figures[fitting, SECONDS]))
    heard = heard[order]
    quieter = heard < np.concatenate([[np.inf], np.minimum.accumulate(heard)[:-1]])
    rows = fitting[order[quieter]]
    return Listing(tuple(_pattern(fronts, content, int(row)) for row in rows), np.inf)


def _pattern(fronts: _Fronts, content: Content, row: int) -> Pattern:
    """The pattern of a row, followed back to the first layer."""
    chain, figures = fronts.chain, fronts.rows[content].figures[row]
    taken = np.zeros(len(chain.options), dtype=np.int64)
    while any(content):
        rows = fronts.rows[content]
        taken[rows.option[row]] += 1
        content, row = without(content, rarest(content)), int(rows.before[row])
    return Pattern(
        tuple(taken.tolist()), float(taken @ chain.seconds), float(taken @ chain.step_seconds),
        float(taken @ chain.lead_seconds), float(figures[BYTES]), float(figures[TRANSIENT]),
    )  # fmt: skip
