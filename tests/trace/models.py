"""Small models, each with one property that the trace must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.graph import Graph
from autopar.trace import trace

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Chain(nn.Module):
    """A linear layer in front of blocks."""

    def __init__(self, block: type[nn.Module] = Block, depth: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([block() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Shifted(Block):
    """Makes a tensor without naming a device."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.ones(WIDTH))


class Returning(Chain):
    """Computes its loss and returns it in some form, beside its output."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return self.form(F.mse_loss(y, x), y)


class Branches(Block):
    """Its control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = x + 1
        return self.linear(x)


class Appends(Block):
    """Leaves its result in a list that the model passes to every block."""

    def forward(self, x: Tensor, results: list[Tensor]) -> Tensor:
        x = self.linear(x)
        results.append(x)
        return x


class Collects(Chain):
    """Sums up what its blocks appended."""

    def __init__(self) -> None:
        super().__init__(Appends)

    def forward(self, x: Tensor) -> Tensor:
        results: list[Tensor] = []
        for block in self.blocks:
            x = block(x, results)
        return x + sum(results)


class HoldsTensor(Block):
    """A tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale


class Inplace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).relu_()
        y += x
        copy = y.clone()
        copy.mul_(2)
        return y + copy


class InplaceView(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y.t().mul_(2)
        return y


class NoGrad(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean(-1, keepdim=True)
        return self.linear(x) * scale


class Skips(Chain):
    """The first block's input is read again behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return super().forward(x) + x


def graph_of(model: nn.Module) -> Graph:
    x = torch.ones(2, WIDTH)
    return trace(model, (x,), {}, target=x, loss_fn=F.mse_loss)


def targets(graph: Graph, unit: str = "") -> list[str]:
    """Names of the operations of a unit, all of them without one."""
    ops = [op for op in graph.ops if op.unit == unit or not unit]
    return [op.target.split(".")[1] for op in ops]
