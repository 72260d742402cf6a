"""Sizes, references and values."""

from __future__ import annotations

import pytest

from autopar.graph import Graph, Op, Ref, Size, Value, refs


@pytest.mark.parametrize(("size", "expected"), [(Size(5), 5), (Size(5, 1), 15), (Size(5, 2), 45)])
def test_sizes_grow_with_the_batch(size, expected):
    assert size.at(3) == expected


def test_values():
    value = Value("x", (Size(1, 1), Size(4), Size(8)), "bfloat16")
    assert value.elements(3) == 96
    assert value.bytes(3) == 192
    assert Value("loss", (), "float32").bytes(7) == 4


def test_references_in_order_of_use():
    tree = (Ref("b"), {"k": [Ref("a"), (Ref("b"), 3)]}, "text", None)
    assert list(refs(tree)) == ["b", "a", "b"]
    assert Op("aten.add.Tensor", tree[:1], {"other": Ref("c")}, ("y",)).inputs() == ("b", "c")


def graph_of(*ops: Op) -> Graph:
    """Ops on learned tensors; "b" is a bias, "m" a matrix."""
    names = {n for op in ops for n in (*op.inputs(), *op.outputs)}
    values = {n: Value(n, (Size(1, 1), Size(8)), "float32", requires_grad=True) for n in names}
    values["b"] = Value("b", (Size(8),), "float32", "parameter", requires_grad=True)
    values["m"] = Value("m", (Size(8), Size(8)), "float32", "parameter", requires_grad=True)
    return Graph(values, ops, {}, (), (), {}, "y")


def linear(out: str) -> Op:
    return Op("aten.linear.default", (Ref("x"), Ref("m")), {}, (out,))


def plus(left: str, right: str, out: str) -> Op:
    return Op("aten.add.Tensor", (Ref(left), Ref(right)), {}, (out,))


def test_later_readers_add_their_gradient():
    found = graph_of(linear("p"), plus("p", "x", "q"), plus("q", "x", "y")).summed
    assert found == {1: {"x"}, 2: {"x"}}


def test_a_tensor_without_gradient_has_none_to_add():
    graph = graph_of(plus("x", "z", "p"), plus("p", "x", "y"))
    graph.values["x"] = Value("x", (Size(8),), "float32")
    assert graph.summed == {}


def test_a_linear_map_adds_the_bias_that_follows_it():
    assert graph_of(linear("p"), plus("p", "b", "y")).biased == {1: 0}


@pytest.mark.parametrize("ops", [
    (linear("p"), plus("p", "x", "y")),  # not a bias
    (linear("p"), plus("x", "b", "y")),  # not of the product
    (linear("p"), linear("z"), plus("p", "b", "y")),  # another op in between
    (plus("x", "x", "p"), plus("p", "b", "y")),  # not a linear map
])  # fmt: skip
def test_other_sums_are_their_own(ops):
    assert graph_of(*ops).biased == {}
