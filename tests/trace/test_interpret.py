"""Single operations, run with torch."""

from __future__ import annotations

import torch

from autopar.graph import Op, Ref, Size
from autopar.trace.interpret import concrete, exists, run


def test_arguments():
    x = torch.ones(2)
    tree = (Ref("x"), Size(3, 1), ("torch.float32", None), 1.5)
    assert concrete(tree, {"x": x}, batch=4) == [x, 12, [torch.float32, None], 1.5]


def test_outputs_are_a_tuple():
    env = {"x": torch.arange(6.0).reshape(2, 3)}
    (doubled,) = run(Op("aten.mul.Tensor", (Ref("x"), 2), {}, ("y",)), env, 1, "cpu")
    assert torch.equal(doubled, 2 * env["x"])
    parts = run(Op("aten.split.Tensor", (Ref("x"), 1, 1), {}, ("a", "b", "c")), env, 1, "cpu")
    assert [part.shape for part in parts] == [(2, 1)] * 3


def test_factories_are_put_on_the_device():
    op = Op("aten.ones.default", ((Size(1, 1), 3),), {"dtype": "torch.int64"}, ("y",))
    (made,) = run(op, {}, 5, "meta")
    assert (made.shape, made.dtype, made.device.type) == ((5, 3), torch.int64, "meta")


def test_views_of_what_is_not_contiguous():
    op = Op("aten.view.default", (Ref("x"), (-1,)), {}, ("y",))
    (flat,) = run(op, {"x": torch.ones(2, 3).t()}, 1, "cpu")
    assert flat.shape == (6,)


def test_exists():
    assert exists("aten.relu.default")
    assert not exists("aten.relu.Tensor")
    assert not exists("aten.nonsense.default")
