"""Emitted batch normalisation on two ranks, played by threads, against torch's on all samples."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from jinja2 import Environment, PackageLoader
from torch import nn
from torch.overrides import TorchFunctionMode

RANKS = 2


class Wires:
    """The collectives that the program calls, between threads."""

    def __init__(self):
        self.barrier, self.sent = Barrier(RANKS, timeout=20), [None] * RANKS

    def exchange(self, rank, tensor):
        self.sent[rank] = tensor.clone()
        self.barrier.wait()
        found = [tensor.clone() for tensor in self.sent]
        self.barrier.wait()
        return found

    def of(self, rank):
        def all_gather(parts, own, group):
            for part, sent in zip(parts, self.exchange(rank, own), strict=True):
                part.copy_(sent)

        def all_reduce(own, group):
            own.copy_(torch.stack(self.exchange(rank, own)).sum(0))

        return SimpleNamespace(all_gather=all_gather, all_reduce=all_reduce)


def namespace(dist, bf16=False):
    """The emitted functions of a program for two data-parallel ranks."""
    environment = Environment(
        loader=PackageLoader("autopar.emit"), trim_blocks=True, lstrip_blocks=True
    )
    program = SimpleNamespace(dp=RANKS, bf16=bf16)
    text = environment.get_template("norms.py.j2").render(p=program)
    space = {
        "torch": torch, "F": F, "TorchFunctionMode": TorchFunctionMode, "dist": dist,
        "contextmanager": contextmanager, "DP": RANKS,
        "MESH": SimpleNamespace(get_group=lambda name: name),
    }  # fmt: skip
    exec(text, space)
    return space


def train(model, x, weights):
    """Gradients of a weighted sum of the results, by name, that of the samples as "x"."""
    x = x.clone().requires_grad_()
    (model(x) * weights).sum().backward()
    return {"x": x.grad, **{n: p.grad for n, p in model.named_parameters()}}


def on_ranks(make, x, weights):
    """(gradients, buffers) of each rank with its share of the samples."""
    wires, models = Wires(), [make() for _ in range(RANKS)]

    def run(rank):
        model = models[rank]
        with namespace(wires.of(rank))["Norms"]():
            found = train(model, x.chunk(RANKS)[rank], weights.chunk(RANKS)[rank])
        return found, dict(model.named_buffers())

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(run, range(RANKS)))


CASES = {
    "vectors": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "sequences": (lambda: nn.BatchNorm1d(3, momentum=0.3, eps=1e-2), (6, 3, 5)),
    "images": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "volumes": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 3, 2)),
    "no parameters": (lambda: nn.BatchNorm2d(3, affine=False), (4, 3, 5, 5)),
    "no buffers": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 5)),
    "far from zero": (lambda: nn.BatchNorm1d(3), (8, 3)),
    "twice": (lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3)), (6, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_device(name):
    make, shape = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x + 1e6 if name == "far from zero" else x

    def built():
        torch.manual_seed(1)
        model = make().double()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return model

    model = built()
    expected, buffers = train(model, x, weights), dict(model.named_buffers())
    found = on_ranks(built, x, weights)
    for key, wanted in expected.items():
        parts = [gradients[key] for gradients, _ in found]
        whole = torch.cat(parts) if key == "x" else torch.stack(parts).sum(0)
        torch.testing.assert_close(whole, wanted, rtol=1e-7, atol=1e-9)
    for _, kept in found:
        for key, wanted in buffers.items():
            torch.testing.assert_close(kept[key], wanted, rtol=1e-9, atol=1e-12)


def test_evaluation_uses_the_running_statistics():
    model = nn.BatchNorm1d(3).eval()
    x = torch.randn(4, 3)
    with namespace(dist=None)["Norms"]():
        found = model(x)
    torch.testing.assert_close(found, model(x))


def test_bf16_keeps_statistics_in_float32():
    space = namespace(SimpleNamespace(all_gather=lambda parts, own, group: [
        part.copy_(own) for part in parts]), bf16=True)  # fmt: skip
    x, mean, variance = torch.randn(64, 3).bfloat16(), torch.zeros(3), torch.ones(3)
    weight, bias = torch.rand(3).bfloat16(), torch.rand(3).bfloat16()
    found = space["batch_norm"](x, mean, variance, weight, bias, training=True)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(mean, 0.1 * x.float().mean(0), rtol=1e-5, atol=1e-7)
    exact = F.batch_norm(x.float(), None, None, weight.float(), bias.float(), training=True)
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=2e-2)
