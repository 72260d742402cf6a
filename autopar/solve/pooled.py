"""Whether a chain may have a plan below a target: one test of all its ranks together.

It costs a fraction of the relaxation of every interval (``columns.py``), whose number grows with
the square of the layers, and settles most configurations that cannot win.
"""

from __future__ import annotations

import numpy as np

from autopar.solve.chain import Chain, Floats, Ints

# The parts of a rank's time in the mixtures of time and room that are tried.
SHARES = np.linspace(0.0, 1.0, 9)
LEAST = 1e-30
TIE = 1e-9


def may_reach(chain: Chain, target: float = np.inf) -> bool:
    """Whether the ranks may hold all layers in a plan of less than ``target`` seconds.

    For any price of a layer of each class, what a rank can take is worth no more than its time and
    its room, mixed in any shares, filled with the class that is worth most per mixture there: the
    weak duality of a linear program with two resources. The prices tried are what a layer uses of
    such a mixture on the first, the middle and the last rank.
    """
    wanted = np.bincount(chain.layers, minlength=len(chain.menus))
    pace = _pace(chain, wanted, target)
    kinds = np.array([chain.problem.kind(rank) for rank in range(chain.pp)])
    own = [(chain.on(kind), np.flatnonzero(kinds == kind)) for kind in sorted({*kinds.tolist()})]
    if pace.min() <= 0 or min(_room(view) for view, _ in own) < 0:
        return False
    shares = SHARES if np.isfinite(target) else SHARES[:1]
    used = np.empty((chain.pp, len(shares), len(chain.menus)))
    for view, ranks in own:
        used[ranks] = _used(view, ranks, pace[ranks], shares)
    prices = used[[0, chain.pp // 2, -1]].reshape(-1, used.shape[-1])
    worth = (prices[:, None, None] / used).max(axis=-1).min(axis=-1).sum(axis=-1)
    return bool((worth * (1 + TIE) >= prices @ wanted).all())


def _room(chain: Chain) -> float:
    """Bytes that layers may hold on a rank besides the least transient."""
    return float(chain.room_bytes - chain.transient_bytes.min(initial=np.inf))


def _used(chain: Chain, ranks: Ints, pace: Floats, shares: Floats) -> Floats:
    """What a layer uses of time and room in these shares at least, [ranks, shares, classes]."""
    time = chain.pace_seconds / pace[:, None]
    room = chain.held_on(ranks) / max(_room(chain), 1.0)
    each = shares[:, None] * time[:, None] + (1 - shares[:, None]) * room[:, None]
    return np.maximum(_least(chain, each), LEAST)


def _pace(chain: Chain, wanted: Ints, target: float) -> Floats:
    """What a plan below the target leaves to the layers of each rank besides their lead, [ranks].

    ``wanted`` are the layers of each class.
    """
    if np.isinf(target):
        return np.full(chain.pp, np.inf)
    views, moved = chain.views or (chain,), chain.least_transfer_seconds
    leads = np.min([_least(view, view.lead_seconds) for view in views], axis=0)
    lead = leads @ wanted + chain.lead_share * moved.sum()
    step = np.min([_least(view, view.step_seconds) for view in views], axis=0)
    finish = max(step @ wanted / chain.pp, step[wanted > 0].max())
    return np.asarray(target - lead - finish - chain.pace_share * moved)


def _least(chain: Chain, figures: Floats) -> Floats:
    """The least of ``figures`` [..., options] for each class, [..., classes]."""
    first = np.searchsorted(chain.owner, range(len(chain.menus)))
    return np.asarray(np.minimum.reduceat(figures, first, axis=-1))
