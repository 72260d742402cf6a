"""Columns for the MILP: the intervals that may still win, with every pattern that matters there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import Windows, dense, windows
from autopar.solve.chain import Chain, Floats, Ints, Place
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
class Arcs:
    """Intervals as parallel arrays, one entry per (stage, start, end).

    A pattern is of no use if it takes ``cap_seconds`` or ``cap_step`` per step; below
    ``quiet_step`` another stage takes as many.
    """

    stage: Ints
    start: Ints
    end: Ints
    cap_seconds: Floats
    window: Windows
    quiet_step: Floats
    cap_step: Floats


def offer_columns(opened: Open, target: float, budget: int, deadline: float) -> Offer:
    """Every column through which a plan may cost less than ``target`` seconds.

    Raises:
        OutOfTimeError: the deadline, in ``time.monotonic`` seconds, has passed.
    """
    chain = opened.chain
    window = windows(chain, opened.relaxed)
    arcs = arcs_below(chain, opened.relaxed, window, target)
    columns, residual = [], np.inf
    for (place, content), members in arcs_by_content(chain, arcs).items():
        cap, quiet = arcs.cap_seconds[members].max(), arcs.quiet_step[members].min()
        listing = list_patterns(
            Request(chain, place, content, float(cap), float(quiet), budget, deadline)
        )
        residual = min(residual, residual_seconds(chain, arcs, members, listing))
        columns += _columns(chain, arcs, members, listing, target)
    columns.sort(key=lambda c: (c.stage, c.start, c.end))
    slowest, step = _least(chain, opened.relaxed, window)
    return Offer(Choices(chain, tuple(columns), slowest, step), residual)


def arcs_below(chain: Chain, relaxed: Relaxed, window: Windows, target: float) -> Arcs:
    """The intervals whose bound is below the target, and the seconds at which it is reached.

    With X = target - others - step, a pattern of lead a and pace b in m t = a + b is of use only
    if ``a + max(slowest, b + rest) < X``, so ``m t < X - rest``. Where a is the v-th part of t and
    another rank is slower, ``t < v (X - slowest)`` says more.
    """
    m, v = chain.num_microbatches, chain.problem.configuration.virtual_stages
    stage, start, end = (np.asarray(a) for a in np.nonzero(window.through < target))
    where = (stage, start, end)
    quiet = window.slowest_step[where] if not chain.shares_rank else np.zeros(len(stage))
    own_step = dense(chain, relaxed.step_seconds)[where] + window.rest_step[stage]
    finish = np.maximum(window.slowest_step[where], own_step)
    left, slowest = target - window.others_lead[where] - finish, window.slowest_pace[where]
    lead = dense(chain, relaxed.lead, chain.lead_transfers)[where]
    pace = dense(chain, relaxed.pace, chain.pace_transfers)[where] + window.rest_pace[stage]
    busy = window.others_lead[where] + lead + np.maximum(slowest, pace)
    cap_step = target - busy - window.rest_step[stage]
    cap = (left - window.rest_pace[stage]) / m
    if not chain.problem.configuration.splits_backward:
        slower = (m - 1 / v) * cap + window.rest_pace[stage] < slowest
        cap = np.where(slower, v * (left - slowest), cap)
    cap -= chain.transfer_seconds[stage]
    return Arcs(stage, start, end, cap, window, quiet, cap_step)


def arcs_by_content(chain: Chain, arcs: Arcs) -> dict[tuple[Place, int], list[int]]:
    """Arcs of equal place and content have the same patterns."""
    found: dict[tuple[Place, int], list[int]] = defaultdict(list)
    contents = chain.content[arcs.start, arcs.end]
    for k, (stage, content) in enumerate(zip(arcs.stage, contents, strict=True)):
        found[chain.places[stage], int(content)].append(k)
    return found


def _through(chain: Chain, arcs: Arcs, k: int, seconds: float, lead: float, step: float) -> float:
    """A bound on every plan with a pattern of these seconds, without transfers, on arc k.

    At least ``lead`` seconds are in front of it; the pace is what ``seconds`` leave.
    """
    window, stage = arcs.window, int(arcs.stage[k])
    where = stage, int(arcs.start[k]), int(arcs.end[k])
    lead += float(chain.lead_transfers[stage])
    work = chain.num_microbatches * (seconds + float(chain.transfer_seconds[stage]))
    pace = work - lead + float(window.rest_pace[stage])
    finish = max(float(window.slowest_step[where]), step + float(window.rest_step[stage]))
    slowest = max(float(window.slowest_pace[where]), pace)
    return float(window.others_lead[where]) + lead + slowest + finish


def residual_seconds(chain: Chain, arcs: Arcs, members: list[int], listing: Listing) -> float:
    """What a plan with an unlisted pattern costs at least.

    Nothing is known of its lead where that is a figure of its own, but lead and pace add up.
    """
    seconds = listing.beyond_seconds
    if seconds == np.inf:
        return np.inf
    apart = chain.problem.configuration.splits_backward
    lead = 0.0 if apart else seconds / chain.problem.configuration.virtual_stages
    return min(_through(chain, arcs, k, seconds, lead, 0.0) for k in members)


def _columns(
    chain: Chain, arcs: Arcs, members: list[int], listing: Listing, target: float
) -> list[Column]:
    """One column per arc and pattern whose bound stays below the target."""
    found = []
    for k in members:
        stage = int(arcs.stage[k])
        for pattern in listing.patterns:
            figures = pattern.seconds, pattern.lead_seconds, pattern.step_seconds
            if _through(chain, arcs, k, *figures) < target:
                seconds = pattern.seconds + float(chain.transfer_seconds[stage])
                lead = pattern.lead_seconds + float(chain.lead_transfers[stage])
                interval = int(arcs.start[k]), int(arcs.end[k])
                found.append(Column(stage, *interval, pattern, seconds, lead))
    return found


def _least(chain: Chain, relaxed: Relaxed, window: Windows) -> tuple[float, float]:
    """Lower bounds on the slowest rank's pace and on the largest step seconds of a plan."""
    pace = dense(chain, relaxed.pace, chain.pace_transfers) + window.rest_pace[:, None, None]
    step = dense(chain, relaxed.step_seconds) + window.rest_step[:, None, None]
    slowest = np.maximum(window.slowest_pace, pace)[0].min()
    finish = np.maximum(window.slowest_step, step)[0].min()
    return float(slowest), float(finish)
