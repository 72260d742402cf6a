"""Every entry of the sharding table, and every strategy of three models, checked by running it."""

from __future__ import annotations

import pytest
import torch

from autopar.graph import Op, Ref, Size
from autopar.strategies.rules import _BUILDERS, LINEAR, POINTWISE, REDUCTIONS, RULES, name_of
from autopar.strategies.states import P, R, V, shard
from autopar.strategies.strategy import CROSS_ENTROPY, EMBEDDING, outer_factors, strategies
from autopar.strategies.views import RESHAPES, SPLITS
from tests.strategies.simulate import check_strategy, made, op_of, value
from tests.zoo import NAMES, traced

TP = 2
X, Y, W, B, COND, INDEX = (Ref(name) for name in ("x", "y", "w", "b", "cond", "index"))
SHAPES = {
    "x": (4, 6, 8), "y": (4, 6, 8), "w": (12, 8), "b": (8,), "m": (8, 12), "left": (6, 8),
    "v": (4, 8, 10), "q": (2, 4, 6, 8), "k": (2, 4, 10, 8), "mask": (1, 1, 6, 10),
    "one": (4, 1, 8), "logits": (6, 8), "scale": (4, 6, 1),
}  # fmt: skip
INTEGERS = {"index": (4, 6), "target": (6,)}
Q, K, MASK, LOGITS, TARGET = (Ref(n) for n in ("q", "k", "mask", "logits", "target"))

