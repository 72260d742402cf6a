"""Classes of layers, and the graph that holds one layer of each."""

from __future__ import annotations

import pytest
from torch import nn

from autopar.cost.layer import replicated
from autopar.strategies.patterns import ENDS, find_classes, reduce, restrict
from tests.trace.models import WIDTH, Skips, graph_of
from tests.zoo import NAMES, block_of, reduced, traced


@pytest.mark.parametrize("name", NAMES)
def test_classes(name):
    classes = find_classes(traced(name))
    block = block_of(name)
    assert classes.members == ("embedding", block, block, "head")
    assert classes.patterns.keys() == {block, ENDS}
    assert classes.home("head") == classes.home("embedding") == ENDS
    assert classes.home(block) == block
    assert classes.priced("head") is classes.parts["head"]
    assert classes.priced(block) is classes.patterns[block]


@pytest.mark.parametrize("name", NAMES)
def test_boundaries_meet(name):
    """What a part sends is what the next one receives."""
    graph = traced(name)
    classes = find_classes(graph)
    ends, block = classes.patterns[ENDS], classes.patterns[block_of(name)]
    assert classes.parts["embedding"].sent == ends.sent == block.received
    assert classes.parts["embedding"].received == ()
    assert ends.received == classes.parts["head"].received == graph.layers[2].outputs
    assert classes.parts["head"].sent == ()
    assert classes.reads == ((), *(("hidden",),) * 3)
    assert classes.writes == (*(("hidden",),) * 3, ())
    assert set(ends.ops) == {i for part in classes.parts.values() for i in part.ops}


@pytest.mark.parametrize("name", NAMES)
def test_reduced_graph_is_complete(name):
    graph, classes = reduced(name)
    made = {o for op in graph.ops for o in op.outputs}
    whole = traced(name)
    for pattern in classes.patterns.values():
        # The head reads the output of the last block, whose ops are left out.
        for i in pattern.ops:
            for value in graph.ops[i].inputs():
                kind = graph.values[value].kind
                assert value in made or kind != "activation" or value in pattern.received
    assert [graph.ops[i].target for i in classes.parts["head"].ops] == [
        whole.ops[i].target for i in whole.layers[-1].ops
    ]
    assert graph.saved.keys() >= {i for p in classes.patterns.values() for i in p.ops}
    assert set(graph.values) >= {n for op in graph.ops for n in (*op.inputs(), *op.outputs)}


@pytest.mark.parametrize("name", NAMES)
def test_restriction_to_a_part(name):
    graph, classes = reduced(name)
    whole = replicated(graph, classes.patterns[ENDS])
    parts = [restrict(whole, part, graph) for part in classes.parts.values()]
    assert [set(p.strategies) for p in parts] == [set(p.ops) for p in classes.parts.values()]
    names = [set(p.parameters) for p in parts]
    assert names[0] | names[1] == set(whole.parameters)
    assert len(names[0] & names[1]) == (0 if name == "llama" else 1), "the shared embedding"


def test_without_blocks_all_is_one_part():
    classes = find_classes(graph_of(nn.Linear(WIDTH, WIDTH)))
    assert classes.patterns.keys() == {ENDS}
    assert classes.members == ("head",)
    assert classes.cuts == ()


def test_a_value_between_parts_has_two_names():
    """Whatever their states inside the parts, it has the boundary's state between them."""
    whole = graph_of(Skips())
    graph, classes = reduce(whole, find_classes(whole))
    first, head = classes.parts["embedding"], classes.parts["head"]
    (kept,) = set(first.sent) - first.chained
    assert set(head.received) == {whole.layers[-2].sent[0], f"{kept}_received"}
    read = {n for i in head.ops for n in graph.ops[i].inputs()}
    assert f"{kept}_received" in read
    assert kept not in read
    assert set(classes.writes[0]) == {"hidden", "kept"}
    assert classes.reads[1] == classes.writes[1] == ("hidden",)
    assert set(classes.reads[-1]) == {"hidden", "kept"}
    assert [[c.slot for c in cut] for cut in classes.cuts] == [["hidden", "kept"]] * 3
