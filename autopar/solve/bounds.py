"""Dynamic programs over the chain: what the best plan through an interval can cost at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from autopar.solve.chain import Chain, Floats
from autopar.solve.columns import Relaxed

Combine = Callable[[Floats, Floats], Floats]
CAPS = 12
# Caps on the slowest rank's step seconds, as multiples of the least possible.
QUIET = (1 + 1e-9, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0)


@dataclass(frozen=True)
class Windows:
    """For interval [i, j) on rank p, arrays [ranks, layers+1, layers+1].

    ``through`` is a lower bound on the objective of every plan with that interval there.
    ``others_lead`` is a lower bound on the lead seconds summed over all other ranks,
    ``slowest_pace`` and ``slowest_step`` on the largest pace and step seconds of another.
    """

    through: Floats
    others_lead: Floats
    slowest_pace: Floats
    slowest_step: Floats

    @property
    def bound(self) -> float:
        """A lower bound on the objective: every plan has one interval on each rank."""
        return float(self.through.min(axis=(1, 2)).max())


def dense(chain: Chain, values: Floats, share: float = 0.0) -> Floats:
    """Figures [ranks, contents] laid out by interval [ranks, layers+1, layers+1].

    With p2p seconds ``share`` times; infinite for intervals that are empty or not allowed.
    """
    if not chain.allowed.any():  # pinned stages that are not the equal ones: no contents either
        return np.full(chain.allowed.shape, np.inf)
    laid: Floats = np.where(chain.allowed, values[:, chain.content], np.inf)
    if share:
        begin, finish = chain.transfer_ends
        laid += share * begin[:, :, None]
        laid += share * finish[:, None, :]
    return laid


@dataclass(frozen=True)
class Least:
    """What interval [i, j) on rank p takes at least, [ranks, layers+1, layers+1], with transfers.

    ``mixed`` is a bound on lead, pace and step seconds together. Infinite where nothing fits.
    """

    lead: Floats
    pace: Floats
    step: Floats
    mixed: Floats


def least_of(chain: Chain, relaxed: Relaxed) -> Least:
    """The relaxation laid out by interval."""
    return Least(
        dense(chain, relaxed.lead, chain.lead_share),
        dense(chain, relaxed.pace, chain.pace_share),
        dense(chain, relaxed.step_seconds),
        dense(chain, relaxed.mixed, chain.num_microbatches),
    )


def windows(least: Least) -> Windows:
    """The bounds of every interval on every rank.

    With lead a, pace b and step g of the interval, a plan through it costs at least ``others + a +
    max(slowest, b) + max(slowest step, g)``, and at least ``others + (a + b + g)``.
    """
    others = _around(least.lead, np.add, 0.0)
    slowest = _around(least.pace, np.maximum, 0.0)
    slowest_step = _around(least.step, np.maximum, 0.0)
    finish = np.maximum(slowest, least.pace) + np.maximum(slowest_step, least.step)
    through = others + np.maximum(least.lead + finish, least.mixed)
    return Windows(through, others, slowest, slowest_step)


def _around(cost: Floats, combine: Combine, start: float) -> Floats:
    """Least combination of ``cost`` over the ranks before and after each interval."""
    before = _prefix(cost, combine, start)
    after = _prefix(cost[::-1, ::-1, ::-1].transpose(0, 2, 1), combine, start)[::-1, ::-1]
    return combine(before[:-1, :, None], after[1:, None, :])


def _prefix(cost: Floats, combine: Combine, start: float) -> Floats:
    """best[p, i]: least combination over ranks 0..p-1 that cover the layers before i."""
    ranks, ends, _ = cost.shape
    best = np.full((ranks + 1, ends), np.inf)
    best[0, 0] = start
    for p in range(ranks):
        best[p + 1] = combine(best[p][:, None], cost[p]).min(axis=0)
    return best


def cheapest_path(cost: Floats) -> tuple[int, ...] | None:
    """First layers of the ranks with the least sum of ``cost``; None if nothing covers."""
    return _best_path(cost, np.add)


def bottleneck_path(cost: Floats) -> tuple[int, ...] | None:
    """First layers of the ranks with the least largest ``cost``; None if nothing covers."""
    return _best_path(cost, np.maximum)


def _best_path(cost: Floats, combine: Combine) -> tuple[int, ...] | None:
    ranks, ends, _ = cost.shape
    best = _prefix(cost, combine, 0.0)
    if not np.isfinite(best[-1, -1]):
        return None
    j, starts = ends - 1, []
    for p in range(ranks - 1, -1, -1):
        j = int(combine(best[p], cost[p, :, j]).argmin())
        starts.append(j)
    return tuple(reversed(starts))


def good_paths(
    lead: Floats, pace: Floats, step: Floats
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Plans from patterns with these seconds, [patterns, ranks, ends, ends].

    Under a cap on the pace and one on the step seconds of the slowest rank, the path of least
    total lead; first for a rising cap on step seconds, then, under the best of these, for a rising
    cap on the pace. Yields (objective, starts, pattern of each rank) whenever it improves.
    """
    best, best_quiet = np.inf, np.inf
    slowest = _prefix(pace.min(axis=0), np.maximum, 0.0)[-1, -1]
    quiet = _prefix(step.min(axis=0), np.maximum, 0.0)[-1, -1]
    caps = _caps(pace, slowest)
    for k, cap in enumerate([*caps[:1], *caps]):
        for quiet_cap in [*(quiet * x for x in QUIET), np.inf] if k == 0 else [best_quiet]:
            cost = np.where((pace <= cap) & (step <= quiet_cap), lead, np.inf)
            path = cheapest_path(cost.min(axis=0))
            if path is None:
                continue
            rank, ends = np.arange(len(path)), [*path[1:], lead.shape[-1] - 1]
            chosen = cost[:, rank, list(path), ends].argmin(axis=0)
            a, b, g = (x[chosen, rank, list(path), ends] for x in (lead, pace, step))
            value = float(a.sum() + b.max() + g.max())
            if value < best:
                best, best_quiet = value, quiet_cap
                yield value, path, tuple(int(k) for k in chosen)


def _caps(seconds: Floats, slowest: float) -> Floats:
    """A few values of the slowest rank's pace from the least possible upwards."""
    if not np.isfinite(slowest):
        return np.array([])
    values = np.unique(seconds[(seconds >= slowest) & (seconds <= 1.5 * slowest)])
    if len(values) <= CAPS:
        return np.append(values, np.inf)
    above = np.geomspace(1e-3, 0.5, CAPS - 1)
    return np.concatenate([[values[0]], slowest * (1 + above), [np.inf]])
