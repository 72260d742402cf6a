"""Layers, their signatures, and the context that every stage computes for itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from autopar.trace import trace
from tests.trace.models import WIDTH, Block, Chain, Skips, graph_of, targets


class Scaled(Block):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return self.linear(x) * self.scale


def signatures(graph):
    return [layer.signature for layer in graph.layers if layer.kind == "block"]


def test_equal_blocks_have_equal_signatures():
    assert len(set(signatures(graph_of(Chain(depth=3))))) == 1


def test_hyper_parameters_tell_blocks_apart():
    model = Chain(Scaled, depth=3)
    model.blocks[1].scale = 3.0
    first, second, third = signatures(graph_of(model))
    assert first == third != second


def test_frozen_parameters_tell_blocks_apart():
    model = Chain(depth=2)
    model.blocks[1].linear.weight.requires_grad_(False)
    assert len(set(signatures(graph_of(model)))) == 2


class Masked(nn.Module):
    """Blocks alternate between two tensors that depend on the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Gate() for _ in range(3)])

    def forward(self, x):
        gates = (x > 0).to(x.dtype), (x < 0).to(x.dtype)
        hidden = self.first(x)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, gates[index % 2])
        return hidden


class Gate(Block):
    def forward(self, x, gate):
        return self.linear(x) * gate


def test_context_is_no_layer_and_tells_blocks_apart():
    graph = graph_of(Masked())
    assert [graph.ops[i].target.split(".")[1] for i in graph.context] == ["gt", "to", "lt", "to"]
    first, second, third = signatures(graph)
    assert first == third != second
    assert all(len(layer.inputs) == 2 for layer in graph.layers[1:4])


def test_a_block_that_is_called_twice_is_no_layer():
    class Twice(Chain):
        def forward(self, x):
            x = self.blocks[1](self.blocks[0](self.first(x)))
            return self.blocks[0](x)

    graph = graph_of(Twice())
    names = ["embedding", "(blocks.0#1)", "blocks.1", "(blocks.0#2)", "head"]
    assert [layer.name for layer in graph.layers] == names
    assert [layer.kind for layer in graph.layers[1:4]] == ["run", "block", "run"]
    assert {"blocks.0#1", "blocks.0#2"} <= graph.calls.keys()


def test_a_block_whose_weight_is_read_outside_is_no_layer():
    class Borrowing(Chain):
        def forward(self, x):
            return super().forward(x) + self.blocks[1].linear.bias

    kinds = {layer.name: layer.kind for layer in graph_of(Borrowing()).layers}
    assert kinds["blocks.0"] == "block"
    assert kinds["(blocks.1)"] == "run"


def test_a_counter_that_nothing_reads_counts():
    class Counting(Chain):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.steps += 1
            return super().forward(x)

    graph = graph_of(Counting())
    targets = [graph.ops[i].target for layer in graph.layers for i in layer.ops]
    assert "aten.add_.Tensor" in targets


def test_calls_name_what_remains_of_their_arguments():
    graph = graph_of(Masked())
    gate = graph.calls["blocks.1"].args[1].name
    assert gate in graph.layers[2].inputs


def test_a_connection_over_several_layers():
    first, *blocks, head = graph_of(Skips()).layers
    assert len(first.sent) == 2
    assert set(head.received) == {blocks[-1].sent[0], *(set(first.sent) - first.chained)}
    assert [len(layer.received) for layer in blocks] == [1, 1]


def test_a_model_without_blocks_is_one_layer():
    x = torch.ones(2, WIDTH)
    graph = trace(nn.Linear(WIDTH, WIDTH), (x,), {}, target=x, loss_fn=F.mse_loss)
    assert len(graph.layers) == 1
    assert "linear" in targets(graph)
