"""Numbers that a forward makes tensors of stay in the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autopar.graph import Graph
from autopar.trace import trace
from autopar.trace.constants import Constants, constant


class Scaled(nn.Module):
    """Makes its numbers where the input is, on ``meta`` while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=x.device).flatten()
        floor = torch.tensor(torch.finfo(x.dtype).min, dtype=x.dtype)
        return torch.where(x > 0, self.linear(x) * scale, floor)


class Picked(nn.Module):
    """Indexes with lists, which torch makes tensors of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y[:, [-2]] + y[:, [1, 2]] + y[:, [0, 3]]


def graph_of(model: nn.Module, width: int) -> Graph:
    x = torch.zeros(2, width, device="meta")
    return trace(model.to("meta"), (x,), {}, target=x, loss_fn=lambda y, _: y.mean())


def test_numbers_made_on_meta_are_kept():
    graph = graph_of(Scaled(), 4)
    made = [op for op in graph.ops if op.target == "autopar.constant.default"]
    assert [op.args for op in made] == [
        ((1.0, 2.0, 3.0, 4.0), (2, 2)), ((torch.finfo(torch.float32).min,), ())
    ]  # fmt: skip
    assert all(op.kwargs == {"dtype": "torch.float32"} for op in made)


def test_a_list_is_a_range_where_it_can_be():
    graph = graph_of(Picked(), 6)
    assert sum(op.target == "autopar.constant.default" for op in graph.ops) == 1
    slices = [op.args[1:] for op in graph.ops if op.target == "aten.slice.Tensor"]
    assert (1, -2, -1) in slices
    assert (1, 1, 3) in slices


@pytest.mark.parametrize("data", [2, 0.5, True, [1, 2], [[0.5], [2]], [], [[True, False]]])
def test_as_torch_makes_them(data):
    with Constants():
        found = torch.tensor(data)
    torch.testing.assert_close(found, torch.tensor(data))


def test_what_is_no_number_is_left_alone():
    x = torch.ones(3)
    with Constants():
        assert torch.as_tensor(x) is x
        assert torch.equal(x[[True, False, True]], torch.ones(2))
    assert constant([1.0], [1], dtype=torch.int64, device=torch.device("cpu")).item() == 1
