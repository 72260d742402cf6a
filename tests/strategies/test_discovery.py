"""Named dims found by running an op: they agree with the table, and with what is true."""

from __future__ import annotations

import pytest
import torch

from autopar.graph import Ref, Size, Value
from autopar.strategies import discovery
from autopar.strategies.choices import strategies
from autopar.strategies.discovery import discovered
from autopar.strategies.states import P, R, V, shard
from autopar.trace.interpret import run
from tests.strategies.simulate import check_strategy, made, op_of, value

TP = 2
X, Y, W = Ref("x"), Ref("y"), Ref("w")


def values_for(op):
    shapes = {"x": (4, 6, 8), "y": (4, 6, 8), "w": (12, 8), "left": (4, 10), "right": (6, 10)}
    values = {name: value(name, shape) for name, shape in shapes.items()}
    made(op, values)
    return values


# op, (dim of x, dim of the result or None for a sum) that it must find, and nothing more
CASES = [
    (op_of("aten.cumprod.default", X, 1), {(0, 0), (2, 2)}),
    (op_of("aten.linear.default", X, W), {(0, 0), (1, 1), (2, None)}),
    (op_of("aten.softmax.int", X, -1), {(0, 0), (1, 1)}),
    (op_of("aten.renorm.default", X, 2, 0, 1.0), {(0, 0)}),
    (op_of("aten.cdist.default", Ref("left"), Ref("right")), {(0, 0)}),
    (op_of("aten.sum.default", X), {(0, None), (1, None), (2, None)}),
]


@pytest.mark.parametrize(("op", "wanted"), CASES, ids=[op.target for op, _ in CASES])
def test_finds_what_may_be_divided(op, wanted):
    values = values_for(op)
    found = discovered(op, values, TP)
    first = found.inputs[op.inputs()[0]]
    (out,) = found.outputs
    places = {(k, out.index(n) if n in out else None) for k, n in enumerate(first) if n}
    assert places == wanted


@pytest.mark.parametrize("op", [op for op, _ in CASES], ids=[op.target for op, _ in CASES])
def test_what_it_finds_is_right(op, monkeypatch):
    """Strategies made of discovered names rebuild results and gradients."""
    monkeypatch.setattr("autopar.strategies.choices.spec", lambda op, values: None)
    values = values_for(op)
    found = strategies(op, values, TP, {})
    assert len(found) > 1
    for strategy in found:
        check_strategy(op, strategy, values, TP)


def test_states():
    """A contracted dim makes partial sums, and what is not divided is read with its own share."""
    op = op_of("aten.cdist.default", Ref("left"), Ref("right"))
    known = {s.inputs: s.outputs for s in strategies(op, values_for(op), TP, {})}
    assert known[(("left", shard(0)), ("right", V))] == (shard(0),)
    assert known[(("left", V), ("right", shard(0)))] == (shard(1),)
    assert (P,) not in known.values(), "the root of a sum is no sum of roots"


@pytest.mark.parametrize(
    "op",
    [op_of("aten.rand_like.default", X), op_of("aten.roll.default", X, (1,)),
     op_of("aten.arange.default", 4)],
    ids=lambda op: op.target,
)  # fmt: skip
def test_nothing_to_find(op):
    assert discovered(op, values_for(op), TP) is None


def test_samples_are_a_dim_like_any_other():
    op = op_of("aten.renorm.default", X, 2, 0, 1.0)
    shape = (Size(1, 1), Size(6), Size(8))
    values = {n: Value(n, shape, "float32", requires_grad=True) for n in ("x", "y0")}
    states = {s.outputs[0] for s in strategies(op, values, TP, {})}
    assert states == {R, shard(0)}


def test_is_remembered_by_operation_and_shapes(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args[0].target)
        return run(*args)

    monkeypatch.setattr(discovery, "run", counted)
    discovery._discover.cache_clear()
    first = op_of("aten.cumprod.default", X, 2)
    again = op_of("aten.cumprod.default", Y, 2)
    for op in (first, again):
        assert discovered(op, values_for(op), TP).inputs.keys() == set(op.inputs())
        number = len(calls)
    assert len(calls) == number > 0
    discovered(op_of("aten.cumprod.default", X, 1), values_for(first), TP)
    assert len(calls) > number


def test_too_large_to_try(monkeypatch):
    monkeypatch.setattr(discovery, "MOST_ELEMENTS", 100)
    discovery._discover.cache_clear()
    op = op_of("aten.cumprod.default", X, 0)
    assert discovered(op, values_for(op), TP) is None
    discovery._discover.cache_clear()


def test_leaves_the_generator_as_it_was():
    discovery._discover.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    op = op_of("aten.cumprod.default", X, 2)
    discovered(op, values_for(op), TP)
    assert torch.rand(1) == expected
