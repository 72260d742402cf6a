"""Which models can make the gradients of their parameters apart from the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autopar.strategies.patterns import find_classes, reduce
from autopar.strategies.splitting import splits_backward
from autopar.trace import trace


class Block(nn.Module):
    """What it makes of its own parameters meets the hidden state ``times`` times."""

    def __init__(self, times: int, twice: bool) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.times, self.twice = times, twice

    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.scale.exp() if self.times else self.scale
        for _ in range(max(1, self.times)):
            hidden = hidden * gate
        hidden = self.inner(hidden)
        return self.inner(hidden) if self.twice else hidden


class Net(nn.Module):
    """``first``: a block that does so is the first layer."""

    def __init__(self, times: int, twice: bool = False, first: bool = False) -> None:
        super().__init__()
        kinds = [(times, twice), (0, False), (0, False)]
        self.blocks = nn.ModuleList(Block(*kind) for kind in (kinds if first else kinds[::-1]))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Net(0), True),
        (Net(1), True),
        (Net(2), False),
        (Net(2, first=True), True),
        (Net(0, twice=True), False),
    ],
)
def test_parameters_behind_the_first_layer_have_to_meet_what_is_received_once(net, expected):
    graph = trace(net.to("meta"), (torch.empty(4, 8, device="meta"),), {})
    assert splits_backward(*reduce(graph, find_classes(graph))) == expected
