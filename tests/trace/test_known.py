"""What is made of numbers and sizes alone may be asked for its value while a model is traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autopar.graph import Graph
from autopar.trace import trace
from autopar.trace.known import KnownValues
from autopar.trace.opaque import OPAQUE


class Masked(nn.Module):
    """Attends causally if the mask that it makes is the causal one, as ``nn.Transformer`` does."""

    def __init__(self, diagonal: int) -> None:
        super().__init__()
        self.linear, self.diagonal = nn.Linear(4, 4), diagonal

    def forward(self, x: Tensor) -> Tensor:
        full = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device)
        mask = torch.triu(full, diagonal=self.diagonal)
        causal = bool((mask == torch.triu(full, diagonal=1)).all())
        y = self.linear(x)
        return y.cumsum(1) if causal else y.flip(1)


class Random(nn.Module):
    """Decides by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if torch.rand(()) > torch.full((), 0.5) else -y


def graph_of(model: nn.Module) -> Graph:
    x = torch.zeros(2, 3, 4, device="meta")
    return trace(model, (x,), {}, target=x, loss_fn=nn.functional.mse_loss)


@pytest.mark.parametrize(("diagonal", "taken"), [(1, "cumsum"), (0, "flip")])
def test_a_mask_of_sizes_is_compared(diagonal, taken):
    targets = " ".join(op.target for op in graph_of(Masked(diagonal)).ops)
    assert [word for word in ("cumsum", "flip") if word in targets] == [taken]


def test_chance_is_not_known():
    assert graph_of(Random()).ops[0].target == OPAQUE  # the model as a whole


def test_changes_are_forgotten():
    with torch.device("meta"), KnownValues() as known:
        mask = torch.zeros(2)
        assert mask.tolist() == [0.0, 0.0]
        part = mask[1:]
        mask.fill_(1)
        assert not known.made
        with pytest.raises((RuntimeError, NotImplementedError)):
            part.item()
