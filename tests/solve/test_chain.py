from __future__ import annotations

from dataclasses import replace

import numpy as np

from autopar.cost.schedule import Depth
from autopar.solve.chain import chains, relaxed_chain, undominated
from autopar.solve.problem import Configuration, Option, Problem


def _option(key: str, seconds: float, state: int) -> Option:
    return Option(key, 0, 0, "none", seconds, 0.0, 2.0, state, 1, 0)


A, B, WORSE = _option("a", 1.0, 9), _option("b", 2.0, 3), _option("a", 3.0, 9)
PROBLEM = Problem(
    Configuration(2, 1, 1, 1, 4, "1f1b"), (0, 1, 1, 0), ((A, B, WORSE), (A, B)),
    memory_limit_bytes=100, cut_seconds=(9.0, 0.25, 0.5, 1.0), baseline_bytes=10,
)  # fmt: skip


def test_arrays_follow_the_options() -> None:
    chain = relaxed_chain(PROBLEM)
    assert chain.menus == ((A, B), (A, B))
    assert chain.owner.tolist() == [0, 0, 1, 1]
    assert chain.seconds.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert chain.room_bytes == 90
    assert [place.depths for place in chain.places] == [(Depth(2, 0),), (Depth(1, 0),)]
    each = np.arange(2), np.array([0, 1]), np.array([1, 4])
    assert chain.transfer_seconds(*each).tolist() == [0.25, 0.25]
    assert chain.least_transfer_seconds.tolist() == [0.25, 0.25]


def test_contents_count_the_layers_of_every_interval() -> None:
    chain = relaxed_chain(PROBLEM)
    for i in range(5):
        for j in range(i + 1, 5):
            counted = [chain.layers[i:j].count(c) for c in range(2)]
            assert chain.counts[chain.content[i, j]].tolist() == counted
    assert chain.content[2, 2] == -1
    assert len(np.unique(chain.counts, axis=0)) == len(chain.counts)


def test_with_one_stage_the_step_seconds_are_spread_over_the_micro_batches() -> None:
    single = replace(PROBLEM, configuration=Configuration(1, 1, 1, 1, 4, "1f1b"))
    chain = relaxed_chain(single)
    assert chain.seconds.tolist() == [1.5, 2.5, 1.5, 2.5]
    assert chain.step_seconds.tolist() == [0.0] * 4


def test_linked_layers_get_one_chain_per_common_key() -> None:
    found = list(chains(replace(PROBLEM, linked=((0, 3),))))
    assert [chain.menus[chain.layers[0]] for chain in found] == [(A,), (B,)]
    assert all(chain.layers[0] == chain.layers[3] != chain.layers[1] for chain in found)
    assert all(chain.menus[chain.layers[1]] == (A, B) for chain in found)


def test_links_join_into_groups_and_may_contradict() -> None:
    chained = replace(PROBLEM, linked=((0, 1), (1, 2), (2, 3)))
    assert len(list(chains(chained))) == 2
    apart = replace(PROBLEM, menus=((A,), (B,)), linked=((0, 1),))
    assert list(chains(apart)) == []


def test_a_folded_chain_has_classes_by_chunk_and_intervals_with_a_stage_of_each() -> None:
    """Layers 0 1 1 0 as two chunks of two, by turns: 0 | 1, 1 | 0."""
    given = replace(PROBLEM, configuration=Configuration(2, 1, 1, 1, 4, "interleaved_1f1b",
                                                         virtual_stages=2),
                    turns=(0, 1, 0, 1), cuts=((0,), (1,), (2,), (3,)))  # fmt: skip
    chain = relaxed_chain(given)
    assert chain.layers == (0, 3, 2, 1)
    assert chain.chunks == (0, 1, 0, 1)
    assert list(zip(*np.nonzero(chain.allowed), strict=True)) == [(0, 0, 2), (1, 2, 4)]
    assert sorted(chain.counts.tolist()) == [[0, 1, 1, 0], [1, 0, 0, 1]]
    each = np.arange(2), np.array([0, 2]), np.array([2, 4])
    assert chain.transfer_seconds(*each).tolist() == [0.25 + 0.5 + 1.0] * 2
    assert chain.places[0].depths == (given.configuration.depth(0), given.configuration.depth(2))


def test_of_equal_rows_the_first_stays() -> None:
    rows = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    assert undominated(rows).tolist() == [True, False, True, False]
