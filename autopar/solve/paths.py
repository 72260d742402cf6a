"""The best plan over listed patterns of ranks: two thresholds.

A plan costs ``sum a + max b + max g`` over its ranks: lead, pace and step seconds. With a cap on b
and one on g what is left is a shortest path. The caps come down from above: a path under the caps B
and G whose largest figures are b and g shows that every plan with largest figures between b and B,
or between g and G, costs as much or more, so the next caps lie below b and g (bottleneck and sum
together as in Minoux 1989, J. Oper. Res. Soc. 40).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autopar.solve.chain import Floats, Ints


@dataclass(frozen=True)
class Network:
    """The intervals that ranks may take as arcs, and the patterns of each.

    Arrays [arcs]: arcs are sorted by rank and end; ``front`` is a row of ``lead``, ``pace`` and
    ``step`` [fronts, patterns], which are infinite where there are no more patterns. ``listed``
    [fronts] has the number of the patterns' list where fronts differ in transfers alone.
    """

    layers: int
    ranks: int
    rank: Ints
    start: Ints
    end: Ints
    front: Ints
    lead: Floats
    pace: Floats
    step: Floats
    listed: Ints


@dataclass(frozen=True)
class Path:
    """A plan: its arcs, the pattern of each in its front, and its price in seconds."""

    arcs: Ints
    patterns: Ints
    seconds: float


def best_paths(
    network: Network, target: float, slack: float = 0.0
) -> Iterator[tuple[float, Path | None]]:
    """Better and better plans of less than ``target`` seconds, the last of which is the best.

    Yields (bound, plan) after every step, without a plan where there is no better one. No plan
    costs less than ``bound``: what the caps have excluded costs ``limit`` or more, and what they
    leave is no faster than the last shortest path without the largest figures. The last bound is
    the best plan's seconds less the share ``slack``, or the target if there is no plan.
    """
    limit, cap = target, np.inf
    groups = _groups(network)
    quiet = _quietest(network, groups)
    while quiet < cap:
        found: Path | None = None
        lead = np.where(network.step < cap, network.lead, np.inf)
        for bound, path in _least(network, groups, lead, limit - quiet):
            yield min(limit, bound + quiet), None
            found = path
        if found is None:
            break
        step = float(network.step[network.front[found.arcs], found.patterns].max())
        total = found.seconds + step
        if total < limit:
            limit = total * (1 - slack)
            yield min(limit, found.seconds + quiet), Path(found.arcs, found.patterns, total)
        cap = min(step, limit - found.seconds)
    yield limit, None


def _quietest(network: Network, groups: Ints) -> float:
    """The least step seconds of the slowest rank; infinite where nothing covers the layers."""
    if not network.lead.size:
        return np.inf
    return _bottleneck(network, groups, network.step.min(axis=1)[network.front])


def _least(
    network: Network, groups: Ints, lead: Floats, limit: float
) -> Iterator[tuple[float, Path | None]]:
    """The path of least ``sum a + max b``, if that is below ``limit``, after the last step.

    Yields (bound, best path so far) after every step; no path has less than ``bound``. ``lead``
    [fronts, patterns] is infinite for patterns that may not be taken.
    """
    front, rows = network.front, np.arange(len(lead))
    pace = np.where(np.isfinite(lead), network.pace, np.inf)
    fastest = _bottleneck(network, groups, pace.min(axis=1)[front])
    found, cap = None, np.inf
    while fastest < cap:
        allowed = np.where(pace < cap, lead, np.inf)
        chosen = allowed.argmin(axis=1)
        path = _shortest(network, groups, allowed[rows, chosen][front])
        if not len(path):
            break
        taken = front[path], chosen[front[path]]
        total, slowest = float(lead[taken].sum()), float(pace[taken].max())
        if total + fastest >= limit:
            break
        if total + slowest < limit:
            limit = total + slowest
            found = Path(path, taken[1], limit)
        yield min(limit, total + fastest), found
        cap = min(slowest, limit - total)
    yield limit, found


def _groups(network: Network) -> Ints:
    """Where the arcs of another rank or end begin, and their number."""
    n = len(network.rank)
    changed = np.ones(n + 1, dtype=bool)
    changed[1:-1] = (np.diff(network.rank) != 0) | (np.diff(network.end) != 0)
    return np.flatnonzero(changed)


def _reach(network: Network, groups: Ints, cost: Floats, combine: np.ufunc) -> list[Floats]:
    """For each rank, the least combination of ``cost`` up to each layer; [layers + 1] each."""
    best = np.full(network.layers + 1, np.inf)
    best[0] = 0.0
    reached = [best]
    starts = groups[:-1]
    for first, last in pairwise(np.searchsorted(network.rank[starts], range(network.ranks + 1))):
        best = np.full(network.layers + 1, np.inf)
        if first < last:
            low, high = groups[first], groups[last]
            value = combine(reached[-1][network.start[low:high]], cost[low:high])
            best[network.end[starts[first:last]]] = np.minimum.reduceat(
                value, starts[first:last] - low
            )
        reached.append(best)
    return reached


def _bottleneck(network: Network, groups: Ints, cost: Floats) -> float:
    """The least largest cost of a path; infinite if there is none."""
    return float(_reach(network, groups, cost, np.maximum)[-1][-1])


def _shortest(network: Network, groups: Ints, cost: Floats) -> Ints:
    """The arcs of the path with the least sum; none if nothing covers the layers."""
    reached = _reach(network, groups, cost, np.add)
    if not np.isfinite(reached[-1][-1]):
        return np.zeros(0, dtype=np.int64)
    path, end = [], network.layers
    for rank in range(network.ranks - 1, -1, -1):
        into = np.flatnonzero((network.rank == rank) & (network.end == end))
        arc = int(into[(reached[rank][network.start[into]] + cost[into]).argmin()])
        path.append(arc)
        end = int(network.start[arc])
    return np.array(path[::-1], dtype=np.int64)
