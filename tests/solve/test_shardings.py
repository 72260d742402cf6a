"""The shardings that a class is offered."""

from __future__ import annotations

from functools import cache

from autopar.cluster import Cluster
from autopar.solve.intra import LAYOUTS
from autopar.solve.shardings import AIMS, PRODUCTS, Shardings
from autopar.strategies.patterns import ENDS
from autopar.strategies.spec import name_of
from tests.zoo import block_of, reduced

BLOCK = block_of("gpt")


@cache
def shardings():
    return Shardings(*reduced("gpt"), Cluster.load("h100-80g"))


def test_one_device_splits_nothing():
    for pattern in (BLOCK, ENDS):
        (only,) = shardings().of(pattern, 1, "replicate")
        assert only.aim == ""
        assert only.sharding.unsplit
    assert shardings().layouts(1) == ["replicate"]


def test_each_is_offered_once_under_the_name_of_an_aim():
    for pattern in (BLOCK, ENDS):
        for layout in LAYOUTS:
            found = shardings().of(pattern, 2, layout)
            assert found is shardings().of(pattern, 2, layout), "worked out once"
            assert {o.aim for o in found} <= AIMS.keys()
            assert {o.sharding.layout for o in found} == {layout}
            different = {tuple(o.sharding.strategies.items()) for o in found}
            assert len(different) == len(found)


def test_blocks_divide_their_products():
    graph = shardings().graph
    assert shardings().layouts(2) == list(LAYOUTS)
    for offered in shardings().of(BLOCK, 2, "sequence"):
        states = [
            state.kind
            for i, strategy in offered.sharding.strategies.items()
            if name_of(graph.ops[i]) in PRODUCTS
            for _, state in strategy.inputs
        ]
        assert "S" in states


def test_a_degree_that_divides_nothing_is_not_proposed():
    """Sixteen tokens, four heads and a width of 32: a seventh of nothing is whole."""
    assert shardings().layouts(7) == []
