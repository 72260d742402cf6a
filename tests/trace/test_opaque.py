"""Modules whose shapes or branches depend on values become one operation each."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.errors import TraceError
from autopar.graph import Ref, Size
from autopar.trace import trace
from autopar.trace.observe import observe
from autopar.trace.opaque import OPAQUE, OpaqueCall

WIDTH = 8


class Experts(nn.Module):
    """Each expert sees the rows that were sent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 2, bias=False)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        weights = self.gate(rows).softmax(-1)
        results = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            index = torch.where(weights.argmax(-1) == i)[0]
            results[index] += weights[index, i, None] * expert(rows[index])
        return results.view_as(x)


class Branching(nn.Module):
    """Chooses by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x * self.linear.weight.sum()


class Sign(torch.autograd.Function):
    """The sign, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(nn.Module):
    """Calls a function that has a backward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return Sign.apply(x)


class Mapped(nn.Module):
    """Maps a function over samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: row - row.mean())(x)


class Twice(nn.Module):
    """Returns a tensor whose size depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Branching()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x).nonzero(), x


class Block(nn.Module):
    def __init__(self, inner: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), inner()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Model(nn.Module):
    def __init__(self, inner: type[nn.Module], layers: int = 5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(inner) for _ in range(layers)])
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def graph_of(inner, outer=Model):
    with torch.device("meta"):
        model, x = outer(inner), torch.zeros(2, 4, WIDTH)
        target = torch.zeros(2, 4, dtype=torch.long)
    return trace(model, (x,), {}, target=target, loss_fn=lambda y, t: F.cross_entropy(
        y.flatten(0, 1), t.flatten()))  # fmt: skip


@pytest.mark.parametrize("inner", [Experts, Branching])
def test_the_innermost_module_becomes_one_operation(inner):
    graph = graph_of(inner)
    ops = [op for op in graph.ops if op.target == OPAQUE]
    assert [op.args[0] for op in ops] == [f"blocks.{i}.inner" for i in range(5)]
    for op in ops:
        made = graph.values[op.outputs[0]]
        assert made.shape == (Size(1, 1), Size(4), Size(WIDTH))
        assert made.requires_grad
    held = {graph.values[ref.name].source for ref in OpaqueCall.of(ops[2]).held}
    assert held == {n for n, _ in Model(inner).named_parameters() if n.startswith("blocks.2.inner")}


def test_equal_blocks_are_one_class():
    blocks = [layer for layer in graph_of(Experts).layers if layer.kind == "block"]
    assert len(blocks) == 5
    # The first reads an input that has no gradient.
    assert len({layer.signature for layer in blocks[1:]}) == 1


def test_what_is_observed():
    with torch.device("meta"):
        module = Experts()
    x = (Size(1, 1), Size(4), Size(WIDTH)), torch.float32
    facts = observe(module, ((Ref("0"),), {}), [x])
    assert facts is not None
    assert facts.made == (x,)
    assert facts.learned == (True,)
    assert not facts.mixes
    # Of four rows: the gate, and one expert each.
    assert facts.flops == 2 * 4 * WIDTH * (2 + WIDTH)
    # At the least the rows and the weights that each expert was given.
    assert facts.saved_bytes >= 4 * 4 * WIDTH


def test_a_module_whose_sizes_depend_on_values_is_no_operation():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = Twice()
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            where, x = self.twice(x)
            return self.head(x) * where.shape[0]

    with torch.device("meta"):
        model, x = Outer(), torch.zeros(2, WIDTH)
    graph = trace(model, (x,), {}, loss_fn=lambda y, _: y.mean())
    (call,) = [OpaqueCall.of(op) for op in graph.ops if op.target == OPAQUE]
    assert call.path == ""  # what is around it can be run
    assert call.mixes  # how many values there are depends on all samples


class Returned(NamedTuple):
    hidden: Tensor
    scores: dict[str, Tensor]


class Nested(nn.Module):
    """Takes keywords and nests, returns a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *, more: Any, flag: bool = True) -> Returned:
        y = self.linear(more["y"]) if bool(x.sum() > 0) == flag else more["y"] * x
        return Returned(y, {"best": y.argmax(-1), "mean": y.mean()})


class AroundNested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nested = Nested()

    def forward(self, x: Tensor) -> Tensor:
        made = self.nested(x, more={"y": 2 * x, "z": None}, flag=False)
        return made.hidden + made.scores["mean"]


