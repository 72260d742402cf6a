"""Fronts against every way to fill a stage."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest

from autopar.solve import fronts
from autopar.solve.chain import Chain, Place, relaxed_chain
from autopar.solve.fronts import list_fronts
from autopar.solve.patterns import OutOfTimeError, Request
from tests.solve.instances import problem


def uncoupled(layers: int = 5) -> Iterator[Chain]:
    chains = (relaxed_chain(problem(random.Random(seed), layers, 2, 4)) for seed in range(200))
    return (chain for chain in chains if not chain.coupled)


def fillings(chain: Chain, place: Place, content: int) -> list[np.ndarray]:
    """Layers per option of all fillings that fit."""
    menus = [
        itertools.combinations_with_replacement(np.flatnonzero(chain.owner == c).tolist(), number)
        for c, number in enumerate(chain.counts[content].tolist())
    ]
    found = []
    for parts in itertools.product(*(list(menu) for menu in menus)):
        taken = np.bincount(list(itertools.chain(*parts)), minlength=len(chain.options))
        held = taken @ chain.held_bytes(place.depth)
        if held + chain.transient_bytes[taken > 0].max() <= place.most_bytes:
            found.append(taken)
    return found


def requests(chain: Chain, seconds: float, step: float, quiet: float) -> list[Request]:
    """Every content of the first stage."""
    return [
        Request(chain, chain.places[0], content, seconds, quiet, 1, most_step=step)
        for content in range(len(chain.counts))
    ]


@pytest.mark.parametrize(("chain", "seed"), list(zip(uncoupled(), range(30), strict=False)))
@pytest.mark.parametrize("share", [0.6, 10.0])
def test_every_filling_below_the_caps_is_matched_by_a_listed_one(
    chain: Chain, seed: int, share: float
) -> None:
    rng, worst = random.Random(seed), chain.counts.sum(axis=1).max()
    seconds, step = share * worst * chain.seconds.mean(), share * worst * chain.step_seconds.mean()
    asked = requests(chain, seconds, step, rng.choice([0.0, 4.0]))
    listings = list_fronts(asked)
    assert listings is not None
    for request, listing in zip(asked, listings, strict=True):
        every = fillings(chain, request.place, request.content)
        assert {p.taken for p in listing.patterns} <= {tuple(t.tolist()) for t in every}
        for taken in every:
            own, loud = float(taken @ chain.seconds), float(taken @ chain.step_seconds)
            if own < seconds and loud < step:
                heard = max(loud, request.quiet_step)
                assert any(
                    p.seconds <= own + 1e-9
                    and max(p.step_seconds, request.quiet_step) <= heard + 1e-9
                    for p in listing.patterns
                )


def test_patterns_get_slower_and_quieter_and_have_their_own_figures() -> None:
    chain = next(uncoupled())
    for listing in list_fronts(requests(chain, np.inf, np.inf, 0.0)) or []:
        for a, b in itertools.pairwise(listing.patterns):
            assert a.seconds <= b.seconds
            assert a.step_seconds > b.step_seconds
        for pattern in listing.patterns:
            taken = np.array(pattern.taken)
            assert pattern.seconds == pytest.approx(taken @ chain.seconds)
            assert pattern.held_bytes == taken @ chain.held_bytes(chain.places[0].depth)
            assert pattern.transient_bytes == chain.transient_bytes[taken > 0].max()


def test_rows_between_two_edges_may_stay_but_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = max(itertools.islice(uncoupled(6), 20), key=lambda c: len(c.options))
    exact = list_fronts(requests(chain, np.inf, np.inf, 0.0))
    monkeypatch.setattr(fronts, "EDGES", 2)
    monkeypatch.setattr(fronts, "BLOCK", 3)
    assert list_fronts(requests(chain, np.inf, np.inf, 0.0)) == exact


def test_too_many_rows_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "MOST_ROWS", 1)
    assert list_fronts(requests(next(uncoupled()), np.inf, np.inf, 0.0)) is None


def test_the_deadline_is_kept() -> None:
    chain = next(uncoupled())
    late = Request(chain, chain.places[0], 0, np.inf, 0.0, 1, time.monotonic() - 1)
    with pytest.raises(OutOfTimeError):
        list_fronts([late])
