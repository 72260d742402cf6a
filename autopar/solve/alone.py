"""The best plan of a chain in which every stage is alone on its rank, without a MILP."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from autopar.solve.bounds import windows
from autopar.solve.chain import Chain, Place
from autopar.solve.fronts import list_fronts
from autopar.solve.paths import Network, Path, arrays_of, best_path
from autopar.solve.patterns import Listing, Pattern, Request, list_patterns
from autopar.solve.windows import Arcs, Open, arcs_below, arcs_by_content, residual_seconds

# Stages of more layers have more patterns than can be listed; their relaxation is off by little.
MOST_LAYERS = 24


@dataclass(frozen=True)
class Alone:
    """First layers and patterns of the stages of the best plan below the target, if there is one.

    A plan that needs a pattern that was not listed costs ``residual`` seconds at least.
    """

    plan: tuple[tuple[int, ...], tuple[Pattern, ...]] | None
    residual: float


def solve_alone(opened: Open, target: float, slack: float, budget: int, deadline: float) -> Alone:
    """The best plan of an uncoupled chain, to the share ``slack``, if it is below ``target``.

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
    fronts = [listings[key].patterns for key in groups]
    network = _network(chain, arcs, list(groups.values()), fronts)
    path = best_path(network, target, slack)
    return Alone(None if path is None else _plan(network, fronts, path), residual)


def _listings(
    chain: Chain, arcs: Arcs, groups: dict[tuple[Place, int], list[int]], budget: int,
    deadline: float,
) -> dict[tuple[Place, int], Listing]:  # fmt: skip
    """The patterns of every place and content: all of them where stages have few layers."""
    places: dict[Place, list[Request]] = defaultdict(list)
    for (place, content), members in groups.items():
        cap, step = arcs.cap_seconds[members].max(), arcs.cap_step[members].max()
        quiet = arcs.quiet_step[members].min()
        places[place].append(
            Request(chain, place, content, float(cap), float(quiet), budget, deadline, float(step))
        )
    found: dict[tuple[Place, int], Listing] = {}
    for place, requests in places.items():
        few = max(int(r.counts.sum()) for r in requests) <= MOST_LAYERS
        listed = list_fronts(requests) if few else None
        listed = [list_patterns(r) for r in requests] if listed is None else listed
        found |= {(place, r.content): x for r, x in zip(requests, listed, strict=True)}
    return found


def _network(
    chain: Chain, arcs: Arcs, groups: list[list[int]], fronts: list[tuple[Pattern, ...]]
) -> Network:
    front = np.empty(len(arcs.stage), dtype=np.int64)
    for row, members in enumerate(groups):
        front[members] = row
    order = np.lexsort((arcs.end, arcs.stage))
    stage = arcs.stage[order]
    return Network(
        len(chain.layers), chain.stages, chain.num_microbatches, stage, arcs.start[order],
        arcs.end[order], front[order], chain.transfer_seconds[stage], *arrays_of(fronts),
    )  # fmt: skip


def _plan(
    network: Network, fronts: list[tuple[Pattern, ...]], path: Path
) -> tuple[tuple[int, ...], tuple[Pattern, ...]]:
    rows = network.front[path.arcs]
    patterns = tuple(fronts[row][k] for row, k in zip(rows, path.patterns, strict=True))
    return tuple(network.start[path.arcs].tolist()), patterns
