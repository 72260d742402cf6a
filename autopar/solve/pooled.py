"""Whether a chain may have a plan below a target: one test of all its ranks together.

It costs a fraction of the relaxation of every interval (``columns.py``), whose number grows with
the square of the layers, and settles most configurations that cannot win.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autopar.solve.chain import Chain, Floats, Place

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
    each = list(zip(chain.places, chain.least_transfer_seconds.tolist(), strict=True))
    number = np.array([each.count(own) for own in dict.fromkeys(each)])
    places = [place for place, _ in dict.fromkeys(each)]
    wanted = np.bincount(chain.layers, minlength=len(chain.menus))
    pace = np.array([_pace(chain, target, moved) for _, moved in dict.fromkeys(each)])
    if pace.min() <= 0 or min(_room(chain.on(place.kind)) for place in places) < 0:
        return False
    shares = SHARES if np.isfinite(target) else SHARES[:1]
    kinds = np.array([place.kind for place in places])  # those of one kind are neighbours
    used = np.concatenate([
        _used(chain.on(kind), [p for p in places if p.kind == kind], pace[kinds == kind], shares)
        for kind in dict.fromkeys(kinds.tolist())
    ])  # fmt: skip
    prices = used[[0, len(used) // 2, -1]].reshape(-1, used.shape[-1])
    worth = (prices[:, None, None] / used).max(axis=-1).min(axis=-1) @ number
    return bool((worth * (1 + TIE) >= prices @ wanted).all())


def _room(chain: Chain) -> float:
    """Bytes that layers may hold on a rank besides the least transient."""
    return float(chain.room_bytes - chain.transient_bytes.min(initial=np.inf))


def _used(chain: Chain, places: Sequence[Place], pace: Floats, shares: Floats) -> Floats:
    """What a layer uses of time and room in these shares at least, [places, shares, classes]."""
    held = np.stack([chain.held_bytes(place.depths) for place in places])
    each = (
        shares[:, None] * (chain.pace_seconds / pace[:, None])[:, None]
        + (1 - shares[:, None]) * (held / max(_room(chain), 1.0))[:, None]
    )  # [places, shares, options]
    return np.maximum(_least(chain, each), LEAST)


def _pace(chain: Chain, target: float, transfer_seconds: float) -> float:
    """What a plan below the target leaves to the layers of a rank besides their lead."""
    wanted = np.bincount(chain.layers, minlength=len(chain.menus))
    views = chain.views or (chain,)
    leads = np.min([_least(view, view.lead_seconds) for view in views], axis=0)
    lead = leads @ wanted + chain.lead_share * chain.least_transfer_seconds.sum()
    step = np.min([_least(view, view.step_seconds) for view in views], axis=0)
    finish = max(step @ wanted / chain.pp, step[wanted > 0].max())
    return float(target - lead - finish - chain.pace_share * transfer_seconds)


def _least(chain: Chain, figures: Floats) -> Floats:
    """The least of ``figures`` [..., options] for each class, [..., classes]."""
    first = np.searchsorted(chain.owner, range(len(chain.menus)))
    return np.asarray(np.minimum.reduceat(figures, first, axis=-1))
