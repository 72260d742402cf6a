"""The intervals through which a plan may still win, and what bounds their patterns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import Least, Windows
from autopar.solve.chain import Chain, Floats, Ints, Place
from autopar.solve.columns import Relaxed
from autopar.solve.patterns import Listing


@dataclass(frozen=True)
class Open:
    """A chain that may still win. ``bound`` is a lower bound on its objective."""

    chain: Chain
    relaxed: Relaxed
    bound: float
    candidate: int


@dataclass(frozen=True)
class Arcs:
    """Intervals as parallel arrays, one entry per (rank, start, end).

    A pattern is of no use if it takes ``cap_seconds`` or ``cap_step`` per step; below
    ``quiet_step`` another rank takes as many.
    """

    rank: Ints
    start: Ints
    end: Ints
    cap_seconds: Floats
    window: Windows
    quiet_step: Floats
    cap_step: Floats


def arcs_below(chain: Chain, least: Least, window: Windows, target: float) -> Arcs:
    """The intervals whose bound is below the target, and the seconds at which it is reached.

    With X = target - others - step, a pattern of lead a and pace b in m t = a + b is of use only
    if ``a + max(slowest, b) < X``, so ``m t < X`` and ``a < X - slowest``. Where a is the v-th part
    of t, the latter says more if another rank is slower.
    """
    m, v = chain.num_microbatches, chain.problem.configuration.virtual_stages
    rank, start, end = (np.asarray(a) for a in np.nonzero(window.through < target))
    where = (rank, start, end)
    quiet, slowest = window.slowest_step[where], window.slowest_pace[where]
    left = target - window.others_lead[where] - np.maximum(quiet, least.step[where])
    work = least.lead[where] + np.maximum(slowest, least.pace[where])
    cap_step = target - window.others_lead[where] - work
    cap = left / m if chain.splits_backward else np.minimum(left / m, v * (left - slowest))
    cap -= chain.transfer_seconds(rank, start, end)
    return Arcs(rank, start, end, cap, window, quiet, cap_step)


def arcs_by_content(chain: Chain, arcs: Arcs) -> dict[tuple[Place, int], list[int]]:
    """Arcs of equal place and content have the same patterns."""
    found: dict[tuple[Place, int], list[int]] = defaultdict(list)
    contents = chain.content[arcs.start, arcs.end]
    for k, (rank, content) in enumerate(zip(arcs.rank, contents, strict=True)):
        found[chain.places[rank], int(content)].append(k)
    return found


def residual_seconds(chain: Chain, arcs: Arcs, members: list[int], listing: Listing) -> float:
    """What a plan with an unlisted pattern costs at least.

    Nothing is known of its lead where that is a figure of its own, but lead and pace add up.
    """
    seconds = listing.beyond_seconds
    if seconds == np.inf:
        return np.inf
    window, rank = arcs.window, arcs.rank[members]
    where = rank, arcs.start[members], arcs.end[members]
    work = seconds + chain.transfer_seconds(*where)
    share = 0.0 if chain.splits_backward else 1 / chain.problem.configuration.virtual_stages
    lead = share * work
    slowest = np.maximum(window.slowest_pace[where], chain.num_microbatches * work - lead)
    return float((window.others_lead[where] + lead + slowest + window.slowest_step[where]).min())
