"""Which losses are sums over the samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.solve.statistics import find_statistics
from autopar.strategies.growth import MEAN, SUM, UNKNOWN, loss_powers
from autopar.strategies.patterns import find_classes, reduce
from autopar.trace import trace

BOTH = MEAN | SUM
Loss = Callable[[Tensor, Tensor], Tensor]


def labels(target: Tensor) -> Tensor:
    return target.argmax(1)


def masked(output: Tensor, target: Tensor) -> Tensor:
    mask = (target > 0).float()
    return ((output - target).square() * mask).sum() / mask.sum()


LOSSES: list[tuple[Loss, frozenset[int]]] = [
    (F.mse_loss, MEAN),
    (lambda o, t: F.mse_loss(o, t, reduction="sum"), SUM),
    (lambda o, t: F.l1_loss(o, t, reduction="none").sum(), SUM),
    (lambda o, t: F.l1_loss(o, t, reduction="none").sum(-1).mean(), MEAN),
    (lambda o, t: (o - t).square().sum() / o.shape[0], MEAN),
    (lambda o, t: F.mse_loss(o, t) * len(o), SUM),
    (lambda o, t: F.cross_entropy(o, labels(t)), MEAN),
    (lambda o, t: F.cross_entropy(o, labels(t), reduction="sum"), SUM),
    (lambda o, t: F.nll_loss(o.log_softmax(-1), labels(t), reduction="sum"), SUM),
    (lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="sum"), SUM),
    (lambda o, t: F.kl_div(o, t, reduction="batchmean"), MEAN),
    (lambda o, t: F.poisson_nll_loss(o, t, reduction="sum"), SUM),
    (lambda o, t: torch.einsum("bi,bi->", o, t), SUM),
    (masked, MEAN),
    # the usual loss of a variational autoencoder: two sums
    (lambda o, t: 0.5 * F.mse_loss(o, t, reduction="sum") - (1 + o - o.exp()).sum(), SUM),
    (lambda o, t: F.mse_loss(o, t) + 1e-3 * o.square().sum(), BOTH),
    (lambda o, t: F.mse_loss(o, t) / len(o), frozenset({-1})),
    (lambda o, t: (o - t).square().sum().sqrt(), UNKNOWN),
]


@pytest.mark.parametrize("loss_fn", [loss for loss, _ in LOSSES])
def test_powers(loss_fn):
    expected = dict(LOSSES)[loss_fn]
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).to("meta")
    x = torch.empty(4, 8, device="meta")
    graph = trace(model, (x,), {}, target=x, loss_fn=loss_fn)
    assert loss_powers(graph) == expected
    few, _ = reduce(graph, find_classes(graph))  # what a plan holds, and a program is written from
    assert loss_powers(few) == expected
    found = find_statistics(graph)
    assert found.sums == (expected == SUM)
    assert bool(found.mixing) == (expected not in (MEAN, SUM))