UNARY = [
    "neg", "exp", "log", "log1p", "tanh", "sigmoid", "relu", "gelu", "silu", "rsqrt", "sqrt",
    "reciprocal", "sin", "cos", "erf", "abs", "sign", "square", "leaky_relu", "elu", "softplus",
    "hardswish", "hardtanh", "mish", "relu6",
]  # fmt: skip
COMPARISONS = ["eq", "ne", "lt", "le", "gt", "ge"]
LOGICAL = ["logical_and", "logical_or", "__and__", "__or__"]
EXAMPLES = {
    **{n: op_of(f"aten.{n}.default", X) for n in UNARY},
    **{n: op_of(f"aten.{n}.Tensor", X, Y) for n in COMPARISONS},
    **{n: op_of(f"aten.{n}.default", COND, COND) for n in LOGICAL[:2]},
    **{n: op_of(f"aten.{n}.Tensor", COND, COND) for n in LOGICAL[2:]},
    **{n: op_of(f"aten.{n}.Tensor", X, Ref("scale")) for n in ("add", "sub", "mul", "div")},
    **{n: op_of(f"aten.{n}.default", X, Y) for n in ("maximum", "minimum")},
    **{n: op_of(f"aten.{n}.default", COND) for n in ("logical_not", "bitwise_not")},
    "pow": op_of("aten.pow.Tensor_Scalar", X, 2),
    "to": op_of("aten.to.dtype", X, "torch.float64"),
    "_to_copy": op_of("aten._to_copy.default", X, dtype="torch.float64"),
    "type_as": op_of("aten.type_as.default", X, Y),
    "where": op_of("aten.where.self", COND, X, B),
    "clamp": op_of("aten.clamp.default", X, 0.7, 1.2),
    "clamp_min": op_of("aten.clamp_min.default", X, 1.0),
    "dropout": op_of("aten.dropout.default", X, 0.0, True),
    "masked_fill": op_of("aten.masked_fill.Scalar", X, COND, 0.0),
    "view": op_of("aten.view.default", X, (4, 6, 4, 2)),
    "reshape": op_of("aten.reshape.default", X, (24, 8)),
    "_unsafe_view": op_of("aten._unsafe_view.default", X, (4, 48)),
    "flatten": op_of("aten.flatten.using_ints", X, 0, 1),
    "unflatten": op_of("aten.unflatten.int", X, 2, (2, 4)),
    "split": op_of("aten.split.Tensor", X, 4, 2, outputs=2),
    "chunk": op_of("aten.chunk.default", X, 2, 2, outputs=2),
    "split_with_sizes": op_of("aten.split_with_sizes.default", X, (4, 4), 2, outputs=2),
    "transpose": op_of("aten.transpose.int", X, 1, -1),
    "t": op_of("aten.t.default", W),
    "permute": op_of("aten.permute.default", X, (2, 0, -2)),
    "unsqueeze": op_of("aten.unsqueeze.default", X, -2),
    "squeeze": op_of("aten.squeeze.dim", Ref("one"), 1),
    "select": op_of("aten.select.int", X, 1, 3),
    "slice": op_of("aten.slice.Tensor", X, 2, 2, 6),
    "cat": op_of("aten.cat.default", (X, Y), -1),
    "softmax": op_of("aten.softmax.int", X, -1),
    "log_softmax": op_of("aten.log_softmax.int", X, -1),
    "cumsum": op_of("aten.cumsum.default", X, 1),
    "pad": op_of("aten.pad.default", X, (0, 2)),
    "expand": op_of("aten.expand.default", Ref("one"), (4, 6, 8)),
    "sum": op_of("aten.sum.dim_IntList", X, (1,), True),
    "mean": op_of("aten.mean.dim", X, (-1,)),
    "amax": op_of("aten.amax.default", X, (1,)),
    "var": op_of("aten.var.correction", X, (2,), correction=0),
    "linear": op_of("aten.linear.default", X, W),
    "mm": op_of("aten.mm.default", Ref("left"), Ref("m")),
    "bmm": op_of("aten.bmm.default", X, Ref("v")),
    "matmul": op_of("aten.matmul.default", X, Ref("m")),
    "layer_norm": op_of("aten.layer_norm.default", X, (8,), B, B),
    "rms_norm": op_of("aten.rms_norm.default", X, (8,), B),
    "scaled_dot_product_attention": op_of(
        "aten.scaled_dot_product_attention.default", Q, K, K, MASK
    ),
    "embedding": op_of(EMBEDDING, W, INDEX),
    "cross_entropy_loss": op_of(CROSS_ENTROPY, LOGITS, TARGET),
}
# Further calls of the same operations, where the arguments change what may be split.
VARIANTS = {
    "add of a constant": op_of("aten.add.Tensor", X, Ref("fixed")),
    "sub of a constant": op_of("aten.sub.Tensor", Ref("fixed"), X),
    "add with alpha": op_of("aten.add.Tensor", X, Y, alpha=3),
    "layer_norm of two dims": op_of("aten.layer_norm.default", X, (6, 8)),
    "layer_norm of two dims, weighted": op_of("aten.layer_norm.default", X, (6, 8), Ref("wide")),
    "rms_norm of two dims": op_of("aten.rms_norm.default", X, (6, 8)),
    "squeeze of everything": op_of("aten.squeeze.default", Ref("one")),
    "squeeze of two dims": op_of("aten.squeeze.dims", Ref("one"), (0, 1)),
    "sum of everything": op_of("aten.sum.default", X),
    "mean of two dims": op_of("aten.mean.dim", X, (0, 1), True),
    "matmul of two batches": op_of("aten.matmul.default", Ref("q"), Ref("v8")),
    "unequal split": op_of("aten.split_with_sizes.default", X, (2, 6), 2, outputs=2),
    "unequal chunk": op_of("aten.split.Tensor", X, 4, 1, outputs=2),
    "strided slice": op_of("aten.slice.Tensor", X, 2, 0, 8, 2),
    "grouped queries": op_of(
        "aten.scaled_dot_product_attention.default", Q, Ref("kv"), Ref("kv"), enable_gqa=True
    ),
    "padded lookup": op_of(EMBEDDING, W, INDEX, 3),
    "scaled lookup": op_of(EMBEDDING, W, INDEX, -1, True),
    "summed loss": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 2),
    "smoothed loss": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 1, -100, 0.1),
    "ignored target": op_of(CROSS_ENTROPY, LOGITS, TARGET, None, 1, 3),
    "loss of probabilities": op_of(CROSS_ENTROPY, LOGITS, Ref("probabilities")),
}
MORE = {"wide": (6, 8), "v8": (4, 8, 6), "kv": (2, 2, 6, 8), "probabilities": (6, 8)}


