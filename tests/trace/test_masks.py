"""Masks that turn out to be causal or empty are replaced; all others are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from autopar.graph import Op, Ref, Size, Value
from autopar.trace.interpret import run
from autopar.trace.masks import ATTENTION, simplify_masks
from autopar.trace.simplify import renamed

T = 6
SQUARE = (Size(T), Size(T))
QUERY = (Size(1, 1), Size(2), Size(T), Size(4))


def ops_with(mask_ops, dtype="bool"):
    values = {name: Value(name, QUERY, "float32") for name in "qkvy"}
    for op in mask_ops:
        values[op.outputs[0]] = Value(op.outputs[0], SQUARE, dtype)
    values["ones"] = Value("ones", SQUARE, "bool")
    values["given"] = Value("given", SQUARE, "bool", "input", "args.1")
    last = mask_ops[-1].outputs[0] if mask_ops else "given"
    attention = Op(ATTENTION, (Ref("q"), Ref("k"), Ref("v"), Ref(last), 0.0), {}, ("y",))
    return [*mask_ops, attention], values


def ones(dtype="torch.bool"):
    return Op("aten.ones.default", (SQUARE,), {"dtype": dtype}, ("ones",))


def triangle(diagonal=0):
    return [ones(), Op("aten.tril.default", (Ref("ones"), diagonal), {}, ("mask",))]


def additive(hidden):
    return [
        *triangle(),
        Op("aten.where.ScalarOther", (Ref("mask"), Ref("zero"), hidden), {}, ("bias",)),
    ]


def test_causal_mask():
    ops, values = ops_with(triangle())
    found, _ = simplify_masks(ops, values)
    assert found[-1].args == (Ref("q"), Ref("k"), Ref("v"), None, 0.0)
    assert found[-1].kwargs == {"is_causal": True}
    env = {}
    for op in found[:-1]:
        env.update(zip(op.outputs, run(op, env, 1, "cpu"), strict=True))
    assert torch.equal(env["mask"], torch.ones(T, T, dtype=torch.bool).tril())


def test_full_mask_is_dropped():
    ops, values = ops_with([ones()])
    attention = simplify_masks(ops, values)[0][-1]
    assert attention.args[3] is None
    assert attention.kwargs == {}


@pytest.mark.parametrize("diagonal", [-1, 1])
def test_other_triangles_are_kept(diagonal):
    ops, values = ops_with(triangle(diagonal))
    assert simplify_masks(ops, values) == (ops, set())


def test_mask_of_the_user_is_kept():
    ops, values = ops_with([])
    assert simplify_masks(ops, values) == (ops, set())


@pytest.mark.parametrize(("hidden", "causal"), [(float("-inf"), True), (-1e4, False)])
def test_additive_mask(hidden, causal):
    zero = Op("aten.zeros.default", ((),), {}, ("zero",))
    ops, values = ops_with([zero, *additive(hidden)], "float32")
    attention = simplify_masks(ops, values)[0][-1]
    assert attention.kwargs == ({"is_causal": True} if causal else {})


def test_equal_masks_are_computed_once(monkeypatch):
    """Blocks that make their masks themselves: what is equal but for names is run once."""
    ops, values = ops_with(triangle())
    for k in range(3):  # three more of the first, and one that is whole
        names = {"ones": f"ones{k}", "mask": f"mask{k}", "y": f"y{k}"}
        values |= {new: replace(values[old], name=new) for old, new in names.items()}
        ops += [
            replace(renamed(op, names), outputs=tuple(names[out] for out in op.outputs))
            for op in ops_with(triangle(k // 2 * T))[0]
        ]
    runs = []
    monkeypatch.setattr(
        "autopar.trace.masks.run", lambda op, *a, **k: runs.append(op) or run(op, *a, **k)
    )
    attention = [op for op in simplify_masks(ops, values)[0] if op.target == ATTENTION]
    assert [op.kwargs for op in attention] == [{"is_causal": True}] * 3 + [{}]
    assert [op.args[3] for op in attention] == [None] * 4
    assert len(runs) == 4
