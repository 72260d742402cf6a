"""Losses that are not reduced have the shape of their targets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopar.graph import Size
from autopar.trace import trace
from tests.trace.test_trace import evaluate

TOKENS, CLASSES = 5, 4


def masked(output, target):
    losses = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
    mask = (target > 0).float()
    return (losses.view(target.shape) * mask).sum() / mask.sum()


def per_place(output, target):
    return F.cross_entropy(output.transpose(1, 2), target, reduction="none").sum(1).mean()


def weighted(output, target):
    loss = nn.CrossEntropyLoss(reduction="none", ignore_index=1, label_smoothing=0.1)
    return loss(output.flatten(0, 1), target.flatten()).mean()


@pytest.mark.parametrize("loss", [masked, per_place, weighted])
def test_unreduced_losses_are_traced_as_torch_computes_them(loss):
    torch.manual_seed(0)
    model, x = nn.Linear(3, CLASSES), torch.randn(3, TOKENS, 3)
    target = torch.arange(3 * TOKENS).view(3, TOKENS) % CLASSES
    graph = trace(model, (x,), {}, target=target, loss_fn=loss)
    (op,) = [op for op in graph.ops if op.target == "aten.cross_entropy_loss.default"]
    assert all(size.power == 1 for size in graph.values[op.outputs[0]].shape[:1])
    assert graph.values[op.outputs[0]].shape[0].coefficient == (1 if loss is per_place else TOKENS)
    found = evaluate(graph, model, {"args.0": x, "target": target}, 3)
    torch.testing.assert_close(found, loss(model(x), target))


def test_reduced_losses_are_left_alone():
    x, target = torch.randn(2, 3), torch.zeros(2, dtype=torch.int64)
    graph = trace(nn.Linear(3, CLASSES), (x,), {}, target=target, loss_fn=F.cross_entropy)
    assert graph.values[graph.loss].shape == ()
    assert Size(1, 1) in graph.values[graph.ops[0].outputs[0]].shape
