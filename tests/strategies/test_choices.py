"""The menu of an op: what is movable, covered, and sharded in which blocks."""

from __future__ import annotations

import pytest

from autopar.graph import Ref, Size, Value
from autopar.strategies.choices import (
    Strategy,
    is_covered,
    movable,
    outer_factors,
    strategies,
    uniform,
)
from autopar.strategies.states import P, R, V, shard
from tests.strategies.simulate import op_of, value
from tests.zoo import NAMES, block_of, reduced

X, Y = Ref("x"), Ref("y")


def values(**more):
    known = {name: value(name, (4, 6, 8)) for name in ("x", "y", "y0")}
    return {**known, "c": value("c", (4, 6, 8), learned=False), **more}


def outputs(op, known, tp=2):
    return {s.outputs[0] for s in strategies(op, known, tp, {})}


def test_sums_may_stay_partial_and_products_may_not():
    assert P in outputs(op_of("aten.add.Tensor", X, Y), values())
    assert P in outputs(op_of("aten.neg.default", X), values())
    products = strategies(op_of("aten.mul.Tensor", X, Y), values(), 2, {})
    read = [[state for _, state in s.inputs] for s in products]
    assert [P, V] in read
    assert [P, P] not in read
    assert P not in outputs(op_of("aten.exp.default", X), values())
    assert P not in outputs(op_of("aten.add.Tensor", X, Ref("c")), values())
    assert P not in outputs(op_of("aten.add.Tensor", X, 1.0), values())


def test_groups_that_are_samples_have_no_rule():
    """Weights per sample: the samples are one sample's channels, in as many groups."""
    rows = Value("x", (Size(1), Size(8, 1), Size(4), Size(4)), "float32", "activation",
                 requires_grad=True)  # fmt: skip
    kernels = value("w", (8, 8, 3, 3))
    known = {"x": rows, "w": kernels, "y0": rows}
    arguments = ((1, 1), (1, 1), (1, 1), Size(1, 1))
    op = op_of("aten.conv2d.default", Ref("x"), Ref("w"), None, *arguments)
    assert not is_covered(op, known)


def test_only_even_shards():
    assert outputs(op_of("aten.exp.default", X), values(), tp=3) == {R, shard(1)}
    assert outputs(op_of("aten.exp.default", X), values(), tp=5) == {R}


def test_uniform_leaves_constants_alone():
    op = op_of("aten.mul.Tensor", X, Ref("c"))
    assert uniform(op, values(), V) == Strategy((("x", V), ("c", R)), (V,))
    assert Strategy((("x", V),), (R,)).state_of("x") == V


def test_unknown_ops_run_whole():
    """Random numbers can be found neither in the table nor by running the op on shards."""
    op = op_of("aten.rand_like.default", X)
    assert not is_covered(op, values())
    assert strategies(op, values(), 2, {}) == (Strategy((("x", R),), (R,)),)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_covered_and_have_a_choice(name):
    graph, classes = reduced(name)
    for pattern in classes.patterns.values():
        for index in pattern.ops:
            assert is_covered(graph.ops[index], graph.values), graph.ops[index].target


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_fused_projections_are_sharded_in_three_blocks(name):
    graph, classes = reduced(name)
    ops = [graph.ops[i] for i in classes.patterns[block_of(name)].ops]
    outers = outer_factors(ops, graph.values, 2)
    fused = {
        graph.values[value].source.split(".", 3)[3]
        for (value, _), found in outers.items()
        if (3, 0) in found and graph.values[value].kind == "parameter"
    }
    assert fused == {"attn.c_attn.weight", "attn.c_attn.bias"}


@pytest.mark.parametrize("name", NAMES)
def test_states_change_around_heavy_ops_only(name):
    graph, classes = reduced(name)
    pattern = classes.patterns[block_of(name)]
    found = movable(graph, pattern.ops)
    for index in pattern.ops:
        op = graph.ops[index]
        if op.target in ("aten.linear.default", "aten.matmul.default"):
            assert {*op.inputs(), *op.outputs} <= found | {
                n for n in op.inputs() if not graph.values[n].requires_grad
            } | _behind_views(graph, pattern)
    assert found.issuperset(pattern.received)


def _behind_views(graph, pattern):
    names = ("view", "reshape", "transpose")
    return {
        out
        for i in pattern.ops
        for out in graph.ops[i].outputs
        if graph.ops[i].target.split(".")[1] in names
    }


def test_sizes_with_the_batch_are_divided_along_the_samples():
    known = values(x=value("x", (4, 6, 8)))
    rows = known["x"].__class__("x", (Size(4, 1), Size(6), Size(8)), "float32", requires_grad=True)
    known |= {"x": rows, "y0": rows.__class__("y0", rows.shape, "float32", requires_grad=True)}
    assert outputs(op_of("aten.exp.default", X), known) == {R, shard(0), shard(1), shard(2)}
