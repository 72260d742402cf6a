"""The best plan of a chain: the patterns of every interval that may win, and a path over them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import windows
from autopar.solve.chain import Chain, Depths, Floats, Place
from autopar.solve.fronts import list_fronts
from autopar.solve.paths import Network, Path, best_path
from autopar.solve.patterns import Listing, Pattern, Request, list_patterns
from autopar.solve.windows import Arcs, Open, arcs_below, arcs_by_content, residual_seconds

Key = tuple[Place, int]  # place and content


@dataclass(frozen=True)
class Answer:
    """Starts and patterns of the ranks in the best plan below the target, if there is one.

    A plan that needs a pattern that was not listed costs ``residual`` seconds at least.
    """

    plan: tuple[tuple[int, ...], tuple[Pattern, ...]] | None
    residual: float


def solve_chain(opened: Open, target: float, slack: float, budget: int, deadline: float) -> Answer:
    """The best plan of a chain, to the share ``slack``, if it is below ``target``.

    Raises:
        OutOfTimeError: the deadline, in ``time.monotonic`` seconds, has passed.
    """
    chain = opened.chain
    arcs = arcs_below(chain, opened.relaxed, windows(chain, opened.relaxed), target)
    groups = arcs_by_content(chain, arcs)
    listings = _listings(chain, arcs, groups, budget, deadline)
    residual = min(
        (residual_seconds(chain, arcs, groups[key], listings[key]) for key in groups),
        default=np.inf,
    )
    fronts = {key: listings[key].patterns for key in groups}
    network = _network(chain, arcs, groups, fronts)
    path = best_path(network, target, slack)
    return Answer(None if path is None else _plan(network, list(fronts.values()), path), residual)


def _listings(
    chain: Chain, arcs: Arcs, groups: dict[Key, list[int]], budget: int, deadline: float
) -> dict[Key, Listing]:
    """The patterns of every place and content: all of them unless there are very many."""
    requests: dict[tuple[int, Depths], dict[Key, Request]] = defaultdict(dict)
    for (place, content), members in groups.items():
        cap, step = arcs.cap_seconds[members].max(), arcs.cap_step[members].max()
        quiet = arcs.quiet_step[members].min()
        requests[place.kind, place.depths][place, content] = Request(
            chain.on(place.kind), place.depths, content, float(cap), float(quiet), budget,
            deadline, float(step),
        )  # fmt: skip
    found: dict[Key, Listing] = {}
    for asked in requests.values():
        listed = list_fronts(list(asked.values()))
        listed = [list_patterns(r) for r in asked.values()] if listed is None else listed
        found |= dict(zip(asked, listed, strict=True))
    return found


def _network(
    chain: Chain, arcs: Arcs, groups: dict[Key, list[int]],
    fronts: dict[Key, tuple[Pattern, ...]],
) -> Network:  # fmt: skip
    front = np.empty(len(arcs.rank), dtype=np.int64)
    for row, members in enumerate(groups.values()):
        front[members] = row
    order = np.lexsort((arcs.end, arcs.rank))
    return Network(
        len(chain.layers), chain.pp, arcs.rank[order], arcs.start[order], arcs.end[order],
        front[order], *_figures(chain, fronts),
    )  # fmt: skip


def _figures(chain: Chain, fronts: dict[Key, tuple[Pattern, ...]]) -> tuple[Floats, Floats, Floats]:
    """Lead, pace and step seconds with transfers, [fronts, patterns], filled up with infinity."""
    m, v = chain.num_microbatches, chain.problem.configuration.virtual_stages
    width = max((len(front) for front in fronts.values()), default=0)
    lead, pace, step = np.full((3, len(fronts), width), np.inf)
    for row, ((place, _), front) in enumerate(fronts.items()):
        seconds = np.array([p.seconds for p in front]) + place.transfer_seconds
        own = np.array([p.lead_seconds for p in front]) + place.transfer_seconds / v
        lead[row, : len(front)], pace[row, : len(front)] = own, m * seconds - own
        step[row, : len(front)] = [p.step_seconds for p in front]
    return lead, pace, step


def _plan(
    network: Network, fronts: list[tuple[Pattern, ...]], path: Path
) -> tuple[tuple[int, ...], tuple[Pattern, ...]]:
    rows = network.front[path.arcs]
    patterns = tuple(fronts[row][k] for row, k in zip(rows, path.patterns, strict=True))
    return tuple(network.start[path.arcs].tolist()), patterns
