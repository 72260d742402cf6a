"""Modules whose shapes or branches depend on values become one operation each."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.errors import TraceError
from autopar.graph import Size
from autopar.trace import trace
from autopar.trace.opaque import OPAQUE, observe

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
    """Returns two tensors, which is more than an operation for a module makes."""

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
    assert [op.args[2] for op in ops] == [f"blocks.{i}.inner" for i in range(5)]
    for op in ops:
        made = graph.values[op.outputs[0]]
        assert made.shape == (Size(1, 1), Size(4), Size(WIDTH))
        assert made.requires_grad
    held = {graph.values[name].source for name in ops[2].inputs()[1:]}
    assert held == {n for n, _ in Model(inner).named_parameters() if n.startswith("blocks.2.inner")}


def test_equal_blocks_are_one_class():
    blocks = [layer for layer in graph_of(Experts).layers if layer.kind == "block"]
    assert len(blocks) == 5
    # The first reads an input that has no gradient.
    assert len({layer.signature for layer in blocks[1:]}) == 1


def test_what_is_observed():
    with torch.device("meta"):
        module = Experts()
    facts = observe(module, [((Size(1, 1), Size(4), Size(WIDTH)), torch.float32)])
    assert facts is not None
    assert facts.shape == (Size(1, 1), Size(4), Size(WIDTH))
    # Of four rows: the gate, and one expert each.
    assert facts.flops == 2 * 4 * WIDTH * (2 + WIDTH)
    # At the least the rows and the weights that each expert was given.
    assert facts.saved_bytes >= 4 * 4 * WIDTH


def test_a_module_that_makes_no_single_tensor_is_no_operation():
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
    with pytest.raises(TraceError) as caught:
        trace(model, (x,), {}, loss_fn=lambda y, _: y.mean())
    assert "depend" in caught.value.hint + caught.value.expected


@pytest.mark.parametrize("inner", [Binary, Mapped])
def test_what_a_trace_would_get_wrong_is_run_whole(inner):
    graph = graph_of(inner)
    assert sum(op.target == OPAQUE for op in graph.ops) == 5


def test_a_backward_outside_of_a_module_is_refused():
    class Straight(Model):
        def forward(self, x):
            return super().forward(Sign.apply(x))

    with pytest.raises(TraceError, match="autograd function Sign") as caught:
        graph_of(nn.Identity, Straight)
    assert "module of its own" in caught.value.hint
