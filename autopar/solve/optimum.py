"""The best plan of a chain: the patterns of every interval that may win, and a path over them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import Least, least_of, windows
from autopar.solve.chain import Chain, Depths, Floats, Place
from autopar.solve.fronts import list_fronts
from autopar.solve.paths import Network, Path, best_paths
from autopar.solve.patterns import Listing, Pattern, Request, list_patterns
from autopar.solve.windows import Arcs, Open, arcs_below, arcs_by_content, residual_seconds

Key = tuple[Place, int]  # place and content
Front = tuple[Pattern, ...]
Plan = tuple[tuple[int, ...], tuple[Pattern, ...]]  # first layers and patterns of the ranks
PAUSE = 0.5  # seconds between two bounds while patterns are listed: each takes a moment itself


@dataclass(frozen=True)
class Reached:
    """A step of the solve of a chain: no plan of it below the target is below ``bound``.

    ``plan`` is better than those before, None where the step found none.
    """

    bound: float
    plan: Plan | None = None


def solve_chain(
    opened: Open, target: float, slack: float, budget: int, deadline: float
) -> Iterator[Reached]:
    """Better and better plans of a chain, below ``target``, with what is proven on the way.

    The last plan is the best to the share ``slack``, or to the last bound where that is lower
    because not all patterns were listed.

    Raises:
        OutOfTimeError: the deadline, in ``time.monotonic`` seconds, has passed.
    """
    chain, known = opened.chain, least_of(opened.chain, opened.relaxed)
    arcs = arcs_below(chain, known, windows(known), target)
    groups = arcs_by_content(chain, arcs)
    listings: dict[Key, Listing] = {}
    residual, told, known = np.inf, time.monotonic(), _only(known, arcs)
    for listed in _listings(chain, arcs, groups, budget, deadline):
        listings |= listed
        for key, listing in listed.items():
            _learn(chain, known, arcs, groups[key], listing)
            residual = min(residual, residual_seconds(chain, arcs, groups[key], listing))
        if time.monotonic() >= told + PAUSE:
            yield Reached(min(target, residual, windows(known).bound))
            told = time.monotonic()
    fronts = [listings[key].patterns for key in groups]
    network = _network(chain, arcs, list(groups.values()), fronts)
    for bound, path in best_paths(network, target, slack):
        plan = None if path is None else _plan(network, fronts, path)
        yield Reached(min(bound, residual), plan)


def _only(least: Least, arcs: Arcs) -> Least:
    """The figures of these intervals; infinite elsewhere, where no plan is below the target."""
    where = arcs.rank, arcs.start, arcs.end
    known = Least(*(np.full_like(figure, np.inf) for figure in _each(least)))
    for own, figure in zip(_each(known), _each(least), strict=True):
        own[where] = figure[where]
    return known


def _each(least: Least) -> tuple[Floats, ...]:
    return least.lead, least.pace, least.step, least.mixed


def _learn(chain: Chain, known: Least, arcs: Arcs, members: list[int], listing: Listing) -> None:
    """Puts the least figures of listed patterns in the place of their relaxation.

    What an unlisted one costs is told apart, see ``residual_seconds``.
    """
    where = arcs.rank[members], arcs.start[members], arcs.end[members]
    seconds, step, lead = (
        np.array([getattr(pattern, name) for pattern in listing.patterns], dtype=np.float64)
        for name in ("seconds", "step_seconds", "lead_seconds")
    )
    work, moved = chain.num_microbatches * seconds, chain.transfer_seconds(*where)
    known.lead[where] = lead.min(initial=np.inf) + chain.lead_share * moved
    known.pace[where] = (work - lead).min(initial=np.inf) + chain.pace_share * moved
    known.step[where] = step.min(initial=np.inf)
    known.mixed[where] = (work + step).min(initial=np.inf) + chain.num_microbatches * moved


def _listings(
    chain: Chain, arcs: Arcs, groups: dict[Key, list[int]], budget: int, deadline: float
) -> Iterator[dict[Key, Listing]]:
    """The patterns of every place and content, part by part: all unless there are very many."""
    requests: dict[tuple[int, Depths], dict[Key, Request]] = defaultdict(dict)
    for (place, content), members in groups.items():
        cap, step = arcs.cap_seconds[members].max(), arcs.cap_step[members].max()
        quiet = arcs.quiet_step[members].min()
        requests[place.kind, place.depths][place, content] = Request(
            chain.on(place.kind), place.depths, content, float(cap), float(quiet), budget,
            deadline, float(step),
        )  # fmt: skip
    for asked in requests.values():
        listed = list_fronts(list(asked.values()))
        if listed is not None:
            yield dict(zip(asked, listed, strict=True))
        else:
            yield from ({key: list_patterns(request)} for key, request in asked.items())


def _network(chain: Chain, arcs: Arcs, groups: list[list[int]], fronts: list[Front]) -> Network:
    """The arcs with the patterns of their groups, apart where p2p seconds differ."""
    number = np.empty(len(arcs.rank), dtype=np.int64)
    for row, members in enumerate(groups):
        number[members] = row
    moved = chain.transfer_seconds(arcs.rank, arcs.start, arcs.end)
    rows, front = np.unique(np.stack([number, moved], axis=1), axis=0, return_inverse=True)
    order, of = np.lexsort((arcs.end, arcs.rank)), rows[:, 0].astype(np.int64)
    figures = _figures(chain, [fronts[row] for row in of], rows[:, 1])
    return Network(
        len(chain.layers), chain.pp, arcs.rank[order], arcs.start[order], arcs.end[order],
        front.reshape(-1)[order], *figures, of,
    )  # fmt: skip


def _figures(
    chain: Chain, fronts: Sequence[Front], transfers: Floats
) -> tuple[Floats, Floats, Floats]:
    """Lead, pace and step seconds with transfers, [fronts, patterns], filled up with infinity."""
    width = max((len(front) for front in fronts), default=0)
    lead, pace, step = np.full((3, len(fronts), width), np.inf)
    for row, (front, moved) in enumerate(zip(fronts, transfers, strict=True)):
        seconds = np.array([p.seconds for p in front]) + moved
        own = np.array([p.lead_seconds for p in front]) + chain.lead_share * moved
        lead[row, : len(front)] = own
        pace[row, : len(front)] = chain.num_microbatches * seconds - own
        step[row, : len(front)] = [p.step_seconds for p in front]
    return lead, pace, step


def _plan(network: Network, fronts: list[Front], path: Path) -> Plan:
    rows = network.listed[network.front[path.arcs]]
    patterns = tuple(fronts[row][k] for row, k in zip(rows, path.patterns, strict=True))
    return tuple(network.start[path.arcs].tolist()), patterns
