"""Dynamic programs over the chain: what the best plan through an interval can cost at least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from autopar.solve.chain import Chain, Floats
from autopar.solve.columns import Relaxed

Combine = Callable[[Floats, Floats], Floats]
CAPS = 12


@dataclass(frozen=True)
class Windows:
    """For interval [i, j) on stage p, arrays [stages, layers+1, layers+1].

    ``through`` is a lower bound on the objective of every plan with that interval there.
    ``others_seconds`` is a lower bound on the seconds summed over all other stages,
    ``slowest_seconds`` and ``slowest_step`` on their largest.
    """

    through: Floats
    others_seconds: Floats
    slowest_seconds: Floats
    slowest_step: Floats

    @property
    def bound(self) -> float:
        """A lower bound on the objective: every plan has one interval on each stage."""
        return float(self.through.min(axis=(1, 2)).max())


def dense(chain: Chain, values: Floats, transfers: int = 0) -> Floats:
    """Figures [stages, contents] laid out by interval [stages, layers+1, layers+1].

    Adds ``transfers`` times the p2p seconds of the stage; infinite for empty intervals.
    """
    laid = np.where(chain.content >= 0, values[:, chain.content], np.inf)
    return np.asarray(laid + transfers * chain.transfer_seconds[:, None, None])


def windows(chain: Chain, relaxed: Relaxed) -> Windows:
    """The bounds of every interval on every stage.

    A plan through the interval costs at least ``others + t + (m - 1) * max(slowest, t) +
    max(slowest step, g)``, and at least ``others + (m * t + g)``, where t and g are bounded
    by the relaxation of the interval.
    """
    m = chain.num_microbatches
    seconds = dense(chain, relaxed.seconds, 1)
    step = dense(chain, relaxed.step_seconds)
    others = _around(seconds, np.add, 0.0)
    slowest = _around(seconds, np.maximum, 0.0)
    slowest_step = _around(step, np.maximum, 0.0)
    apart = others + seconds + np.maximum(slowest_step, step)
    if m > 1:  # 0 * inf is not a number
        apart += (m - 1) * np.maximum(slowest, seconds)
    together = others + dense(chain, relaxed.mixed, m)
    return Windows(np.maximum(apart, together), others, slowest, slowest_step)


def _around(cost: Floats, combine: Combine, start: float) -> Floats:
    """Least combination of ``cost`` over the stages before and after each interval."""
    before = _prefix(cost, combine, start)
    after = _prefix(cost[::-1, ::-1, ::-1].transpose(0, 2, 1), combine, start)[::-1, ::-1]
    return combine(before[:-1, :, None], after[1:, None, :])


def _prefix(cost: Floats, combine: Combine, start: float) -> Floats:
    """best[p, i]: least combination over stages 0..p-1 that cover the layers before i."""
    stages, ends, _ = cost.shape
    best = np.full((stages + 1, ends), np.inf)
    best[0, 0] = start
    for p in range(stages):
        best[p + 1] = combine(best[p][:, None], cost[p]).min(axis=0)
    return best


def cheapest_path(cost: Floats) -> tuple[int, ...] | None:
    """First layers of the stages with the least sum of ``cost``; None if nothing covers."""
    return _best_path(cost, np.add)


def bottleneck_path(cost: Floats) -> tuple[int, ...] | None:
    """First layers of the stages with the least largest ``cost``; None if nothing covers."""
    return _best_path(cost, np.maximum)


def _best_path(cost: Floats, combine: Combine) -> tuple[int, ...] | None:
    stages, ends, _ = cost.shape
    best = _prefix(cost, combine, 0.0)
    if not np.isfinite(best[-1, -1]):
        return None
    j, starts = ends - 1, []
    for p in range(stages - 1, -1, -1):
        j = int(combine(best[p], cost[p, :, j]).argmin())
        starts.append(j)
    return tuple(reversed(starts))


def good_paths(
    seconds: Floats, step: Floats, num_microbatches: int
) -> Iterator[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Plans from patterns with these seconds and step seconds [patterns, stages, ends, ends].

    For a rising cap on the slowest stage, and with and without the least possible cap on the
    step seconds, the path of least total seconds. Yields (objective, boundaries, pattern of
    each stage) whenever it improves.
    """
    best = np.inf
    slowest = _prefix(seconds.min(axis=0), np.maximum, 0.0)[-1, -1]
    quiet = _prefix(step.min(axis=0), np.maximum, 0.0)[-1, -1]
    for cap in _caps(seconds, slowest):
        for quiet_cap in (np.inf, quiet * (1 + 1e-9)):
            open_ = (seconds <= cap) & (step <= quiet_cap)
            cost = np.where(open_, seconds, np.inf)
            path = cheapest_path(cost.min(axis=0))
            if path is None:
                continue
            stage, ends = np.arange(len(path)), [*path[1:], seconds.shape[-1] - 1]
            chosen = cost[:, stage, list(path), ends].argmin(axis=0)
            t, g = (x[chosen, stage, list(path), ends] for x in (seconds, step))
            value = float(t.sum() + (num_microbatches - 1) * t.max() + g.max())
            if value < best:
                best = value
                yield value, path, tuple(int(k) for k in chosen)


def _caps(seconds: Floats, slowest: float) -> Floats:
    """A few values of the slowest stage's seconds from the least possible upwards."""
    if not np.isfinite(slowest):
        return np.array([])
    values = np.unique(seconds[(seconds >= slowest) & (seconds <= 1.5 * slowest)])
    if len(values) <= CAPS:
        return np.append(values, np.inf)
    near, far = values[: CAPS // 2], values[np.linspace(0, len(values) - 1, CAPS // 2).astype(int)]
    return np.append(np.unique(np.concatenate([near, far])), np.inf)
