"""Named dims of single ops; that the rules hold is tested in test_rules_by_discovery."""

from __future__ import annotations

import pytest

from autopar.graph import Ref
from autopar.strategies.rules import spec
from autopar.strategies.spec import Spec, name_of
from tests.strategies.simulate import op_of, value

X, W, B = Ref("x"), Ref("w"), Ref("b")


def values():
    shapes = {"x": (4, 6, 8), "w": (12, 8), "b": (8,), "one": (4, 1, 8), "y0": (4, 6, 8)}
    return {name: value(name, shape) for name, shape in shapes.items()}


def test_dots_are_counted_from_the_right():
    known = {**values(), "y0": value("y0", (4, 6, 12))}
    found = spec(op_of("aten.linear.default", X, W), known)
    assert found == Spec(
        {"x": ("~2", "~1", "k"), "w": ("n", "k")}, (("~2", "~1", "n"),), frozenset()
    )


def test_broadcast_dims_carry_no_name():
    found = spec(op_of("aten.add.Tensor", X, Ref("one")), values())
    assert found.inputs == {"x": ("~3", "~2", "~1"), "one": ("~3", "", "~1")}
    shorter = spec(op_of("aten.add.Tensor", X, B), values())
    assert shorter.inputs["b"] == ("~1",)


@pytest.mark.parametrize(
    ("op", "whole"),
    [
        (op_of("aten.softmax.int", X, -1), {"~1"}),
        (op_of("aten.softmax.int", X, dim=1), {"~2"}),
        (op_of("aten.cumsum.default", X, 0), {"~3"}),
        (op_of("aten.layer_norm.default", X, (8,), B), {"~1"}),
        (op_of("aten.layer_norm.default", X, (6, 8)), {"~2", "~1"}),
        (op_of("aten.slice.Tensor", X, 1, 0, 3), {"~2"}),
    ],
    ids=lambda v: getattr(v, "target", ""),
)
def test_dims_that_stay_whole(op, whole):
    assert spec(op, values()).whole == whole


def test_reductions():
    total = spec(op_of("aten.sum.dim_IntList", X, (1,)), {**values(), "y0": value("y0", (4, 8))})
    assert total.outputs == (("~3", "~1"),)
    assert total.whole == frozenset()
    kept = spec(op_of("aten.mean.dim", X, (-1,), True), {**values(), "y0": value("y0", (4, 6, 1))})
    assert kept.outputs == (("~3", "~2", ""),)
    assert kept.averaged == {"~1"}
    assert kept.whole == frozenset()
    largest = spec(op_of("aten.amax.default", X, (-1,)), {**values(), "y0": value("y0", (4, 6))})
    assert largest.whole == {"~1"}


def test_ops_without_a_rule():
    assert spec(op_of("aten.renorm.default", X, 2, 0, 1.0), values()) is None
    assert spec(op_of("aten.matmul.default", X, B), {**values(), "y0": value("y0", (4, 6))}) is None
    assert spec(op_of("aten.roll.default", X, (1,)), values()) is None
    assert name_of(op_of("aten.linear.default", X, W)) == "linear"
