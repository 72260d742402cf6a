"""Columns for the MILP: the intervals that may still win, with every pattern that matters there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import Windows, dense, windows
from autopar.solve.chain import Chain, Floats, Ints
from autopar.solve.columns import Relaxed
from autopar.solve.milp import Choices, Column
from autopar.solve.patterns import Listing, Request, list_patterns


@dataclass(frozen=True)
class Open:
    """A chain that may still win. ``bound`` is a lower bound on its objective."""

    chain: Chain
    relaxed: Relaxed
    bound: float
    candidate: int


@dataclass(frozen=True)
class Offer:
    """Columns of a chain; a plan that needs a column left out costs ``residual`` at least."""

    choices: Choices
    residual: float


@dataclass(frozen=True)
class _Arcs:
    """Intervals as parallel arrays, one entry per (stage, start, end)."""

    stage: Ints
    start: Ints
    end: Ints
    cap_seconds: Floats
    others: Floats
    slowest: Floats
    quiet_step: Floats


def offer_columns(opened: Open, target: float, budget: int, deadline: float) -> Offer:
    """Every column through which a plan may cost less than ``target`` seconds.

    Raises:
        OutOfTimeError: the deadline, in ``time.monotonic`` seconds, has passed.
    """
    chain = opened.chain
    window = windows(chain, opened.relaxed)
    arcs = _arcs(chain, opened.relaxed, window, target)
    columns, residual = [], np.inf
    for (depth, content), members in _groups(chain, arcs).items():
        cap, quiet = arcs.cap_seconds[members].max(), arcs.quiet_step[members].min()
        listing = list_patterns(
            Request(chain, depth, content, float(cap), float(quiet), budget, deadline)
        )
        residual = min(residual, _residual(chain, arcs, members, listing))
        columns += _columns(chain, arcs, members, listing, target)
    columns.sort(key=lambda c: (c.stage, c.start, c.end))
    slowest, step = _least(chain, opened.relaxed, window)
    return Offer(Choices(chain, tuple(columns), slowest, step), residual)


def _arcs(chain: Chain, relaxed: Relaxed, window: Windows, target: float) -> _Arcs:
    """The intervals whose bound is below the target, and the seconds at which it is reached.

    With X = target - others - step, ``t + (m - 1) * max(slowest, t) < X`` gives the cap on t.
    """
    m = chain.num_microbatches
    stage, start, end = (np.asarray(a) for a in np.nonzero(window.through < target))
    where = (stage, start, end)
    others, slowest = window.others_seconds[where], window.slowest_seconds[where]
    quiet = window.slowest_step[where]
    own_step = dense(chain, relaxed.step_seconds)[where]
    left = target - others - np.maximum(quiet, own_step)
    cap = np.where(left / m >= slowest, left / m, left - (m - 1) * slowest)
    return _Arcs(stage, start, end, cap - chain.transfer_seconds[stage], others, slowest, quiet)


def _groups(chain: Chain, arcs: _Arcs) -> dict[tuple[int, int], list[int]]:
    """Arcs of equal depth and content have the same patterns."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    contents = chain.content[arcs.start, arcs.end]
    for k, (stage, content) in enumerate(zip(arcs.stage, contents, strict=True)):
        found[chain.depths[stage], int(content)].append(k)
    return found


def _through(chain: Chain, arcs: _Arcs, k: int, seconds: float, step: float) -> tuple[float, float]:
    """Stage seconds with transfers, and a bound on every plan with such a pattern on arc k."""
    seconds += float(chain.transfer_seconds[arcs.stage[k]])
    slowest = (chain.num_microbatches - 1) * max(float(arcs.slowest[k]), seconds)
    return seconds, float(arcs.others[k]) + seconds + slowest + max(float(arcs.quiet_step[k]), step)


def _residual(chain: Chain, arcs: _Arcs, members: list[int], listing: Listing) -> float:
    """What a plan with an unlisted pattern costs at least."""
    if listing.beyond_seconds == np.inf:
        return np.inf
    return min(_through(chain, arcs, k, listing.beyond_seconds, 0.0)[1] for k in members)


def _columns(
    chain: Chain, arcs: _Arcs, members: list[int], listing: Listing, target: float
) -> list[Column]:
    """One column per arc and pattern whose bound stays below the target."""
    found = []
    for k in members:
        place = int(arcs.stage[k]), int(arcs.start[k]), int(arcs.end[k])
        for pattern in listing.patterns:
            seconds, bound = _through(chain, arcs, k, pattern.seconds, pattern.step_seconds)
            if bound < target:
                found.append(Column(*place, pattern, seconds))
    return found


def _least(chain: Chain, relaxed: Relaxed, window: Windows) -> tuple[float, float]:
    """Lower bounds on the slowest stage's seconds and on the largest step seconds of a plan."""
    seconds, step = dense(chain, relaxed.seconds, 1), dense(chain, relaxed.step_seconds)
    slowest = np.maximum(window.slowest_seconds, seconds)[0].min()
    finish = np.maximum(window.slowest_step, step)[0].min()
    return float(slowest), float(finish)
