"""Every pattern of a rank of few layers that no other beats, built layer by layer.

A pattern is no more than seconds, step seconds, bytes, its largest transient and, where backward is
split, its lead. Adding the layers one by one and keeping what no other row beats in all of them
(Nemhauser and Ullmann 1969, for the knapsack) leaves few rows, because layers of one class may
be exchanged. What the bounds leave to a plan below the target limits every row from the start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autopar.solve.chain import Bools, Chain, Depths, Floats, Ints
from autopar.solve.patterns import Listing, OutOfTimeError, Pattern, Request, pareto

# A rank with more rows is left to ``patterns.py``, which need not list all of them.
MOST_ROWS = 20_000
MOST_PRODUCTS = 1_000_000
BLOCK = 128
EDGES = 256
LEADS = 32
TIE = 1e-9

Content = tuple[int, ...]  # layers per class
SECONDS, STEP, BYTES, TRANSIENT, LEAD = range(5)


@dataclass(frozen=True)
class _Rows:
    """Partial patterns: ``figures`` [rows, 5], and the row and option that each was made from."""

    figures: Floats
    before: Ints
    option: Ints


@dataclass
class _Fronts:
    """The rows of each content at one place; ``limits`` [3] of their first three figures.

    Bytes are limited with the transient on top of them. Classes with the same options at these
    depths are one: ``twins`` [classes] has the first of them.
    """

    chain: Chain
    depths: Depths
    deadline: float
    twins: Ints
    limits: dict[Content, Floats] = field(default_factory=dict)
    rows: dict[Content, _Rows] = field(default_factory=dict)

    def content(self, request: Request) -> Content:
        """Layers per class, those of twins with the first."""
        counts = np.bincount(self.twins, request.counts, len(self.twins))
        return tuple(counts.astype(np.int64).tolist())

    def options(self) -> Floats:
        """The figures of all options, [options, 5]."""
        chain = self.chain
        held, lead = chain.held_bytes(self.depths), chain.lead_seconds
        figures = chain.seconds, chain.step_seconds, held, chain.transient_bytes, lead
        return np.stack(figures, axis=1)


def list_fronts(requests: Sequence[Request]) -> list[Listing] | None:
    """The listings of requests that differ in content and caps alone; None if there are too many.

    Nothing is missing in them: what was left out is beaten, or above the caps.

    Raises:
        OutOfTimeError: the deadline has passed.
    """
    first = requests[0]
    deadline = max(request.deadline for request in requests)
    fronts = _Fronts(first.chain, first.depths, deadline, first.chain.twins(first.depths))
    for request in requests:
        room = request.chain.room_bytes
        limits = np.array([request.cap_seconds, request.most_step, room]) * (1 + TIE)
        _demand(fronts, fronts.content(request), limits)
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
        fronts.rows[content] = _Rows(np.zeros((1, 5)), zero, zero)
        return True
    last = rarest(content)
    rest = fronts.rows[without(content, last)].figures
    offered = np.flatnonzero(fronts.chain.owner == last)
    if len(rest) * len(offered) > MOST_PRODUCTS:
        return False
    added = fronts.options()[offered]
    figures = rest[:, None, :] + added[None]
    figures[:, :, TRANSIENT] = np.maximum(rest[:, None, TRANSIENT], added[None, :, TRANSIENT])
    figures = figures.reshape(-1, 5)
    kept = np.flatnonzero(_within(figures, fronts.limits[content]))
    kept = kept[_unbeaten(figures[kept], fronts.deadline, fronts.chain.splits_backward)]
    fronts.rows[content] = _Rows(figures[kept], kept // len(offered), offered[kept % len(offered)])
    return len(kept) <= MOST_ROWS


def _within(figures: Floats, limits: Floats) -> Bools:
    peak = figures[:, BYTES] + figures[:, TRANSIENT]
    fast = (figures[:, SECONDS] <= limits[SECONDS]) & (figures[:, STEP] <= limits[STEP])
    return np.asarray(fast & (peak <= limits[BYTES]))


def _unbeaten(figures: Floats, deadline: float, apart: bool) -> Ints:
    """Rows that no other beats, fastest first, and a few that one does.

    A table has the fewest bytes of any faster row by transient, step seconds and, where it stands
    ``apart``, lead, at a few hundred steps of them: rows between two steps may stay although they
    are beaten.
    """
    order = np.lexsort(figures.T[::-1])
    if not len(order):
        return order
    most = {TRANSIENT: len(order), STEP: EDGES} | ({LEAD: LEADS} if apart else {})
    axes = [_axis(figures[:, kind], number) for kind, number in most.items()]
    fewest = np.full([size for size, _, _ in axes], np.inf)
    inserted, looked_up = [axis[1] for axis in axes], [axis[2] for axis in axes]
    kept = []
    for block in np.split(order, range(BLOCK, len(order), BLOCK)):
        if time.monotonic() > deadline:
            raise OutOfTimeError
        new = block[figures[block, BYTES] < fewest[tuple(at[block] for at in looked_up)]]
        new = new[~_beaten_inside(figures[new])]
        np.minimum.at(fewest, tuple(at[new] for at in inserted), figures[new, BYTES])
        for axis in range(fewest.ndim):
            np.minimum.accumulate(fewest, axis=axis, out=fewest)
        kept.append(new)
    return np.concatenate(kept)


def _axis(values: Floats, most: int) -> tuple[int, Ints, Ints]:
    """Steps of an axis of the table: their number, and where values are put and looked up."""
    edges = np.unique(values)
    edges = edges[np.unique(np.linspace(0, len(edges) - 1, most).astype(np.int64))]
    inserted: Ints = np.searchsorted(edges, values, side="left")
    behind: Ints = np.searchsorted(edges, values, side="right")
    return len(edges), inserted, behind - 1


def _beaten_inside(figures: Floats) -> Bools:
    """Rows, in lexicographic order, that an earlier one matches or beats everywhere."""
    less = (figures[:, None] <= figures[None]).all(axis=2)
    earlier = np.tri(len(figures), k=-1, dtype=bool).T
    return np.asarray((less & earlier).any(axis=0))


def _listing(fronts: _Fronts, request: Request) -> Listing:
    """The patterns of a content, fastest first, each with fewer step seconds or a shorter lead."""
    content = fronts.content(request)
    figures = fronts.rows[content].figures
    limits = np.array([request.cap_seconds, request.most_step, request.chain.room_bytes])
    fitting = np.flatnonzero(_within(figures, limits * [1 + TIE, 1 + TIE, 1.0]))
    heard = np.maximum(figures[fitting, STEP], request.quiet_step)
    order = np.lexsort((figures[fitting, STEP], heard, figures[fitting, SECONDS]))
    heard = heard[order]
    if request.chain.splits_backward:
        kept = np.array(pareto(np.column_stack([heard, figures[fitting[order], LEAD]])), dtype=int)
    else:
        kept = heard < np.concatenate([[np.inf], np.minimum.accumulate(heard)[:-1]])
    rows = fitting[order[kept]]
    return Listing(
        tuple(_pattern(fronts, request.counts, content, int(row)) for row in rows), np.inf
    )


def _pattern(fronts: _Fronts, counts: Ints, content: Content, row: int) -> Pattern:
    """The pattern of a row, followed back to the first layer; ``counts`` are layers per class."""
    chain = fronts.chain
    added = []
    while any(content):
        rows = fronts.rows[content]
        added.append(int(rows.option[row]))
        content, row = without(content, rarest(content)), int(rows.before[row])
    taken = spread(chain, fronts.twins, counts, added)
    figures = chain.seconds, chain.step_seconds, chain.lead_seconds
    return Pattern(tuple(taken.tolist()), *(float(taken @ figure) for figure in figures))


def spread(chain: Chain, twins: Ints, counts: Ints, options: Sequence[int]) -> Ints:
    """Layers per option [options] if the layers of each class take ``options`` of its twins.

    Twins are on different stages of the rank, which stall each other least if they take equally
    long: the slowest option goes to the stage that has least work.
    """
    first = np.searchsorted(chain.owner, range(len(twins)))
    chunks = np.array(chain.chunks)
    left, busy = counts.copy(), np.zeros(int(chunks.max()) + 1)
    taken = np.zeros(len(chain.options), dtype=np.int64)
    for option in sorted(options, key=lambda o: -chain.seconds[o]):
        owner = chain.owner[option]
        able = np.flatnonzero((twins == twins[owner]) & (left > 0))
        member = able[busy[chunks[able]].argmin()]
        left[member] -= 1
        busy[chunks[member]] += chain.seconds[option]
        taken[option - first[owner] + first[member]] += 1
    return taken