def values_for(op: Op) -> dict:
    """The inputs of an example, and what it makes of them."""
    values = {name: value(name, shape) for name, shape in {**SHAPES, **MORE}.items()}
    values |= {name: value(name, shape, "int64") for name, shape in INTEGERS.items()}
    values["cond"] = value("cond", (4, 6, 8), "bool")
    values["fixed"] = value("fixed", (4, 6, 8), "float32", learned=False)
    made(op, values)
    return values


def check(op: Op, values: dict, outers: dict | None = None) -> int:
    found = strategies(op, values, TP, outers or outer_factors([op], values, TP))
    for strategy in found:
        check_strategy(op, strategy, values, TP)
    return len(found)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_every_entry_has_an_example():
    table = {target.split(".")[1] for target in RULES} | POINTWISE | LINEAR | REDUCTIONS.keys()
    table |= _BUILDERS.keys() | RESHAPES | SPLITS | {"embedding", "cross_entropy_loss"}
    assert table == EXAMPLES.keys()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_entry(name):
    op = EXAMPLES[name]
    assert name_of(op) == name
    # Besides the replicated one there must be a strategy that does divide the work.
    assert check(op, values_for(op)) > 1


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant(name):
    check(VARIANTS[name], values_for(VARIANTS[name]))


@pytest.mark.parametrize("model", NAMES)
def test_every_strategy_of_a_model(model):
    graph = traced(model)
    outers = outer_factors(list(graph.ops), graph.values, TP)
    count, seen = 0, set()
    for op in graph.ops:
        tensors = [graph.values[n] for n in (*op.inputs(), *op.outputs)]
        described = [(v.shape, v.dtype, v.requires_grad) for v in tensors]
        dims = [(v.name, dim) for v in tensors for dim in range(len(v.shape))]
        factors = [sorted(outers.get(key, [])) for key in dims]
        plain = [a for a in op.args if not isinstance(a, Ref)]
        key = repr((op.target, described, factors, plain, op.kwargs))
        if key not in seen:
            seen.add(key)
            count += check(op, graph.values, outers)
    assert count > 80


def test_the_classic_strategies_are_there():
    """Column and row parallel products, vocabulary parallel lookup and loss."""
    expected = {
        "linear": [(("x", V), ("w", shard(0))), (("x", shard(2)), ("w", shard(1)))],
        "embedding": [(("w", shard(0)), ("index", R))],
        "cross_entropy_loss": [(("logits", shard(1)), ("target", R))],
    }
    results = {"linear": [(shard(2),), (P,)], "embedding": [(P,)], "cross_entropy_loss": [(R,)]}
    for name, wanted in expected.items():
        op = EXAMPLES[name]
        found = {s.inputs: s.outputs for s in strategies(op, values_for(op), TP, {})}
        assert [found[inputs] for inputs in wanted] == results[name]


def test_a_wrong_rule_is_noticed(monkeypatch):
    """The check is not vacuous: a softmax along a divided dim, or a bias in partial sums, fails."""
    wrong = {"aten.softmax.int": "... k -> ... k", "aten.exp.default": "m n k -> m n k"}
    for target, rule in wrong.items():
        monkeypatch.setitem(RULES, target, rule)
    softmax = EXAMPLES["softmax"]
    with pytest.raises(AssertionError):
        check(softmax, values_for(softmax))
    exp = EXAMPLES["exp"]
    assert check(exp, values_for(exp)) == 4


def test_the_batch_is_never_divided():
    op = op_of("aten.exp.default", X)
    values = values_for(op)
    for name in ("x", "y0"):
        shape = (Size(2, 1), *values[name].shape[1:])
        values[name] = value(name, (2, 6, 8)).__class__(name, shape, "float32", requires_grad=True)
    states = {s.outputs[0] for s in strategies(op, values, TP, {})}
    assert states == {R, shard(1), shard(2)}
