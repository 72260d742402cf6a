"""The shardings that a class is offered."""

from __future__ import annotations

from functools import cache

from autopar.cluster import Cluster
from autopar.solve.intra import LAYOUTS, Weights
from autopar.solve.joint import propose_layouts
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


def test_samples_alone_are_left_to_data_parallelism():
    """With many samples it is fastest to divide nothing else, which is no layout of its own."""
    found = shardings()
    aim = {name: Weights(steps=0.01) for name in found.classes.patterns}
    (proposed,) = propose_layouts(found.graph, found.classes, found.cluster, 2, 4096, [aim])
    block = proposed[BLOCK]
    assert found._divides(block, samples=True)
    assert not found._divides(block)
    assert not found._is_new(proposed)


@cache
def alexnet():
    from tests.solve.test_joint import alexnet

    return Shardings(*alexnet(), Cluster.load("a100-80g"), device_samples=128.0)


def test_a_mixed_layout_is_offered_beside_the_fixed_ones():
    assert alexnet().layouts(4)[:3] == [*LAYOUTS, "open.1"]
    offered = [alexnet().of(name, 4, "open.1")[0] for name in alexnet().classes.patterns]
    assert {o.aim for o in offered} == {"fast"}
    assert any(o.sharding.divides_samples for o in offered)
    assert not all(o.sharding.divides_samples for o in offered)
    assert alexnet().microbatch_multiple(4, "open.1") == 4
    assert alexnet().microbatch_multiple(4, "replicate") == 1


def test_an_open_layout_that_a_fixed_one_covers_is_dropped():
    """A single sample per device: sequence parallelism, found by itself, is known already."""
    few = Shardings(*reduced("llama"), Cluster.load("h100-80g"), device_samples=0.5)
    assert few.layouts(2) == list(LAYOUTS)
