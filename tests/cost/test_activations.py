"""Bytes of activations beside those that a real backward has, on this CPU."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.cost.activations import hosted, saved_tensors, transient_bytes
from autopar.cost.layer import replicated
from autopar.run.live import PeakBytes
from autopar.strategies.sharding import Pattern
from autopar.trace import trace
from autopar.trace.saved import observe_saved, views_of

SAMPLES, WIDTH = 4, 32


class Experts(nn.Module):
    """Weights that are read through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.weight.transpose(0, 1)


class Thresholded(nn.Module):
    """Keeps which elements are large: what has no gradient, and grows with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return torch.where(x > 0, x, 0.0)


class Repeated(nn.Module):
    """Multiplies what is expanded: its elements are kept once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[:, None].expand(-1, 4, -1) * self.second(x).view(-1, 4, WIDTH)


class Reshaped(nn.Module):
    """Keeps the same elements under several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear(x).unflatten(1, (4, -1)).movedim(1, 2).unbind(2)[:2]
        return first * second


class Selecting(nn.Module):
    """Reads a part of much: the gradient of the whole is zeros of the whole's size."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 16 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(-1, 16, WIDTH)[:, 0].tanh()


class Stack(nn.Module):
    """A residual block of two wide layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    return (output.flatten(1).mean(1) - target).square().mean()


def planned(model: nn.Module, x: Tensor) -> tuple[Any, Any, Any]:
    """Graph, pattern and sharding of a model that is one layer, with the loss."""
    graph = trace(model, (x,), {}, target=torch.zeros(len(x)), loss_fn=loss_fn)
    saved = {
        i: observe_saved(op, graph.values, views_of(graph.ops)) for i, op in enumerate(graph.ops)
    }
    graph = dataclasses.replace(graph, saved=saved)
    pattern = Pattern("all", tuple(i for i in saved if i not in graph.context))
    return graph, pattern, replicated(graph, pattern)


def storages(tensors: list[Tensor]) -> Iterator[int]:
    return (tensor.untyped_storage().data_ptr() for tensor in tensors)


def really_saved(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of what the model makes."""
    known, kept = set(storages([x, *model.parameters()])), dict[int, Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        if not known.intersection(storages([tensor])):
            kept[next(storages([tensor]))] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_fn(model(x), torch.zeros(len(x)))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("make", [Experts, Thresholded, Repeated, Reshaped])
def test_saved_bytes_are_those_of_autograd(make):
    model, x = make(), torch.randn(SAMPLES, WIDTH)
    saved = saved_tensors(*planned(model, x), SAMPLES)
    assert sum(saved.values()) == really_saved(model, x)


class Away:
    """The bytes of a storage elsewhere, and from its first use on here, as in a program."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        here = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.bytes, self.here = here.numpy().copy(), None

    def storage(self) -> torch.UntypedStorage:
        if self.here is None:
            self.here = torch.from_numpy(self.bytes).clone().untyped_storage()
        return self.here


def peak_of_backward(model: nn.Module, x: Tensor, *, away: bool) -> int:
    """Bytes that backward has at most besides parameters, the input and what is saved here."""
    own = set(storages([x, *model.parameters()]))
    moved = weakref.WeakKeyDictionary[torch.UntypedStorage, Away]()

    def pack(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in own or not away:
            return tensor
        kept = moved.setdefault(storage, Away(storage))
        return kept, tensor.storage_offset(), tensor.size(), tensor.stride(), tensor.dtype

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return torch.empty(0, dtype=kept[-1]).set_(kept[0].storage(), *kept[1:4])

    memory = PeakBytes([x, *model.parameters()])
    with memory, torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = loss_fn(model(x), torch.zeros(len(x)))
    memory.peak = before = memory.current
    with memory:
        loss.backward()
    return memory.peak - before


@pytest.mark.parametrize("samples", [256, 512])
def test_what_comes_back_from_the_host_goes_with_its_last_reader(samples):
    """Backward of the middle has two of the four wide results, and gradients of three."""
    model, x = Stack(), torch.randn(samples, WIDTH)
    graph, pattern, sharding = planned(model, x)
    saved = saved_tensors(graph, pattern, sharding, samples)
    moved, fetched = hosted(graph, pattern, sharding, samples, saved)
    parameters = sum(p.numel() * 4 for p in model.parameters())
    seen = peak_of_backward(model, x, away=True)
    assert moved == sum(saved.values()) == really_saved(model, x)
    assert 0.95 * (seen - parameters) <= fetched <= 1.2 * seen
    assert fetched < moved + transient_bytes(graph, pattern, sharding, samples)[0]


def test_the_gradient_of_a_part_is_as_large_as_the_whole():
    model, x = Selecting(), torch.randn(64, WIDTH)
    transient, summed = transient_bytes(*planned(model, x), 64)
    assert transient >= 64 * 16 * WIDTH * 4
    assert summed >= 0.95 * peak_of_backward(model, x, away=False)
