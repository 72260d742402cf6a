"""Fronts against every way to fill a stage."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from autopar.cost.schedule import Depth
from autopar.solve import fronts
from autopar.solve.chain import Chain, Depths, relaxed_chain
from autopar.solve.fronts import list_fronts, spread
from autopar.solve.patterns import OutOfTimeError, Request
from tests.solve.instances import problem

DEEP = (Depth(2, 1),) * 3


def drawn(layers: int = 5) -> Iterator[Chain]:
    found = (problem(random.Random(seed), layers, 2, 4) for seed in range(200))
    return (relaxed_chain(replace(one, idle=frozenset())) for one in found)


def whole(layers: int = 5) -> Iterator[Chain]:
    """Those whose lead is a share of their seconds."""
    return (chain for chain in drawn(layers) if not chain.splits_backward)


def fillings(chain: Chain, depths: Depths, content: int) -> list[np.ndarray]:
    """Layers per option of all fillings that fit."""
    menus = [
        itertools.combinations_with_replacement(np.flatnonzero(chain.owner == c).tolist(), number)
        for c, number in enumerate(chain.counts[content].tolist())
    ]
    found = []
    for parts in itertools.product(*(list(menu) for menu in menus)):
        taken = np.bincount(list(itertools.chain(*parts)), minlength=len(chain.options))
        held = taken @ chain.held_bytes(depths)
        if held + chain.transient_bytes[taken > 0].max() <= chain.room_bytes:
            found.append(taken)
    return found


def requests(chain: Chain, seconds: float, step: float, quiet: float) -> list[Request]:
    """Every content of the first rank."""
    return [
        Request(chain, chain.places[0].depths, content, seconds, quiet, 1, most_step=step)
        for content in range(len(chain.counts))
    ]


@pytest.mark.parametrize(("chain", "seed"), list(zip(drawn(), range(60), strict=False)))
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
        every = fillings(chain, request.depths, request.content)
        assert {p.taken for p in listing.patterns} <= {tuple(t.tolist()) for t in every}
        for taken in every:
            own, loud, lead = (
                float(taken @ figure)
                for figure in (chain.seconds, chain.step_seconds, chain.lead_seconds)
            )
            if own < seconds and loud < step:
                heard = max(loud, request.quiet_step)
                assert any(
                    p.seconds <= own + 1e-9
                    and max(p.step_seconds, request.quiet_step) <= heard + 1e-9
                    and p.lead_seconds <= lead + 1e-9
                    for p in listing.patterns
                )


def test_patterns_get_slower_and_quieter_and_have_their_own_figures() -> None:
    chain = next(whole())
    for listing in list_fronts(requests(chain, np.inf, np.inf, 0.0)) or []:
        for a, b in itertools.pairwise(listing.patterns):
            assert a.seconds <= b.seconds
            assert a.step_seconds > b.step_seconds
        for pattern in listing.patterns:
            taken = np.array(pattern.taken)
            assert pattern.seconds == pytest.approx(taken @ chain.seconds)
            assert pattern.step_seconds == pytest.approx(taken @ chain.step_seconds)
            assert pattern.lead_seconds == pytest.approx(taken @ chain.lead_seconds)


@pytest.mark.parametrize("seed", range(20))
def test_twins_take_turns_by_the_work_of_their_stages(seed: int) -> None:
    """What layers of equal options take is divided so that stages take about equally long."""
    chains = (c for c in drawn(7) if max(c.chunks) and c.twins(DEEP).max() < len(c.chunks) - 1)
    chain = next(itertools.islice(chains, seed, None))
    twins, rng = chain.twins(DEEP), random.Random(seed)
    counts = chain.counts[rng.randrange(len(chain.counts))]
    members = [
        np.flatnonzero(chain.owner == twins[c]).tolist()
        for c in np.repeat(range(len(counts)), counts)
    ]
    options = [rng.choice(each) for each in members]
    taken = spread(chain, twins, counts, options)
    for c, number in enumerate(counts):
        assert taken[chain.owner == c].sum() == number
    for figure in (chain.seconds, chain.step_seconds, chain.held_bytes(DEEP)):
        assert taken @ figure == pytest.approx(sum(figure[o] for o in options))


def test_rows_between_two_edges_may_stay_but_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = max(itertools.islice(whole(6), 20), key=lambda c: len(c.options))
    exact = list_fronts(requests(chain, np.inf, np.inf, 0.0))
    monkeypatch.setattr(fronts, "EDGES", 2)
    monkeypatch.setattr(fronts, "BLOCK", 3)
    assert list_fronts(requests(chain, np.inf, np.inf, 0.0)) == exact


def test_too_many_rows_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "MOST_ROWS", 1)
    assert list_fronts(requests(next(whole()), np.inf, np.inf, 0.0)) is None


def test_the_deadline_is_kept() -> None:
    chain = next(whole())
    late = Request(chain, chain.places[0].depths, 0, np.inf, 0.0, 1, time.monotonic() - 1)
    with pytest.raises(OutOfTimeError):
        list_fronts([late])
