"""No rank of a pipeline is left without parameters: torch's optimizers refuse to have none."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import InfeasiblePlanError

WIDTH, ROWS = 16, 8


class Chain(nn.Module):
    """Blocks with parameters (L) and without (n), as they are told."""

    def __init__(self, kinds: str) -> None:
        super().__init__()
        made = {"L": lambda: nn.Linear(WIDTH, WIDTH), "n": nn.Tanh}
        self.layers = nn.ModuleList(made[kind]() for kind in kinds)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def planned(kinds: str, world_size: int = 2, **pin: object) -> autopar.Plan:
    return autopar.plan(
        Chain(kinds), world_size, (torch.zeros(ROWS, WIDTH),), loss_fn=nn.MSELoss(),
        example_target=torch.zeros(ROWS, WIDTH), cluster="cpu", precision="fp32",
        global_batch_size=ROWS, pin={"pp": world_size, **pin},
    )  # fmt: skip


@pytest.mark.parametrize("kinds", ["LnnnnnL", "nnnLLnnn", "LLnnnnnn", "nnnnnnLL", "LnnLnnnn"])
def test_every_rank_has_parameters(kinds: str) -> None:
    plan = planned(kinds)
    held = [0] * plan.mesh.pp
    for layer in plan.layers:
        held[layer.stage % plan.mesh.pp] += len(layer.placements)
    assert all(held), held


def test_in_the_middle_of_a_pipeline_too() -> None:
    """Even stages would leave the second rank with two activations."""
    plan = planned("LnnLnL", world_size=3)
    starts = [next(i for i, own in enumerate(plan.layers) if own.stage == s) for s in range(3)]
    names = [layer.name for layer in plan.layers]
    for start, end in pairwise([*starts, len(names)]):
        assert any(layer.placements for layer in plan.layers[start:end]), names[start:end]


def test_pins_that_leave_a_rank_without_are_refused() -> None:
    with pytest.raises(InfeasiblePlanError, match="layers that have parameters"):
        planned("LLnn", stages=[2, 0])
