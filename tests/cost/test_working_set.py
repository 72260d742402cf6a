"""What a layer is said to hold at its fullest moment beside what a real one holds, on this CPU."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from autopar.cost.activations import extra_bytes, kept_tensors, saved_tensors
from autopar.cost.working_set import WorkingSet, context_bytes, working_set
from autopar.run.live import PeakBytes
from tests.cost.test_activations import Repeated, Reshaped, Selecting, Stack, loss_fn, planned

WIDTH, TOKENS = 32, 16
PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]


class Attention(nn.Module):
    """Scores by hand, which nothing saves, and a mask that is made of sizes alone."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.masked = (
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
            masked,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (TOKENS, WIDTH))
        q, k, v = self.qkv(x).split(WIDTH, -1)
        scores = q @ k.transpose(1, 2) / WIDTH**0.5
        if self.masked:
            scores = scores + torch.ones(TOKENS, TOKENS, device=x.device).tril().log()
        return x + self.out(F.softmax(scores, -1) @ v)


class Deep(nn.Module):
    """Much is saved in front of its widest gradients, and much behind."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (WIDTH, 64, 64, 512, 64, 64, WIDTH)
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


class Scored(nn.Module):
    """One large table is read three times."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(4096, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return sum(x * F.embedding((x[:, k] > 0).long(), self.table) for k in range(3))


def measured(model: nn.Module, x: Tensor, run: Any = None) -> tuple[int, int]:
    """Bytes beside parameters and the input: the most of forward, and of backward."""
    known = [x, *model.parameters(), *(torch.zeros_like(p) for p in model.parameters())]
    memory = PeakBytes(known)
    start = memory.current
    with memory:
        loss = loss_fn((run or model)(x), torch.zeros(len(x)))
    forward, memory.peak = memory.peak, memory.current
    with memory:
        loss.backward()
    return forward - start, memory.peak - start


def foretold(model: nn.Module, x: Tensor) -> tuple[WorkingSet, int]:
    """The same as planned, and how much of it is what selective recomputation keeps."""
    graph, pattern, sharding = planned(model, x)
    saved = saved_tensors(graph, pattern, sharding, len(x))
    kept, extra = kept_tensors(graph, pattern, sharding, len(x))
    found = working_set(graph, pattern, sharding, len(x), saved)
    total = sum(saved.values()) + extra_bytes(graph, pattern, sharding, len(x))
    assert found.backward >= total + context_bytes(graph, pattern, len(x))
    return found, sum(kept.values()) + extra


def wide(make: Any) -> Tensor:
    """Inputs, so many that activations are larger than parameters."""
    return torch.randn(1024, WIDTH * (TOKENS if make in MANY else 1))


MANY = (Attention, partial(Attention, masked=True))
MODELS = [Stack, Repeated, Reshaped, Selecting, Deep, *MANY]


@pytest.mark.parametrize("make", MODELS)
def test_the_most_of_forward_and_backward(make):
    model, x = make(), wide(make)
    found, _ = foretold(model, x)
    forward, backward = measured(model, x)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    # Variables of the user's functions hold some of what nothing reads any more.
    assert 0.92 * forward <= found.forward <= 1.25 * forward
    assert 0.98 * (backward - parameters) <= found.summed <= 1.25 * backward


@pytest.mark.parametrize("make", [Stack, Attention])
def test_the_most_while_selective_recomputation_runs(make):
    """Results that were kept go as they are read, so they are no more than what is saved again."""
    model, x = make(), wide(make)
    found, kept = foretold(model, x)
    contexts = partial(create_selective_checkpoint_contexts, PRODUCTS)
    again = partial(checkpoint, model, use_reentrant=False, context_fn=contexts)
    _, backward = measured(model, x, again)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    most = max(found.summed, found.forward, found.repeated)
    result = x.numel() * 4  # is there when the layer, to which the loss belongs, runs again
    assert kept <= most
    assert 0.98 * (backward - parameters - result) <= most <= 1.3 * backward


def test_gradients_of_what_is_read_again_wait_and_meet():
    """In the first micro-batch they wait where the step holds them, in the second beside the sum.

    Where two meet there are both and their sum.
    """
    model, x = Scored(), torch.randn(8, WIDTH)
    found, _ = foretold(model, x)
    memory = PeakBytes([x, *model.parameters()])
    own = model.table.numel() * 4
    for held, planned_bytes in ((own, own + found.backward), (2 * own, own + found.summed)):
        with memory:
            loss_fn(model(x), torch.zeros(len(x))).backward()
        assert memory.current < held + 1.2 * own
        assert 0.98 * memory.peak <= own + planned_bytes <= 1.1 * memory.peak
        memory.peak = 0


def test_what_is_saved_behind_is_gone():
    """The widest gradients never meet what is saved behind them."""
    model, x = Deep(), torch.randn(1024, WIDTH)
    graph, pattern, sharding = planned(model, x)
    saved = saved_tensors(graph, pattern, sharding, len(x))
    found = working_set(graph, pattern, sharding, len(x), saved)
    wide_bytes = 1024 * 512 * 4
    assert found.backward < sum(saved.values()) + 2 * wide_bytes


def test_a_variable_of_a_divided_layer_holds_what_nobody_reads_any_more():
    model, x = Attention(), torch.randn(64, WIDTH * TOKENS)
    graph, pattern, sharding = planned(model, x)
    saved = saved_tensors(graph, pattern, sharding, len(x))
    divided = dataclasses.replace(sharding, tp=2, unsplit=False)  # all states stay whole
    whole = dataclasses.replace(divided, unsplit=True)
    held, free = (working_set(graph, pattern, s, len(x), saved).forward for s in (divided, whole))
    assert held == free + 64 * TOKENS * max(TOKENS, WIDTH) * 4
