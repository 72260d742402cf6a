"""Ranks with several stages: the chain folded, so that a rank takes one interval of it.

With v stages per rank the layers are v chunks, and each rank has a stage of each. Folded, the
chunks take turns: cutting that order between two ranks cuts all chunks at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def even_starts(blocks: int, stages: int) -> tuple[int, ...]:
    """The first block of each of three or more stages that are as equal as can be.

    Where not all can have as many the last stage has one less, then the first: they hold what is
    no block.
    """
    most = -(-blocks // stages)
    short = stages * most - blocks
    first, last = most - (short > 1), most - (short > 0)
    inner, rest = stages - 2, blocks - first - last
    return (0, *(first - (-rest * s // inner) for s in range(inner)), blocks - last)


def turns_through(starts: Sequence[int], lengths: Sequence[int], pp: int) -> tuple[int, ...]:
    """The chunk of every layer in an order that stages beginning at ``starts`` cut for each rank.

    Starts count units of ``lengths`` layers, which stay together. Within a rank the chunks take
    turns, so that its stages grow and shrink alike.
    """
    ends, found = [*starts[1:], len(lengths)], list[int]()
    for rank in range(pp):
        own = list(zip(starts[rank::pp], ends[rank::pp], strict=True))
        for turn in range(max(end - start for start, end in own)):
            for chunk, (start, end) in enumerate(own):
                if start + turn < end:
                    found += [chunk] * lengths[start + turn]
    return tuple(found)


@dataclass(frozen=True)
class Fold:
    """An order of the layers; ``turns`` has the chunk of each, of ``chunks`` in all."""

    turns: tuple[int, ...]
    chunks: int = 1

    @cached_property
    def taken(self) -> Ints:
        """Layers of each chunk before each place in the order, [layers + 1, chunks]."""
        taken = np.zeros((len(self.turns) + 1, self.chunks), dtype=np.int64)
        taken[np.arange(1, len(self.turns) + 1), list(self.turns)] = 1
        return taken.cumsum(axis=0)

    @cached_property
    def first(self) -> Ints:
        """The first layer of each chunk, and the number of layers; [chunks + 1]."""
        return np.concatenate([[0], self.taken[-1].cumsum()])

    @cached_property
    def layers(self) -> Ints:
        """The layer at each place in the order, [layers]."""
        places = np.arange(len(self.turns))
        return np.asarray(self.first[list(self.turns)] + self.taken[places, list(self.turns)])

    @cached_property
    def begins(self) -> Ints:
        """The first layer of each chunk's stage if a rank begins here, [layers + 1, chunks]."""
        return np.asarray(self.first[:-1] + self.taken)

    def boundaries(self, starts: Sequence[int]) -> tuple[int, ...]:
        """The first layer of every stage; ``starts`` are the places where ranks begin."""
        return tuple(self.begins[list(starts)].T.reshape(-1).tolist())

    def is_cut_by(self, boundaries: Sequence[int]) -> bool:
        """Whether stages with these first layers are intervals of the order for every rank."""
        stages = np.array(boundaries).reshape(self.chunks, -1).T
        places = (stages - self.first[:-1]).sum(axis=1)
        inside = (places >= 0) & (places <= len(self.turns))
        return bool(inside.all() and (self.begins[places] == stages).all())


@lru_cache(maxsize=256)
def fold_of(turns: tuple[int, ...], chunks: int) -> Fold:
    """The fold with these turns: many configurations of a model have the same one."""
    return Fold(turns, chunks)
