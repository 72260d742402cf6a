"""Each op as the expression that a person would write, and that it computes the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autopar.emit.source import Namer, Writer, dimension, group, literal
from autopar.graph import Op, Ref, Size
from autopar.strategies.rules import POINTWISE
from autopar.trace.interpret import run
from tests.strategies.simulate import draw, made, op_of, value
from tests.strategies.test_rules_by_discovery import EXAMPLES
from tests.strategies.test_rules_by_discovery import values_for as table_values

X, Y, W, C, N, Q = (Ref(name) for name in ("x", "y", "w", "c", "n", "q"))
SHAPES = {
    "x": (2, 4, 8),
    "y": (2, 4, 8),
    "w": (6, 8),
    "v": (8,),
    "q": (2, 4, 6, 8),
    "m": (8, 6),
    "i": (2, 8, 7, 7),
    "k": (8, 8, 3, 3),
    "d": (8, 1, 3, 3),
}
V, M, IMAGE, K, D = (Ref(name) for name in ("v", "m", "i", "k", "d"))
SDPA = "aten.scaled_dot_product_attention.default"
LOSS = "aten.cross_entropy_loss.default"
LOGITS, TARGET = Ref("w"), Ref("t")
CASES = [
    (op_of("aten.add.Tensor", X, Y), "x + y"),
    (op_of("aten.mul.Tensor", X, 2.5), "x * 2.5"),
    (op_of("aten.matmul.default", X, M), "x @ m"),
    (op_of("aten.eq.Scalar", N, 0), "n == 0"),
    (op_of("aten.add.Tensor", X, Y, alpha=2), "x.add(y, alpha=2)"),
    (op_of("aten.rsub.Scalar", X, 1.0), "1.0 - x"),
    (op_of("aten.linear.default", X, W), "F.linear(x, w)"),
    (op_of("aten.layer_norm.default", X, (8,), V, V, 1e-05, False),
     "F.layer_norm(x, (8,), v, v, 1e-05)"),
    (op_of("aten.rms_norm.default", X, (8,), V), "F.rms_norm(x, (8,), v)"),
    (op_of("aten.gelu.default", X), "F.gelu(x)"),
    (op_of("aten.gelu.default", X, approximate="tanh"), 'F.gelu(x, approximate="tanh")'),
    (op_of("aten.silu.default", X), "F.silu(x)"),
    (op_of("aten.softmax.int", X, -1), "F.softmax(x, -1)"),
    (op_of("aten.softmax.int", X, -1, "torch.float32"), "F.softmax(x, -1, dtype=torch.float32)"),
    (op_of("aten.log_softmax.int", X, 1), "F.log_softmax(x, 1)"),
    (op_of("aten.elu.default", X, 0.5), "F.elu(x, 0.5)"),
    (op_of("aten.elu.default", X, 0.5, 2.0), "torch.ops.aten.elu.default(x, 0.5, 2.0)"),
    (op_of("aten.hardtanh.default", X, 0.0, 1.0), "F.hardtanh(x, 0.0, 1.0)"),
    (op_of("aten.leaky_relu.default", X, 0.1), "F.leaky_relu(x, 0.1)"),
    (op_of("aten.pad.default", N, (0, 1), "constant", 7.0), "F.pad(n, (0, 1), value=7.0)"),
    (op_of("aten.view.default", X, (Size(1, 1), 32)), "x.reshape(2, 32)"),
    (op_of("aten.expand.default", V, (2, 4, 8)), "v.expand(2, 4, -1)"),
    (op_of("aten.transpose.int", X, 1, 2), "x.transpose(1, 2)"),
    (op_of("aten.permute.default", X, (2, 0, 1)), "x.permute((2, 0, 1))"),
    (op_of("aten.unsqueeze.default", X, 0), "x.unsqueeze(0)"),
    (op_of("aten.slice.Tensor", X, 2, 4, 2**63 - 1), "x[..., 4:]"),
    (op_of("aten.slice.Tensor", X, 1, 0, 2), "x[:, :2]"),
    (op_of("aten.slice.Tensor", X, 2, 0, 8, 2), "x[..., :8:2]"),
    (op_of("aten.slice.Tensor", V, 0, 1, 3), "v[1:3]"),
    (op_of("aten.select.int", X, 1, 3), "x[:, 3]"),
    (op_of("aten.select.int", X, -1, 0), "x[..., 0]"),
    (op_of("aten.select.int", X, 0, 1), "x[1]"),
    (op_of("aten.index.Tensor", V, (N,)), "v[n]"),
    (op_of("aten.split.Tensor", X, 4, 2, outputs=2), "x.split(4, dim=2)"),
    (op_of("aten.chunk.default", X, 2, -1, outputs=2), "x.split(4, dim=-1)"),
    (op_of("aten.split_with_sizes.default", X, (4, 4), 2, outputs=2), "x.split(4, dim=2)"),
    (op_of("aten.split_with_sizes.default", X, (2, 6), 2, outputs=2), "x.split((2, 6), dim=2)"),
    (op_of("aten.cat.default", (X, Y), -1), "torch.cat((x, y), dim=-1)"),
    (op_of("aten.stack.default", (X, Y)), "torch.stack((x, y))"),
    (op_of("aten.to.dtype", X, "torch.float64"), "x.to(torch.float64)"),
    (op_of("aten._to_copy.default", X, dtype="torch.int64"), "x.to(torch.int64)"),
    (op_of("aten.where.self", C, X, Y), "torch.where(c, x, y)"),
    (op_of("aten.masked_fill.Scalar", X, C, float("-inf")), 'x.masked_fill(c, float("-inf"))'),
    (op_of("aten.mean.dim", X, (-1,), True), "x.mean(-1, keepdim=True)"),
    (op_of("aten.sum.dim_IntList", X, (0, 2)), "x.sum((0, 2))"),
    (op_of("aten.mean.default", X), "x.mean()"),
    (op_of("aten.pow.Tensor_Scalar", X, 2), "x.pow(2)"),
    (op_of("aten.neg.default", X), "-x"),
    (op_of("aten.embedding.default", W, N), "F.embedding(n, w)"),
    (op_of("aten.embedding.default", W, N, 3), "F.embedding(n, w, padding_idx=3)"),
    (op_of(SDPA, Q, Q, Q, None, 0.0, True),
     "F.scaled_dot_product_attention(q, q, q, is_causal=True)"),
    (op_of(SDPA, Q, Q, Q, scale=0.5), "F.scaled_dot_product_attention(q, q, q, scale=0.5)"),
    (op_of(SDPA, Q, Q, Q), "F.scaled_dot_product_attention(q, q, q)"),
    (op_of(LOSS, LOGITS, TARGET), "F.cross_entropy(w, t)"),
    (op_of(LOSS, LOGITS, TARGET, None, 2, 3),
     'F.cross_entropy(w, t, reduction="sum", ignore_index=3)'),
    (op_of(LOSS, LOGITS, TARGET, None, 1, -100, 0.1), "F.cross_entropy(w, t, label_smoothing=0.1)"),
    (op_of("aten.conv2d.default", IMAGE, K, V, (2, 2), (1, 1)),
     "F.conv2d(i, k, v, stride=2, padding=1)"),
    (op_of("aten.conv2d.default", IMAGE, K, None, (1, 2)), "F.conv2d(i, k, stride=(1, 2))"),
    (op_of("aten.conv2d.padding", IMAGE, K, None, (1, 1), "same"),
     'F.conv2d(i, k, padding="same")'),
    (op_of("aten.conv2d.default", IMAGE, D, None, (1, 1), (0, 0), (1, 1), 8),
     "F.conv2d(i, d, groups=8)"),
    (op_of("aten.max_pool2d.default", IMAGE, (3, 3), (2, 2)), "F.max_pool2d(i, 3, 2)"),
    (op_of("aten.max_pool2d.default", IMAGE, (2, 2)), "F.max_pool2d(i, 2)"),
    (op_of("aten.avg_pool2d.default", IMAGE, (2, 2), (1, 1)), "F.avg_pool2d(i, 2, 1)"),
    (op_of("aten.adaptive_avg_pool2d.default", IMAGE, (6, 6)), "F.adaptive_avg_pool2d(i, 6)"),
    (op_of("aten.group_norm.default", IMAGE, 4, V, V, 1e-5, False), "F.group_norm(i, 4, v, v)"),
    (op_of("aten.upsample_nearest2d.vec", IMAGE, None, (2.0, 2.0)),
     'F.interpolate(i, scale_factor=2.0, mode="nearest")'),
    (op_of("aten.upsample_bilinear2d.vec", IMAGE, (8, 9), True, None),
     'F.interpolate(i, size=(8, 9), mode="bilinear", align_corners=True)'),
    (op_of("aten.einsum.default", "bij,bkj->bik", (X, Y)),
     'torch.einsum("bij,bkj->bik", x, y)'),
    (op_of("aten.mse_loss.default", X, Y), "F.mse_loss(x, y)"),
    (op_of("aten.mse_loss.default", X, Y, 2), 'F.mse_loss(x, y, reduction="sum")'),
    (op_of("aten.huber_loss.default", X, Y, 1, 0.5), "F.huber_loss(x, y, delta=0.5)"),
    # torch.hinge_embedding_loss and the like take no mean where the operator does
    (op_of("aten.hinge_embedding_loss.default", X, Y), "F.hinge_embedding_loss(x, y)"),
    (op_of("aten.margin_ranking_loss.default", X, Y, X, 0.5),
     "F.margin_ranking_loss(x, y, x, 0.5)"),
    (op_of("aten.cosine_embedding_loss.default", W, W, TARGET, 0.1, 2),
     'F.cosine_embedding_loss(w, w, t, 0.1, reduction="sum")'),
    (op_of("aten.triplet_margin_loss.default", X, Y, X, 0.5, 2.0, 1e-5, True),
     "F.triplet_margin_loss(x, y, x, 0.5, 2.0, 1e-05, True)"),
    (op_of("aten.log_sigmoid.default", X), "F.logsigmoid(x)"),
    (op_of("aten.topk.default", X, 2, outputs=2), "x.topk(2)"),
    (op_of("aten.roll.default", X, (1,), (1,)), "x.roll((1,), (1,))"),
    (op_of("aten.unbind.int", X, 1, outputs=4), "x.unbind(1)"),
    (op_of("aten.floor_divide.default", N, 2), "n // 2"),
    (op_of("aten.one_hot.default", N, 6), "F.one_hot(n, 6)"),
    (op_of("aten.arange.default", 16), "torch.arange(16, device=DEVICE)"),
    (op_of("aten.ones.default", (3, 3), dtype="torch.bool"),
     "torch.ones((3, 3), dtype=torch.bool, device=DEVICE)"),
    (op_of("aten.full.default", (2, 2), 0.5), "torch.full((2, 2), 0.5, device=DEVICE)"),
]  # fmt: skip


def values_for(op: Op) -> dict:
    values = {name: value(name, shape) for name, shape in SHAPES.items()}
    values |= {"n": value("n", (2, 4), "int64"), "t": value("t", (6,), "int64")}
    values["c"] = value("c", (2, 4, 8), "bool")
    made(op, values)
    return values


def test_pointwise_ops_are_never_written_as_operators_of_the_dispatcher():
    for name in sorted(POINTWISE):
        op = EXAMPLES[name]
        values = {n: value(n, (4, 6, 8)) for n in ("x", "y", "b", "cond", "scale")}
        values["y0"] = value("y0", (4, 6, 8))
        values |= {n: value(n, (4, 6), "int64") for n in ("index",)}
        assert "torch.ops" not in writer(values).expression(op), name


def test_every_entry_of_the_table_is_written_without_the_dispatcher():
    for name, op in EXAMPLES.items():
        text = writer(table_values(op)).expression(op)
        assert "torch.ops" not in text, (name, text)


def test_norms_with_running_statistics_follow_the_mode_of_the_module():
    op = EXAMPLES["batch_norm"]
    assert writer(table_values(op)).expression(op) == (
        "F.batch_norm(image, weight=channels, bias=channels, running_mean=mean,"
        " running_var=variance, training=self.training)"
    )


def writer(values: dict) -> Writer:
    shape = lambda name: tuple(str(s.at(2)) for s in values[name].shape)  # noqa: E731
    return Writer(values, lambda name: name, shape)


@pytest.mark.parametrize(("op", "text"), CASES, ids=[text for _, text in CASES])
def test_expression(op, text):
    assert writer(values_for(op)).expression(op) == text


@pytest.mark.parametrize(("op", "text"), CASES, ids=[text for _, text in CASES])
def test_expression_computes_what_the_op_does(op, text):
    torch.manual_seed(0)
    values = values_for(op)
    env = {name: draw([s.at(2) for s in v.shape], v.dtype, 6) for name, v in values.items()}
    expected = run(op, env, 2, "cpu")
    space = {**env, "torch": torch, "F": F, "DEVICE": torch.device("cpu")}
    found = eval(text, space)
    found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
    for theirs, ours in zip(expected, found, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_dropout_follows_the_mode_of_the_module():
    op = op_of("aten.dropout.default", X, 0.1, True)
    assert writer(values_for(op)).expression(op) == "F.dropout(x, 0.1, training=self.training)"
    op = op_of(SDPA, Q, Q, Q, None, 0.1, True)
    text = writer(values_for(op)).expression(op)
    assert text.endswith("is_causal=True, dropout_p=0.1 if self.training else 0.0)")


def test_names():
    namer = Namer(("self", "x"))
    assert [namer.fresh("x"), namer.fresh("x"), namer.fresh("lambda")] == ["x_2", "x_3", "lambda_"]
    assert namer.bind("linear_1", "0") == "0_" or namer.names["linear_1"].isidentifier()


def test_dimensions():
    assert [dimension(Size(1, 1)), dimension(Size(4, 1)), dimension(Size(5))] == [
        "MICROBATCH", "MICROBATCH * 4", "5",
    ]  # fmt: skip
    assert dimension(Size(12), (1, 0)) == "12 // TP"
    assert dimension(Size(12, 1), (1, 1)) == "MICROBATCH * (12 // TP)"
    assert dimension(Size(1, 1), (1, 0)) == "MICROBATCH // TP"
    assert dimension(Size(12, 1), (1, 0)) == "MICROBATCH // TP * 12"


@pytest.mark.parametrize(
    ("text", "grouped"),
    [("x", "x"), ("f(x, y)", "f(x, y)"), ("x + y", "(x + y)"), ("-x", "(-x)"), ("x[1]", "x[1]")],
)
def test_operands(text, grouped):
    assert group(text) == grouped


def test_literals():
    name = str.upper
    assert literal((1, None, Ref("x")), name) == "(1, None, X)"
    assert literal((2,), name) == "(2,)"
    assert literal("mean", name) == '"mean"'
    assert literal("torch.float32", name) == "torch.float32"
