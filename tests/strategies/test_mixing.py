"""Operations that mix samples are found, and those that do not are left alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopar.errors import TraceError
from autopar.strategies.mixing import find_mixing
from autopar.trace import trace

WIDTH, CLASSES = 8, 4


class Model(nn.Module):
    """A linear layer on either side of ``inside``."""

    def __init__(self, inside):
        super().__init__()
        self.before, self.after = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.inside = inside
        self.register_buffer("memory", torch.zeros(WIDTH))

    def forward(self, x):
        return self.after(self.inside(self, self.before(x)))


def nothing(model, x):
    return x


def centred(model, x):
    return x - x.mean(0)


def normalized(model, x):
    return (x - x.mean(0, keepdim=True)) / x.var(0, keepdim=True).add(1e-5).sqrt()


def remembered(model, x):
    with torch.no_grad():
        model.memory.mul_(0.9).add_(0.1 * x.mean(0))
    return x - model.memory


def counted(model, x):
    with torch.no_grad():
        model.memory.add_(1.0)
    return x


def by_the_first(model, x):
    return x - x[0]


def attended(model, x):
    return F.scaled_dot_product_attention(x[None], x[None], x[None])[0]


def ranked(model, x):
    return x.softmax(0)


def within_samples(model, x):
    return F.layer_norm(x - x.mean(1, keepdim=True), (WIDTH,)) + x.softmax(1)


def own_weights(model, x):
    """Each sample is convolved by weights made of it; samples are groups."""
    n = x.shape[0]
    weights = x.unflatten(1, (4, 1, 2)).reshape(4 * n, 1, 2)
    y = F.conv1d(x.unflatten(1, (4, 2)).reshape(1, 4 * n, 2), weights, None, 1, 1, 1, 4 * n)
    return y.reshape(n, 12)[:, :WIDTH]


def neighbours_weights(model, x):
    """The same of transposed samples: channels of all are beside each other."""
    n = x.shape[0]
    rows = x.unflatten(1, (4, 2)).transpose(0, 1)
    y = F.conv1d(rows.reshape(1, 4 * n, 2), rows.reshape(2 * n, 2, 2), None, 1, 1, 1, 2 * n)
    return y.reshape(2, n, 3).transpose(0, 1).flatten(1).repeat(1, 2)[:, :WIDTH]


def entropy(output, target):
    return F.cross_entropy(output, target)


def masked_mean(output, target):
    mask = (target > 0).float()
    return (output.square().mean(1) * mask).sum() / mask.sum().clamp(min=1)


def two_terms(output, target):
    return 0.5 * F.cross_entropy(output, target) + 0.1 * output.square().mean()


def root(output, target):
    return F.cross_entropy(output, target).sqrt()


def squared(output, target):
    return F.cross_entropy(output, target) ** 2


def product(output, target):
    return F.cross_entropy(output, target) * output.mean()


def worst(output, target):
    return output.square().mean(1).max()


def contrastive(output, target):
    scores = F.normalize(output, dim=1) @ F.normalize(output, dim=1).t()
    return F.cross_entropy(scores, torch.arange(output.shape[0], device=output.device))


def balanced(output, target):
    """The auxiliary loss of mixtures of experts: shares of the choices times mean scores."""
    chosen = F.one_hot(output.argmax(1), CLASSES).float().mean(0)
    return (chosen * output.softmax(1).mean(0)).sum()


def test_a_loop_over_samples_is_refused():
    def loss(output, target):
        return sum(F.cross_entropy(one, mine) for one, mine in zip(output, target, strict=True))

    with pytest.raises(TraceError) as caught:
        found(nothing, loss)
    assert "x.shape[0]" in caught.value.hint


def found(inside, loss):
    x, y = torch.randn(2, WIDTH), torch.zeros(2, dtype=torch.int64)
    graph = trace(Model(inside), (x,), {}, target=y, loss_fn=loss)
    return [mixing.reason for mixing in find_mixing(graph)]


@pytest.mark.parametrize("inside", [nothing, within_samples, counted, own_weights])
@pytest.mark.parametrize("loss", [entropy, masked_mean, two_terms])
def test_what_treats_samples_alone_mixes_nothing(inside, loss):
    assert found(inside, loss) == []


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (centred, "hands a sum or mean over the samples back to single samples"),
        (normalized, "hands a sum or mean over the samples back to single samples"),
        (remembered, "changes a buffer by what the samples are"),
        (by_the_first, "reduces over the samples by other than a sum or mean"),
        (attended, "runs along the samples"),
        (ranked, "runs along the samples"),
        (neighbours_weights, "runs along the samples"),
    ],
)
def test_what_mixes_samples_in_the_model_is_found(inside, reason):
    assert reason in found(inside, entropy)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (root, "is not linear in a sum or mean over the samples"),
        (squared, "is not linear in a sum or mean over the samples"),
        (product, "multiplies sums or means over the samples"),
        (balanced, "multiplies sums or means over the samples"),
        (worst, "reduces over the samples by other than a sum or mean"),
        (contrastive, "compares every sample with every other"),
    ],
)
def test_losses_that_are_no_means_over_the_samples_are_found(loss, reason):
    assert reason in found(nothing, loss)
