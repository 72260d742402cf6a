from __future__ import annotations

import itertools
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from autopar.solve.chain import Chain, Depths, relaxed_chain
from autopar.solve.patterns import Listing, OutOfTimeError, Request, list_patterns
from tests.solve.instances import problem


def _every_filling(chain: Chain, depths: Depths, content: int) -> list[np.ndarray]:
    """Layers per option of all fillings that fit."""
    per_class = []
    for c, number in enumerate(chain.counts[content]):
        members = np.flatnonzero(chain.owner == c).tolist()
        per_class.append(list(itertools.combinations_with_replacement(members, int(number))))
    found = []
    for parts in itertools.product(*per_class):
        taken = np.bincount(list(itertools.chain(*parts)), minlength=len(chain.options))
        held = taken @ chain.held_bytes(depths)
        if held + chain.transient_bytes[taken > 0].max() <= chain.room_bytes:
            found.append(taken)
    return found


def _covered(chain: Chain, listing: Listing, quiet: float, taken: np.ndarray) -> bool:
    """Whether some listed pattern is as good in every figure that matters."""
    seconds, step = float(taken @ chain.seconds), float(taken @ chain.step_seconds)
    found = [
        p for p in listing.patterns
        if p.seconds <= seconds + 1e-9 and max(p.step_seconds, quiet) <= max(step, quiet) + 1e-9
    ]  # fmt: skip
    if chain.splits_backward:
        lead = float(taken @ chain.lead_seconds)
        found = [p for p in found if p.lead_seconds <= lead + 1e-9]
    return bool(found)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("budget", [3, 5000])
def test_what_is_left_out_is_beaten_or_beyond(seed: int, budget: int) -> None:
    rng = random.Random(seed)
    chain = relaxed_chain(replace(problem(rng, 5, 2), idle=frozenset()))
    depths, content = chain.places[0].depths, rng.randrange(len(chain.counts))
    everything = _every_filling(chain, depths, content)
    cap, quiet = rng.choice([np.inf, 30.0]), rng.choice([0.0, 4.0])
    listing = list_patterns(Request(chain, depths, content, cap, quiet, budget))
    if budget == 5000:
        assert listing.beyond_seconds >= min(cap, 1e6)
    for taken in everything:
        if float(taken @ chain.seconds) < min(cap, listing.beyond_seconds) - 1e-9:
            assert _covered(chain, listing, quiet, taken)
    fitting = {tuple(taken.tolist()) for taken in everything}
    assert all(p.taken in fitting for p in listing.patterns)


def test_listed_patterns_do_not_beat_each_other() -> None:
    chains = (relaxed_chain(problem(random.Random(seed), 6, 2)) for seed in range(99))
    chain = next(chain for chain in chains if not chain.splits_backward)
    content = int(chain.content[0, 3])
    listed = list_patterns(
        Request(chain, chain.places[0].depths, content, np.inf, 0.0, 5000)
    ).patterns
    for a, b in itertools.pairwise(listed):
        assert a.seconds <= b.seconds
        assert a.step_seconds > b.step_seconds


def test_the_deadline_is_kept() -> None:
    chain = relaxed_chain(problem(random.Random(2), 6, 2))
    content, before = int(chain.content[0, 3]), time.monotonic() - 1
    late = Request(chain, chain.places[0].depths, content, np.inf, 0.0, 5000, before)
    with pytest.raises(OutOfTimeError):
        list_patterns(late)
