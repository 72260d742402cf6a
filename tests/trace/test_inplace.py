"""Operations that change their argument become ones that do not, or are refused."""

from __future__ import annotations

import pytest

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Size, Value
from autopar.trace.inplace import is_inplace, make_functional

X, Y = Ref("x"), Ref("y")


def values():
    known = {n: Value(n, (Size(4),), "float32") for n in ("x", "y", "z", "u", "v")}
    known["b"] = Value("b", (Size(4),), "float32", "buffer", "b")
    known["p"] = Value("p", (Size(4),), "float32", "parameter", "p", True)
    return known


@pytest.mark.parametrize(
    ("name", "expected"),
    [("relu_", True), ("relu", False), ("__and__", False), ("_to_copy", False)],
)
def test_names(name, expected):
    assert is_inplace(Op(f"aten.{name}.default", (X,), {}, ("y",))) is expected


def test_later_readers_see_the_change():
    ops = [
        Op("aten.exp.default", (X,), {}, ("u",)),
        Op("aten.relu_.default", (X,), {}, ("y",)),
        Op("aten.mul_.Tensor", (X, 2), {}, ("z",)),
        Op("aten.add.Tensor", (X, Y), {}, ("v",)),
    ]
    found, names = make_functional(ops, values())
    assert [op.target for op in found[1:3]] == ["aten.relu.default", "aten.mul.Tensor"]
    assert found[0].args == (X,)
    assert found[2].args == (Y, 2)
    assert found[3].args == (Ref("z"), Ref("z"))
    assert names == {"x": "z", "y": "z"}


@pytest.mark.parametrize("order", [1, -1])
def test_tensors_that_share_memory_are_refused(order):
    view = Op("aten.view.default", (X, (2, 2)), {}, ("y",))
    change = Op("aten.relu_.default", (X if order == 1 else Y,), {}, ("z",))
    with pytest.raises(TraceError, match="in place"):
        make_functional([view, change], values())


def test_parameters_are_refused_and_buffers_left_alone():
    count = Op("aten.add_.Tensor", (Ref("b"), 1), {}, ("y",))
    assert make_functional([count], values()) == ([count], {})
    with pytest.raises(TraceError):
        make_functional([Op("aten.mul_.Tensor", (Ref("p"), 2), {}, ("y",))], values())
