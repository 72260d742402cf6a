"""Layers that share a buffer that changes are one, for another stage would have a copy of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from autopar.trace.together import joined
from tests.trace.models import WIDTH, Block, Chain, graph_of


class Iterated(Block):
    """Its weight is divided by an estimate that each run improves."""

    def __init__(self) -> None:
        super().__init__()
        spectral_norm(self.linear)


class Normalised(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Twice(Chain):
    """The second block runs again between the third and the head."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__(block, depth=4)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[2](self.blocks[1](self.blocks[0](self.first(x))))
        return self.head(self.blocks[3](self.blocks[1](x)))


class Queue(Chain):
    """What is read in front is filled behind the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x + self.kept)
        with torch.no_grad():
            self.kept.copy_(y.mean(0))
        return y


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in graph_of(model).layers]


@pytest.mark.parametrize("block", [Iterated, Normalised])
def test_two_runs_that_change_a_buffer_are_one_layer(block):
    assert names(Twice(block)) == ["embedding", "blocks.0", "(blocks.1#1)", "blocks.3", "head"]


def test_two_runs_that_change_none_are_two():
    assert len(names(Twice(Block))) == 7


@pytest.mark.parametrize("block", [Iterated, Normalised])
def test_blocks_with_buffers_of_their_own_are_apart(block):
    assert names(Chain(block)) == ["embedding", "blocks.0", "blocks.1", "head"]


def test_what_reads_a_buffer_and_what_changes_it_are_one():
    (layer,) = graph_of(Queue()).layers
    assert (layer.name, layer.kind) == ("head", "head")


def test_a_block_that_is_joined_is_no_block():
    groups = {"a": [0], "b": [1], "c": [2], "head": [3]}
    used = {0: set(), 1: {"x"}, 2: {"x"}, 3: set()}
    assert joined(groups, used, {"a", "b", "c"}, "head") == {"a": [0], "(b)": [1, 2], "head": [3]}


def test_spans_that_overlap_are_one():
    groups = {name: [k] for k, name in enumerate("abcdef")}
    used = {0: set(), 1: {"x"}, 2: {"y"}, 3: {"x"}, 4: {"y"}, 5: set()}
    assert list(joined(groups, used, set(), "f").values()) == [[0], [1, 2, 3, 4], [5]]
