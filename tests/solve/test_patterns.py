from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest

from autopar.solve.chain import Chain, relaxed_chain
from autopar.solve.patterns import Listing, OutOfTimeError, Request, list_patterns
from tests.solve.instances import problem


def _every_filling(chain: Chain, depth: int, content: int) -> list[np.ndarray]:
    """Layers per option of all fillings that fit."""
    per_class = []
    for c, number in enumerate(chain.counts[content]):
        members = np.flatnonzero(chain.owner == c).tolist()
        per_class.append(list(itertools.combinations_with_replacement(members, int(number))))
    found = []
    for parts in itertools.product(*per_class):
        taken = np.bincount(list(itertools.chain(*parts)), minlength=len(chain.options))
        held = taken @ (chain.state_bytes + depth * chain.activation_bytes)
        if held + chain.transient_bytes[taken > 0].max() <= chain.room_bytes:
            found.append(taken)
    return found


def _covered(listing: Listing, quiet: float, seconds: float, step: float) -> bool:
    return any(
        p.seconds <= seconds + 1e-9 and max(p.step_seconds, quiet) <= max(step, quiet) + 1e-9
        for p in listing.patterns
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [3, 5000])
def test_what_is_left_out_is_beaten_or_beyond(seed: int, budget: int) -> None:
    rng = random.Random(seed)
    chain = relaxed_chain(problem(rng, 5, 2))
    depth, content = chain.depths[0], int(chain.content[0, rng.randint(1, 5)])
    everything = _every_filling(chain, depth, content)
    cap, quiet = rng.choice([np.inf, 30.0]), rng.choice([0.0, 4.0])
    listing = list_patterns(Request(chain, depth, content, cap, quiet, budget))
    if budget == 5000:
        assert listing.beyond_seconds >= min(cap, 1e6)
    for taken in everything:
        seconds, step = float(taken @ chain.seconds), float(taken @ chain.step_seconds)
        if seconds < min(cap, listing.beyond_seconds) - 1e-9:
            assert _covered(listing, quiet, seconds, step)
    fitting = {tuple(taken.tolist()) for taken in everything}
    assert all(p.taken in fitting for p in listing.patterns)


def test_listed_patterns_do_not_beat_each_other() -> None:
    chain = relaxed_chain(problem(random.Random(2), 6, 2))
    content = int(chain.content[0, 3])
    listed = list_patterns(Request(chain, 1, content, np.inf, 0.0, 5000)).patterns
    for a, b in itertools.pairwise(listed):
        assert a.seconds <= b.seconds
        assert a.step_seconds > b.step_seconds


def test_the_deadline_is_kept() -> None:
    chain = relaxed_chain(problem(random.Random(2), 6, 2))
    late = Request(chain, 1, int(chain.content[0, 3]), np.inf, 0.0, 5000, time.monotonic() - 1)
    with pytest.raises(OutOfTimeError):
        list_patterns(late)
