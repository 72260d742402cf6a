"""Buffers are memory, whether anything reads them or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import autopar
from autopar.trace import trace

ROWS, WIDTH, LAYERS = 4, 8, 4


class Block(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("unread", torch.zeros(1000, dtype=torch.int16))
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x) * self.scale + self.table


class Model(nn.Module):
    def __init__(self, *, buffers: bool = True) -> None:
        super().__init__()
        table = torch.ones(WIDTH)
        self.layers = nn.ModuleList(Block(table) for _ in range(LAYERS))
        self.register_buffer("wide", torch.zeros(500))
        if not buffers:
            for module in self.modules():
                for name in ("unread", "wide"):
                    module._buffers.pop(name, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Skipping(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x))


def test_every_buffer_is_of_one_block_or_of_the_model():
    x, target = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    graph = trace(Model(), (x,), {}, target=target, loss_fn=nn.MSELoss())
    held = {layer.name: layer.buffer_bytes for layer in graph.layers}
    blocks = [name for name in held if name.startswith("layers.")]
    assert len(blocks) == LAYERS
    assert {held[name] for name in blocks} == {4 * WIDTH + 2 * 1000}
    assert graph.buffer_bytes == 4 * WIDTH + 4 * 500, "the shared table once, and the model's own"
    assert sum(held.values()) == LAYERS * held[blocks[0]]


def test_parameters_that_nothing_reads_are_held_like_buffers():
    model = Skipping()
    model.token = nn.Parameter(torch.zeros(WIDTH))
    x, target = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)
    graph = trace(model, (x,), {}, target=target, loss_fn=nn.MSELoss())
    skipped = model.layers[2:]
    parameters = sum(parameter.nbytes for parameter in skipped.parameters())
    buffers = 2 * (4 * WIDTH + 2 * 1000) + 4 * WIDTH + 4 * 500  # of skipped blocks, as above
    assert graph.buffer_bytes == parameters + model.token.nbytes + buffers


@pytest.mark.parametrize("pp", [1, 2])
def test_plans_hold_them_on_the_ranks_that_have_them(pp):
    def stages(*, buffers: bool) -> list[int]:
        plan = autopar.plan(
            Model(buffers=buffers), 2, (torch.zeros(ROWS, WIDTH),), loss_fn=nn.MSELoss(),
            example_target=torch.zeros(ROWS, WIDTH), cluster="cpu", precision="fp32",
            pin={"pp": pp, "tp": 1, "recompute": "none", "schedule": "1f1b", "microbatch_size": 2},
        )  # fmt: skip
        return [stage.prediction.memory.total for stage in plan.stages]

    more = [a - b for a, b in zip(stages(buffers=True), stages(buffers=False), strict=True)]
    assert more == [LAYERS // pp * 2 * 1000 + 4 * 500] * pp
