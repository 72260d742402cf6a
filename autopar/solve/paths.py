"""The best plan over listed patterns where every stage is alone on its rank: two thresholds.

A plan costs ``sum t + (m - 1) max t + max g`` over its stages. With a cap on t and one on g what
is left is a shortest path. The caps come down from above: a path under the caps T and G whose
largest figures are t and g shows that every plan with largest figures between t and T, or between
g and G, costs as much or more, so the next caps lie below t and g (bottleneck and sum together as
in Minoux 1989, J. Oper. Res. Soc. 40).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autopar.solve.chain import Floats, Ints
from autopar.solve.patterns import Pattern


@dataclass(frozen=True)
class Network:
    """The intervals that stages may take as arcs, and the patterns of each.

    Arrays [arcs]: arcs are sorted by stage and end; ``front`` is a row of ``seconds`` and
    ``step_seconds`` [fronts, patterns], infinite where there are no more patterns.
    ``transfers`` are seconds on top of the pattern's.
    """

    layers: int
    stages: int
    microbatches: int
    stage: Ints
    start: Ints
    end: Ints
    front: Ints
    transfers: Floats
    seconds: Floats
    step_seconds: Floats


@dataclass(frozen=True)
class Path:
    """A plan: its arcs, the pattern of each in its front, and its price in seconds."""

    arcs: Ints
    patterns: Ints
    seconds: float


def arrays_of(fronts: Sequence[Sequence[Pattern]]) -> tuple[Floats, Floats]:
    """Seconds and step seconds of the patterns, [fronts, patterns], filled up with infinity."""
    width = max((len(front) for front in fronts), default=0)
    seconds, step = np.full((2, len(fronts), width), np.inf)
    for row, front in enumerate(fronts):
        seconds[row, : len(front)] = [p.seconds for p in front]
        step[row, : len(front)] = [p.step_seconds for p in front]
    return seconds, step


def best_path(network: Network, target: float, slack: float = 0.0) -> Path | None:
    """The best plan of less than ``target`` seconds, None if there is none.

    No other plan below the target is better by more than the share ``slack``.
    """
    best: Path | None = None
    if not network.seconds.size:
        return best
    groups = _groups(network)
    quiet = _bottleneck(network, groups, network.step_seconds.min(axis=1)[network.front])
    limit, cap = target, np.inf
    while quiet < cap:
        allowed = np.where(network.step_seconds < cap, network.seconds, np.inf)
        cost = allowed.min(axis=1)[network.front] + network.transfers
        found = _least(network, groups, cost, limit - quiet)
        if found is None:
            return best
        work, path = found
        patterns = allowed[network.front[path]].argmin(axis=1)
        step = float(network.step_seconds[network.front[path], patterns].max())
        if work + step < limit:
            best = Path(path, patterns, work + step)
            limit = best.seconds * (1 - slack)
        cap = min(step, limit - work)
    return best


def _least(network: Network, groups: Ints, cost: Floats, limit: float) -> tuple[float, Ints] | None:
    """The path of least ``sum + (m - 1) max`` of ``cost`` [arcs], if that is below ``limit``."""
    repeats = network.microbatches - 1
    fastest = _bottleneck(network, groups, cost)
    found, cap = None, np.inf
    while fastest < cap:
        path = _shortest(network, groups, np.where(cost < cap, cost, np.inf))
        total, slowest = float(cost[path].sum()), float(cost[path].max(initial=0.0))
        if not len(path) or total + repeats * fastest >= limit:
            return found
        if total + repeats * slowest < limit:
            limit = total + repeats * slowest
            found = limit, path
        cap = min(slowest, (limit - total) / repeats) if repeats else 0.0
    return found


def _groups(network: Network) -> Ints:
    """Where the arcs of another stage or end begin, and their number."""
    n = len(network.stage)
    changed = np.ones(n + 1, dtype=bool)
    changed[1:-1] = (np.diff(network.stage) != 0) | (np.diff(network.end) != 0)
    return np.flatnonzero(changed)


def _reach(network: Network, groups: Ints, cost: Floats, combine: np.ufunc) -> list[Floats]:
    """For each stage, the least combination of ``cost`` up to each layer; [layers + 1] each."""
    best = np.full(network.layers + 1, np.inf)
    best[0] = 0.0
    reached = [best]
    starts = groups[:-1]
    for first, last in pairwise(np.searchsorted(network.stage[starts], range(network.stages + 1))):
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
    for stage in range(network.stages - 1, -1, -1):
        into = np.flatnonzero((network.stage == stage) & (network.end == end))
        arc = int(into[(reached[stage][network.start[into]] + cost[into]).argmin()])
        path.append(arc)
        end = int(network.start[arc])
    return np.array(path[::-1], dtype=np.int64)
