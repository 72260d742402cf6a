"""Rewrites of the graph, one by one; that they keep the loss is tested in test_trace."""

from __future__ import annotations

import pytest

from autopar.graph import Op, Ref, Size, Value
from autopar.trace import simplify

X = Ref("x")
BATCH = Size(1, 1)
HIDDEN = (BATCH, Size(4), Size(8))


def values(**shapes):
    return {n: Value(n, shape, "float32", requires_grad=True) for n, shape in shapes.items()}


IDENTITIES = [
    Op("aten.contiguous.default", (X,), {}, ("y",)),
    Op("aten.view.default", (X, HIDDEN), {}, ("y",)),
    Op("aten.to.dtype", (X, "torch.float32"), {}, ("y",)),
    Op("aten.slice.Tensor", (X, 1, 0, simplify.FULL_SLICE), {}, ("y",)),
    Op("aten.dropout.default", (X, 0.0, True), {}, ("y",)),
    Op("aten.dropout.default", (X, 0.5, False), {}, ("y",)),
    Op("aten.mul.Tensor", (X, 1.0), {}, ("y",)),
    Op("aten.add.Tensor", (X, 0), {}, ("y",)),
]
WORK = [
    Op("aten.dropout.default", (X, 0.5, True), {}, ("y",)),
    Op("aten.mul.Tensor", (X, 2), {}, ("y",)),
    Op("aten.mul.Tensor", (X, 0), {}, ("y",)),
    Op("aten.add.Tensor", (X, X), {}, ("y",)),
    Op("aten.exp.default", (X,), {}, ("y",)),
]


@pytest.mark.parametrize("op", IDENTITIES, ids=lambda op: op.target)
def test_identities_are_dropped(op):
    reader = Op("aten.exp.default", (Ref("y"),), {}, ("z",))
    ops, same = simplify.remove_identities([op, reader], values(x=HIDDEN, y=HIDDEN, z=HIDDEN))
    assert same == {"y": "x"}
    assert ops == [Op("aten.exp.default", (X,), {}, ("z",))]


@pytest.mark.parametrize("op", WORK, ids=lambda op: op.target)
def test_work_is_kept(op):
    assert simplify.remove_identities([op], values(x=HIDDEN, y=HIDDEN)) == ([op], {})


def test_shapes_and_dtypes_decide():
    known = values(x=HIDDEN, y=(BATCH, Size(32)))
    op = Op("aten.view.default", (X, (BATCH, 32)), {}, ("y",))
    assert simplify.remove_identities([op], known) == ([op], {})


def test_bias_is_split_off():
    known = values(x=HIDDEN, w=(Size(8), Size(8)), b=(Size(8),), y=HIDDEN)
    op = Op("aten.linear.default", (X, Ref("w"), Ref("b")), {}, ("y",))
    product, addition = simplify.split_bias([op], known)
    assert product == Op("aten.linear.default", (X, Ref("w")), {}, ("y_product",))
    assert addition == Op("aten.add.Tensor", (Ref("y_product"), Ref("b")), {}, ("y",))
    assert known["y_product"].shape == HIDDEN
    scaled = Op("aten.addmm.default", (Ref("b"), X, Ref("w")), {"beta": 2}, ("y",))
    assert simplify.split_bias([scaled], known) == [scaled]


def test_rows_are_lifted():
    rows = Size(4, 1)
    known = values(x=HIDDEN, flat=(rows, Size(8)), w=(Size(8), Size(6)), b=(Size(6),),
                   p=(rows, Size(6)), q=(rows, Size(6)), y=(BATCH, Size(4), Size(6)))  # fmt: skip
    ops = [
        Op("aten.view.default", (X, (-1, 8)), {}, ("flat",)),
        Op("aten.mm.default", (Ref("flat"), Ref("w")), {}, ("p",)),
        Op("aten.add.Tensor", (Ref("p"), Ref("b")), {}, ("q",)),
        Op("aten.view.default", (Ref("q"), (BATCH, 4, 6)), {}, ("y",)),
    ]
    lifted = simplify.lift_rows(ops, known)
    assert lifted[1] == Op("aten.matmul.default", (X, Ref("w")), {}, ("p_rows",))
    assert lifted[2].args == (Ref("p_rows"), Ref("b"))
    assert lifted[3] == Op("aten.alias.default", (Ref("q_rows"),), {}, ("y",))
    assert known["q_rows"].shape == (BATCH, Size(4), Size(6))


def test_what_nothing_needs_is_removed():
    ops = [Op("aten.exp.default", (X,), {}, ("y",)), Op("aten.sin.default", (X,), {}, ("z",))]
    assert simplify.remove_dead(ops, {"z"}) == ops[1:]


def test_gradients_are_propagated():
    known = values(x=HIDDEN, y=HIDDEN, z=HIDDEN, i=HIDDEN)
    ops = [
        Op("aten.exp.default", (X,), {}, ("y",)),
        Op("aten.sin.default", (Ref("y"),), {}, ("z",), no_grad=True),
        Op("aten.argmax.default", (X,), {}, ("i",)),
    ]
    known["i"] = Value("i", HIDDEN, "int64")
    simplify.propagate_grad(ops, known)
    assert [known[n].requires_grad for n in "yzi"] == [True, False, False]


def test_a_copy_of_a_buffer_that_changes_is_kept():
    """Backward of one micro-batch needs it after the forward of the next has changed the buffer."""
    known = {n: Value(n, (Size(4),), "float32") for n in ("x", "u", "v", "w")}
    known["b"] = Value("b", (Size(4),), "float32", "buffer", "b")
    changed = Op("aten.copy_.default", (Ref("b"), Ref("x")), {}, ("u",))
    copied = Op("aten.clone.default", (Ref("u"),), {}, ("v",))
    again = Op("aten.clone.default", (Ref("v"),), {}, ("w",))
    kept, same = simplify.remove_identities([changed, copied, again], known)
    assert kept == [changed, copied]
    assert same == {"w": "v"}