def test_keywords_and_nests():
    graph = graph_of(AroundNested)
    op = next(op for op in graph.ops if op.target == OPAQUE)
    call = OpaqueCall.of(op)
    assert call.kwargs["flag"] is False
    assert call.kwargs["more"]["z"] is None
    assert call.tensors() == (call.args[0].name, call.kwargs["more"]["y"].name)
    assert call.results == (0, {'["best"]': 1, '["mean"]': 2})
    made = [graph.values[name] for name in op.outputs]
    assert [value.shape for value in made] == [
        (Size(1, 1), Size(4), Size(WIDTH)), (Size(1, 1), Size(4)), ()
    ]  # fmt: skip
    assert [value.requires_grad for value in made] == [True, False, True]
    assert not call.mixes


def test_a_function_without_shapes_is_run_whole():
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(3)])
    target = torch.ones(2, 3, dtype=torch.long), torch.full((2,), 4), torch.full((2,), 3)
    graph = trace(
        model, (torch.zeros(2, 4, WIDTH),), {}, target=target,
        loss_fn=lambda y, t: F.ctc_loss(y.log_softmax(-1).transpose(0, 1), *t, reduction="sum"),
    )  # fmt: skip
    call = OpaqueCall.of(next(op for op in graph.ops if op.target == OPAQUE))
    assert call.path == "function torch.nn.functional.ctc_loss"
    assert call.kwargs["reduction"] == "sum"
    assert not call.mixes


def test_what_is_asked_before_a_function_is_run_whole_is_no_size():
    """The question whether a variance is negative stays in the exported graph, unread."""

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return F.gaussian_nll_loss(y, target, F.softplus(y))

    graph = trace(nn.Linear(WIDTH, WIDTH), (torch.zeros(2, WIDTH),), {},
                  target=torch.zeros(2, WIDTH), loss_fn=loss)  # fmt: skip
    call = OpaqueCall.of(next(op for op in graph.ops if op.target == OPAQUE))
    assert call.path == "function torch.nn.functional.gaussian_nll_loss"
    assert not call.mixes


def seen(module, *shapes):
    described = [(shape, torch.float32) for shape in shapes]
    args = tuple(Ref(str(k)) for k in range(len(shapes)))
    return observe(module, (args, {}), described)


ROWS = (Size(1, 1), Size(WIDTH))


def test_what_mixes_samples_shows():
    assert seen(torch.sigmoid, ROWS).mixes is False
    assert seen(lambda x: x.mean(), ROWS).mixes is False
    assert seen(F.dropout, ROWS).mixes is False  # by chance alone
    assert seen(lambda x: x.softmax(0), ROWS).mixes is True
    assert seen(lambda x: x.std(), ROWS).mixes is True


def test_what_checks_its_arguments_is_drawn_others():
    variances = seen(F.gaussian_nll_loss, ROWS, ROWS, ROWS)  # negative ones raise
    assert variances.made == (((), torch.float32),)
    assert variances.learned == (True,)


def test_what_cannot_be_run_alone():
    assert seen(torch.nonzero, ROWS) is None  # as many rows as there are values
    assert seen(lambda x: x.relu_(), ROWS) is None  # the caller's tensor would change
    assert seen(lambda x: {1, 2}, ROWS) is None


class Derived(nn.Module):
    """Takes a derivative in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x.requires_grad = True
        y = torch.tanh(self.linear(x))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return (
            slope
            / torch.nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=False
            ).batch_sizes.max()
        )


def test_the_whole_model_may_be_one_operation():
    inputs = torch.zeros(2, 4, WIDTH), torch.ones(2, dtype=torch.long)
    graph = trace(Derived(), inputs, {}, loss_fn=lambda y, _: y.square().mean())
    call = OpaqueCall.of(next(op for op in graph.ops if op.target == OPAQUE))
    assert (call.path, call.learned) == ("", (True,))
    assert call.flops > 0
    assert call.mixes  # the batch sizes of what is packed


@pytest.mark.parametrize("inner", [Binary, Mapped])
def test_what_a_trace_would_get_wrong_is_run_whole(inner):
    graph = graph_of(inner)
    assert sum(op.target == OPAQUE for op in graph.ops) == 5


def test_a_backward_outside_of_a_module_leaves_the_whole_model(caplog):
    class Straight(Model):
        def forward(self, x):
            return super().forward(Sign.apply(x))

    with caplog.at_level("INFO", "autopar.trace"):
        graph = graph_of(nn.Identity, Straight)
    assert [OpaqueCall.of(op).path for op in graph.ops if op.target == OPAQUE] == [""]
    assert "autograd function Sign" in caplog.text


def test_a_backward_in_the_loss_is_refused():
    def loss(y: Tensor, _: Any) -> Tensor:
        return Sign.apply(y).mean()

    with pytest.raises(TraceError, match="autograd function Sign") as caught:
        trace(nn.Linear(WIDTH, WIDTH), (torch.zeros(2, WIDTH),), {}, loss_fn=loss)
    assert "module of its own" in caught.value.hint
