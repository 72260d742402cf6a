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


class Late(nn.Module):
    """An input that a parameter meets in the second layer; there or in the third it is added.

    ``frozen``: all that the first layer makes has no gradient.
    """

    def __init__(self, further: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(0, twice=False) for _ in range(3))
        self.enter, self.further = nn.Linear(8, 8), further
        self.blocks[0].requires_grad_(not frozen)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.blocks[0](x), self.enter(y)
        x = self.blocks[1](x if self.further else x + y)
        return self.blocks[2](x + y if self.further else x).square().mean()


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


class Cut(nn.Module):
    """Attends to a memory in every layer; one weight is cut in for queries and for it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 3)
        self.embed, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.decoder(x, self.read(x)).square().mean()


def test_parts_of_a_parameter_meet_it_at_one_operation_each():
    """Weight and bias meet the queries at two operations of torch and the memory at one."""
    assert not splits(Cut(), torch.empty(4, 3, 8))


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
    assert splits(net, torch.empty(4, 8)) == expected


@pytest.mark.parametrize(
    ("net", "expected"),
    [(Late(), True), (Late(further=True), False), (Late(frozen=True), False)],
)
def test_parameters_meet_it_in_the_layer_that_reads_them(net, expected):
    """Otherwise a stage could end between, or receive nothing learned: they had no gradient."""
    assert splits(net, torch.empty(4, 8), torch.empty(4, 8)) == expected


class Recurrent(nn.Module):
    """A recurrence before or behind two other layers."""

    def __init__(self, kind: type[nn.Module], first: bool) -> None:
        super().__init__()
        kinds = [kind, nn.Linear, nn.Linear] if first else [nn.Linear, nn.Linear, kind]
        self.blocks = nn.ModuleList(kind(8, 8) for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return x.square().mean()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrences_do_so_several_times(kind, first):
    given = torch.empty(4, 8) if kind.__name__.endswith("Cell") else torch.empty(4, 3, 8)
    assert splits(Recurrent(kind, first), given) == first


def splits(net: nn.Module, *inputs: Tensor) -> bool:
    graph = trace(net.to("meta"), tuple(x.to("meta") for x in inputs), {})
    return splits_backward(*reduce(graph, find_classes(graph)))
