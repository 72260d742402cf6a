"""Operations that change their argument become ones that do not, or are refused."""

from __future__ import annotations

import pytest
import torch

from autopar.errors import TraceError
from autopar.graph import Op, Ref, Size, Value
from autopar.trace.inplace import is_inplace, make_functional
from autopar.trace.interpret import run

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
@pytest.mark.parametrize("name", ["view", "contiguous", "numpy_T"])
def test_tensors_that_share_memory_are_refused(order, name):
    view = Op(f"aten.{name}.default", (X,), {}, ("y",))
    changed, other = (X, Y)[::order]
    change = Op("aten.relu_.default", (changed,), {}, ("z",))
    late = Op("aten.exp.default", (other,), {}, ("v",))
    with pytest.raises(TraceError, match="in place"):
        make_functional([view, change, late], values())
    early = [op.target for op in make_functional([view, late, change], values())[0]]
    assert early[-1] == "aten.relu.default"


def test_parameters_are_refused_and_buffers_left_alone():
    count = Op("aten.add_.Tensor", (Ref("b"), 1), {}, ("y",))
    assert make_functional([count], values()) == ([count], {})
    with pytest.raises(TraceError):
        make_functional([Op("aten.mul_.Tensor", (Ref("p"), 2), {}, ("y",))], values())


def test_a_change_of_a_part_makes_a_new_whole():
    """``x[1:] = y`` and ``x[0] = 3``, as models shift their labels."""
    known = values()
    known["z"] = Value("z", (Size(3),), "float32")
    known["y"] = Value("y", (Size(1),), "int64")
    known["u"] = Value("u", (Size(3),), "float32")
    known["w"] = Value("w", (), "float32")
    known["w2"] = Value("w2", (), "float32")
    ops = [
        Op("aten.exp.default", (Ref("p"),), {}, ("x",)),
        Op("aten.slice.Tensor", (X, 0, 1, 4), {}, ("z",)),
        Op("aten.copy_.default", (Ref("z"), Y), {}, ("u",)),
        Op("aten.select.int", (X, 0, 0), {}, ("w",)),
        Op("aten.fill_.Scalar", (Ref("w"), 3.0), {}, ("w2",)),
        Op("aten.exp.default", (X,), {}, ("v",)),
    ]
    found, names = make_functional(ops, known)
    env = {"p": torch.arange(4.0), "y": torch.tensor([7])}
    for op in found:
        env.update(zip(op.outputs, run(op, env, 1, "cpu"), strict=True))
    assert env["v"].log().tolist() == [3, 7, 7, 7]
    assert env[names["z"]].tolist() == [7, 7, 7]


def test_a_part_that_was_taken_before_the_change_is_refused():
    ops = [
        Op("aten.exp.default", (Ref("p"),), {}, ("x",)),
        Op("aten.slice.Tensor", (X, 0, 1, 4), {}, ("z",)),
        Op("aten.slice.Tensor", (X, 0, 0, 2), {}, ("u",)),
        Op("aten.mul_.Tensor", (Ref("z"), 2), {}, ("y",)),
        Op("aten.exp.default", (Ref("u"),), {}, ("v",)),
    ]
    with pytest.raises(TraceError, match="in place"):
        make_functional(ops, values())


def test_what_is_written_into_a_buffer_is_copied_into_it():
    """``div(x, y, out=buffer)``, as spectral normalisation keeps its vectors."""
    known = values()
    op = Op("aten.div.out", (X, Y), {"out": Ref("b")}, ("u",))
    (quotient, copied), _ = make_functional([op], known)
    assert (quotient.target, quotient.args, quotient.kwargs) == ("aten.div.Tensor", (X, Y), {})
    assert copied.args == (Ref("b"), Ref(quotient.outputs[0]))
    assert is_inplace(copied)
    assert copied.outputs == ("u",)
