"""Operations that make or count are written with what they need, and compute the same."""

from __future__ import annotations

import torch

from autopar.graph import Op, Ref, Size, Value
from autopar.trace.factories import count_integers, plain_factories
from autopar.trace.interpret import run

X = Ref("x")


def values(dtype: str = "int64", out: str = "int64") -> dict[str, Value]:
    return {"x": Value("x", (Size(6),), dtype), "y": Value("y", (Size(4),), out)}


def compute(ops, x):
    env = {"x": x}
    for op in ops:
        env.update(zip(op.outputs, run(op, env, 1, "cpu"), strict=True))
    return env["y"]


def test_tensors_like_another_do_not_read_it():
    op = Op("aten.new_full.default", (X, (4,), 7), {}, ("y",))
    (found,) = plain_factories([op], values(out="int32"))
    assert found.inputs() == ()
    assert torch.equal(compute([found], torch.zeros(6)), torch.full((4,), 7, dtype=torch.int32))


def test_nothing_is_left_uninitialised():
    known = values("float32", "float32")
    ops = [
        Op("aten.new_empty.default", (X, (4,)), {}, ("y",)),
        Op("aten.empty.memory_format", ((4,),), {}, ("y",)),
        Op("aten.empty_like.default", (X,), {}, ("y",)),
    ]
    assert not any(compute([op], torch.ones(6)).any() for op in plain_factories(ops, known))


def test_counts_of_integers():
    op = Op("aten.histc.default", (X, 4, 0, 3), {}, ("y",))
    found = count_integers([op], values(out="int32"))
    assert "histc" not in "".join(op.target for op in found)
    x = torch.tensor([3, 0, 0, 1, 5, -1])
    counts = compute(found, x)
    assert counts.dtype == torch.int32
    assert counts.tolist() == torch.histc(x.float(), 4, 0, 3).tolist() == [2, 1, 0, 1]


def test_the_last_bin_holds_both_ends():
    op = Op("aten.histc.default", (X, 4, 0, 4), {}, ("y",))
    x = torch.tensor([3, 4, 0, 5, 4, -1])
    counts = compute(count_integers([op], values(out="int32")), x)
    assert counts.tolist() == torch.histc(x.float(), 4, 0, 4).tolist() == [1, 0, 0, 3]


def test_other_histograms_are_left_alone():
    for dtype, arguments in (("float32", (X, 4, 0, 3)), ("int64", (X, 4, 0, 7))):
        op = Op("aten.histc.default", arguments, {}, ("y",))
        assert count_integers([op], values(dtype)) == [op]
