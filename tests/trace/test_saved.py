"""What autograd keeps, op by op, against what a real backward needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopar.graph import Op, Ref, Saved, Size, Value
from autopar.trace import trace
from autopar.trace.saved import RECURRENT, observe_saved, saved_on_cpu, views_of

B = Size(1, 1)
VALUES = {
    "x": Value("x", (B, Size(4), Size(8)), "float32", requires_grad=True),
    "w": Value("w", (Size(8), Size(8)), "float32", "parameter", "w", True),
    "y": Value("y", (B, Size(4), Size(8)), "float32", requires_grad=True),
    "q": Value("q", (B, Size(2), Size(4), Size(8)), "bfloat16", requires_grad=True),
    "o": Value("o", (B, Size(2), Size(4), Size(8)), "bfloat16", requires_grad=True),
    "c": Value("c", (Size(4), Size(8)), "float32"),
    "d": Value("d", (Size(4), Size(8)), "float32"),
}
X, W, Q = Ref("x"), Ref("w"), Ref("q")
CASES = [
    (Op("aten.linear.default", (X, W), {}, ("y",)), {"x", "w"}, 0),
    (Op("aten.exp.default", (X,), {}, ("y",)), {"y"}, 0),
    (Op("aten.gelu.default", (X,), {}, ("y",)), {"x"}, 0),
    (Op("aten.add.Tensor", (X, X), {}, ("y",)), set(), 0),
    (Op("aten.mul.Tensor", (X, Ref("c")), {}, ("y",)), {"c"}, 0),
    # Mean and reciprocal deviation of each of the four rows.
    (Op("aten.layer_norm.default", (X, (8,)), {}, ("y",)), {"x"}, 2 * 4 * 4),
    # One statistic in float32 per head and token.
    (Op("aten.scaled_dot_product_attention.default", (Q, Q, Q), {}, ("o",)), {"q", "o"}, 2 * 4 * 4),
]


@pytest.mark.parametrize(("op", "names", "extra"), CASES, ids=lambda v: getattr(v, "target", ""))
def test_saved(op, names, extra):
    saved = observe_saved(op, VALUES, {})
    assert set(saved.values) == names
    assert (saved.extra_bytes, saved.fixed_bytes) == (extra, 0)


def kept_by(function, *tensors):
    """Bytes of all storages that autograd keeps but for those of ``tensors`` and the result."""
    kept = {}
    own = {t.untyped_storage().data_ptr() for t in tensors}
    hook = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    )
    with hook:
        result = function(*tensors)
    own.add(result.untyped_storage().data_ptr())
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own)


def test_an_attention_whose_bias_learns_keeps_its_scores():
    """torch leaves the fused kernels then."""
    bias = Value("b", (Size(1), Size(2), Size(4), Size(4)), "float32", requires_grad=True)
    values = {
        name: Value(name, (B, Size(2), Size(4), Size(8)), "float32", requires_grad=True)
        for name in "qo"
    }
    op = Op(CASES[-1][0].target, (Q, Q, Q, Ref("b")), {}, ("o",))
    saved = observe_saved(op, {**values, "b": bias}, {})
    q, b = torch.ones(3, 2, 4, 8, requires_grad=True), torch.ones(1, 2, 4, 4, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    wanted = kept_by(lambda q, b: attention(q, q, q, b), q, b)
    assert 3 * saved.extra_bytes + saved.fixed_bytes == wanted > 3 * 2 * 4 * 4 * 4


def test_a_copy_of_a_parameter_does_not_grow_with_the_batch():
    """einsum brings its factors into the order of a product."""
    values = {
        "x": VALUES["x"],
        "w": Value("w", (Size(2), Size(8), Size(3)), "float32", "parameter", "w", True),
        "y": Value("y", (B, Size(4), Size(2), Size(3)), "float32", requires_grad=True),
    }
    op = Op("aten.einsum.default", ("btd,edi->btei", (X, W)), {}, ("y",))
    saved = observe_saved(op, values, {})
    x, w = torch.ones(5, 4, 8, requires_grad=True), torch.ones(2, 8, 3, requires_grad=True)
    wanted = kept_by(lambda x, w: torch.einsum("btd,edi->btei", x, w), x, w)
    assert (saved.extra_bytes, saved.fixed_bytes) == (0, wanted) == (0, 2 * 8 * 3 * 4)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 2)])
def test_a_product_of_a_transposed_tensor_keeps_its_copy(order):
    """``nn.MultiheadAttention`` puts time in front of samples, for instance."""
    values = {
        "x": Value("x", (B, Size(8), Size(8)), "float32", requires_grad=True),
        "v": Value("v", (B, Size(8), Size(8)), "float32", requires_grad=True),
        "w": VALUES["w"],
        "y": Value("y", (B, Size(8), Size(8)), "float32", requires_grad=True),
    }
    permute = Op("aten.permute.default", (X, order), {}, ("v",))
    op = Op("aten.linear.default", (Ref("v"), W), {}, ("y",))
    saved = observe_saved(op, values, views_of([permute, op]))
    x, w = torch.ones(3, 8, 8, requires_grad=True), torch.ones(8, 8, requires_grad=True)
    linear = torch.nn.functional.linear
    wanted = kept_by(lambda x, w: linear(x.permute(order), w), x, w)
    assert 3 * saved.extra_bytes == wanted == (3 * 8 * 8 * 4 if order == (0, 2, 1) else 0)
    assert ("v" in saved.values) == (wanted == 0)


def test_constants_keep_nothing():
    op = Op("aten.exp.default", (Ref("c"),), {}, ("d",))
    assert observe_saved(op, VALUES, {}) == Saved(())


def test_dropout_keeps_its_mask():
    op = Op("aten.dropout.default", (X, 0.1, True), {}, ("y",))
    kept = []
    x = torch.ones(1, 4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        torch.dropout(x, 0.1, True)
    expected = sum(t.numel() * t.element_size() for t in kept)
    saved = observe_saved(op, VALUES, {})
    assert saved.extra_bytes == expected > 0


class Recurrent(nn.Module):
    """Two layers over sequences; the mean of the last results is the loss."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(8, 16, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_keep_what_the_kernels_of_cpus_do(kind):
    """oneDNN's LSTM has a workspace, the cells of the others copies of the inputs."""
    model, x = Recurrent(kind), torch.randn(2, 10, 8)
    graph = trace(model, (x,), {}, target=x, loss_fn=lambda y, _: y.mean())
    here = saved_on_cpu(graph)
    index = next(i for i, op in enumerate(graph.ops) if op.target.split(".")[1] in RECURRENT)
    assert {i for i in graph.saved if here.saved[i] != graph.saved[i]} == {index}
    assert here.saved[index].extra_bytes > graph.saved[index].extra_bytes
    for samples in (1, 2, 8, 32):
        x = torch.randn(samples, 10, 8)
        seen = kept_by(lambda x, *_: model(x), x, *model.parameters())
        saved = here.saved[index].extra_bytes * samples + here.saved[index].fixed_bytes
        assert 0.9 * seen <= saved <= 1.2 * seen, (samples, seen, saved)


def test_nothing_is_run_without_recurrent_layers():
    graph = trace(nn.Linear(8, 8), (torch.randn(2, 8),), {}, loss_fn=lambda y, _: y.mean(),
                  target=torch.zeros(2))  # fmt: skip
    assert saved_on_cpu(graph) is graph
