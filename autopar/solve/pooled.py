"""Whether a chain may have a plan below a target: one test of all its ranks together.

It costs a fraction of the relaxation of every interval (``columns.py``), whose number grows with
the square of the layers, and settles most configurations that cannot win.
"""

from __future__ import annotations

import numpy as np

from autopar.solve.chain import Chain, Floats

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
    places = list(dict.fromkeys(chain.places))
    number = np.array([chain.places.count(place) for place in places])
    room = chain.room_bytes - chain.transient_bytes.min(initial=np.inf)
    wanted = np.bincount(chain.layers, minlength=len(chain.menus))
    held = np.stack([chain.held_bytes(place.depths) for place in places])
    pace = np.array([_pace(chain, target, place.transfer_seconds) for place in places])
    if room < 0 or pace.min() <= 0:
        return False
    shares = SHARES if np.isfinite(target) else SHARES[:1]
    each = (
        shares[:, None] * (chain.pace_seconds / pace[:, None])[:, None]
        + (1 - shares[:, None]) * (held / max(room, 1.0))[:, None]
    )  # [places, shares, options]
    used = np.maximum(_least(chain, each), LEAST)
    prices = used[[0, len(used) // 2, -1]].reshape(-1, used.shape[-1])
    worth = (prices[:, None, None] / used).max(axis=-1).min(axis=-1) @ number
    return bool((worth * (1 + TIE) >= prices @ wanted).all())


def _pace(chain: Chain, target: float, transfer_seconds: float) -> float:
    """What a plan below the target leaves to the layers of a rank besides their lead."""
    m, v = chain.num_microbatches, chain.problem.configuration.virtual_stages
    wanted = np.bincount(chain.layers, minlength=len(chain.menus))
    lead = _least(chain, chain.lead_seconds) @ wanted + chain.lead_transfers.sum()
    step = _least(chain, chain.step_seconds)
    finish = max(step @ wanted / chain.pp, step[wanted > 0].max())
    return float(target - lead - finish - (m - 1 / v) * transfer_seconds)


def _least(chain: Chain, figures: Floats) -> Floats:
    """The least of ``figures`` [..., options] for each class, [..., classes]."""
    first = np.searchsorted(chain.owner, range(len(chain.menus)))
    return np.asarray(np.minimum.reduceat(figures, first, axis=-1))
