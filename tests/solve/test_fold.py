"""Folded chains against the intervals of their stages."""

from __future__ import annotations

import itertools
import random

import pytest

from autopar.solve.fold import Fold, even_starts, turns_through


@pytest.mark.parametrize(
    ("blocks", "stages"), [(126, 64), (96, 24), (9, 4), (10, 4), (5, 4), (3, 3)]
)
def test_stages_are_equal_but_the_last_and_the_first_are_the_short_ones(blocks, stages):
    starts = even_starts(blocks, stages)
    sizes = [b - a for a, b in itertools.pairwise((*starts, blocks))]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == blocks
    short = stages * max(sizes) - blocks
    assert sizes[-1] == max(sizes) - (short > 0)
    assert sizes[0] == max(sizes) - (short > 1)


def test_chunks_take_turns_and_parts_go_with_their_blocks():
    """Two ranks, two chunks; an embedding goes with the first block, a head with the last."""
    turns = turns_through((0, 2, 4, 6), (2, 1, 1, 1, 1, 1, 1, 2), pp=2)
    fold = Fold(turns, 2)
    assert turns == (0, 0, 1, 0, 1, 0, 1, 0, 1, 1)
    assert fold.layers.tolist() == [0, 1, 5, 2, 6, 3, 7, 4, 8, 9]
    assert fold.boundaries([0, 5]) == (0, 3, 5, 7)


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_of_the_order_is_a_cut_of_every_chunk(seed: int) -> None:
    rng = random.Random(seed)
    pp, chunks = rng.randint(2, 3), rng.randint(2, 3)
    layers = rng.randint(pp * chunks, 12)
    starts = (0, *sorted(rng.sample(range(1, layers), pp * chunks - 1)))
    fold = Fold(turns_through(starts, (1,) * layers, pp), chunks)
    assert sorted(fold.layers.tolist()) == list(range(layers))
    assert fold.is_cut_by(starts)
    legal = set()
    for cuts in itertools.combinations_with_replacement(range(layers + 1), pp - 1):
        ranks = [set(fold.layers[a:b].tolist()) for a, b in itertools.pairwise((0, *cuts, layers))]
        bounds = fold.boundaries((0, *cuts))
        ends = (*bounds[1:], layers)
        stages = [set(range(a, b)) for a, b in zip(bounds, ends, strict=True)]
        assert [set().union(*stages[p::pp]) for p in range(pp)] == ranks
        legal.add(bounds)
    for rest in itertools.combinations_with_replacement(range(layers + 1), pp * chunks - 1):
        assert fold.is_cut_by((0, *rest)) == ((0, *rest) in legal)
